"""What moved between two domains: against the papers' sums, and at the features where units fail."""

import numpy as np
import oracles
import pytest
from hypothesis import given
from strategies import two_domains

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.selection.penalties import LIVE_SHARE
from dalr_stream.numerics.selection.shift import Shift, diff
from dalr_stream.numerics.statistics.moments import Moments


@given(two_domains(kinds=("generic", "rank_deficient", "relu", "dead", "constant", "scales")))
def test_both_terms_are_the_papers(domains):
    target, source = domains
    found = diff(Moments.of(target), Moments.of(source))
    live = oracles.live(oracles.second_order(target.T, centered=True), LIVE_SHARE)
    near = np.isclose(np.diagonal(oracles.second_order(target.T, centered=True)), 0.0, atol=1e-12)
    if near[live].any():
        return  # nearly constant: whether it is live is a matter of rounding
    assert np.array_equal(found.live, live)
    columns = list(np.flatnonzero(live))
    for j in range(target.shape[1]):
        expected = oracles.discrepancy(target.T, source.T, [j], columns, centered=True) if live[j] else None
        gap = abs(source[:, j].mean() - target[:, j].mean())
        if expected is None:
            assert found.covariance_shift[j] == 0.0
        else:
            assert found.covariance_shift[j] == pytest.approx(expected - gap, rel=1e-8, abs=1e-9 * (expected + gap))
    varies = (np.ptp(target, axis=0) > 0) | (np.ptp(source, axis=0) > 0)
    expected = oracles.standardised_gap(target.T[varies], source.T[varies])
    np.testing.assert_allclose(found.mean_gap[varies], expected, rtol=1e-9, atol=1e-9)


@given(two_domains())
def test_a_domain_does_not_differ_from_itself(domains):
    moments = Moments.of(domains[0])
    found = diff(moments, moments)
    assert not found.mean_gap.any()
    assert not found.covariance_shift.any()


@given(two_domains(kinds=("generic", "relu", "constant")))
def test_the_gap_changes_sign_with_the_sides(domains):
    target, source = map(Moments.of, domains)
    np.testing.assert_array_equal(diff(target, source).mean_gap, -diff(source, target).mean_gap)


def test_units_do_not_matter_to_the_gap():
    rng = np.random.default_rng(0)
    target, source = rng.normal(size=(200, 4)) + 1.0, rng.normal(size=(300, 4))
    units = np.array([1e-6, 1.0, 1e3, 1e6])
    plain, scaled = (diff(Moments.of(target * u), Moments.of(source * u)) for u in (1.0, units))
    np.testing.assert_allclose(plain.mean_gap, scaled.mean_gap, rtol=1e-10)


def test_constant_features_moved_by_nothing_or_by_infinitely_many_spreads():
    rng = np.random.default_rng(0)
    target, source = rng.normal(size=(20, 4)), rng.normal(size=(30, 4))
    target[:, 0] = source[:, 0] = 0.1
    target[:, 1], source[:, 1] = 0.1, 0.2
    target[:, 2], source[:, 2] = 0.2, 0.1
    found = diff(Moments.of(target[:7]) + Moments.of(target[7:]), Moments.of(source))
    assert found.mean_gap[:3].tolist() == [0.0, -np.inf, np.inf]
    assert not found.live[:3].any()
    assert not found.covariance_shift[:3].any()
    assert found.top(2).tolist() == [1, 2]


def test_the_feature_that_moved_comes_first():
    rng = np.random.default_rng(1)
    target, source = rng.normal(size=(500, 6)), rng.normal(size=(500, 6))
    source[:, 4] += 2.0
    source[:, 2] *= 5.0
    found = diff(Moments.of(target), Moments.of(source))
    assert found.top(1).tolist() == [4]
    assert found.mean_gap[4] < -1.5
    assert found.top(1, by="covariance").tolist() == [2]
    assert sorted(found.top(99, by=Shift.COVARIANCE)) == list(range(found.features))


def test_what_cannot_be_compared_is_refused():
    three = Moments.of(np.eye(3))
    with pytest.raises(InvalidInputError, match="3 and of 4 features cannot be compared"):
        diff(three, Moments.of(np.eye(4)))
    with pytest.raises(InvalidInputError, match="at least one row"):
        diff(three, Moments.empty(3))
    with pytest.raises(InvalidInputError, match="must be at least 1, got 0"):
        diff(three, three).top(0)
    with pytest.raises(InvalidInputError, match="by must be one of 'mean', 'covariance', got 'median'"):
        diff(three, three).top(1, by="median")
