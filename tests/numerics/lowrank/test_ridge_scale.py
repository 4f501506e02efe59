"""What a relative ridge is a share of: the mean diagonal, in which no feature counts a thousand times the median."""

import numpy as np
import pytest

from dalr_stream.errors import OutlierFeaturesWarning
from dalr_stream.numerics.linalg.psd import EPSILON
from dalr_stream.numerics.lowrank.from_rows import dalr_from_rows
from dalr_stream.numerics.lowrank.ridge import DEFAULT_RIDGE, MOST_OF_MEDIAN, Ridge, outlying_features
from dalr_stream.numerics.lowrank.solvers import dalr, dalr_sweep
from dalr_stream.numerics.statistics.moments import Moments

D, K = 48, 12


def by_hand(diagonal):
    """The naive twin: features one by one."""
    live = sorted(value for value in diagonal if value > EPSILON * len(diagonal) * max(diagonal))
    if not live:
        return 0.0
    middle = len(live) // 2
    median = live[middle] if len(live) % 2 else (live[middle - 1] + live[middle]) / 2
    return sum(min(value, MOST_OF_MEDIAN * median) for value in diagonal) / len(diagonal)


@pytest.mark.parametrize("outliers", [[], [1e3], [1e6], [1e6, 3e7], [1e-30] * 9, [0.0] * 9, [1e6] + [0.0] * 5])
@pytest.mark.parametrize("others", [1, 4, 30])
def test_lambda_is_the_twins(outliers, others):
    diagonal = np.array([*outliers, *np.linspace(0.5, 2.0, others)])
    assert Ridge.relative(0.25).of_diagonal(diagonal) == pytest.approx(0.25 * by_hand(diagonal), rel=1e-14)
    assert Ridge.absolute(7.0).of_diagonal(diagonal) == 7.0


def test_without_outlying_features_it_is_the_mean_to_the_bit():
    diagonal = np.random.default_rng(0).uniform(0.01, 5.0, 300)
    assert Ridge.relative(1e-3).of_diagonal(diagonal) == 1e-3 * float(np.mean(diagonal))
    assert Ridge.relative(1e-3).of_diagonal(np.zeros(3)) == 0.0


def rows_with(scale, seed, n=600):
    """Rows of a decaying spectrum whose feature 5 has `scale` times the others' scale."""
    rng = np.random.default_rng(seed)
    turned = np.linalg.qr(np.random.default_rng(7).standard_normal((D, D)))[0]
    rows = (rng.standard_normal((n, D)) * 0.9 ** np.arange(D)) @ turned.T * 5
    rows[:, 5] *= scale
    return rows


ROUTES = [("anchored", {}), ("optimal", {}), ("published", {}), ("optimal", {"root": True})]
WEIGHT = np.random.default_rng(3).standard_normal((D, D))


@pytest.mark.filterwarnings("ignore::dalr_stream.errors.OutlierFeaturesWarning")
@pytest.mark.parametrize("variant", ["anchored", "optimal", "published"])
@pytest.mark.parametrize("scale", [1000.0, 3000.0])
def test_the_default_holds_where_one_channel_has_thousands_of_times_the_others_scale(variant, scale):
    moments, unseen = Moments.of(rows_with(scale, 1)), Moments.of(rows_with(scale, 2, 4000))

    def left(ridge):
        return np.sqrt(dalr(WEIGHT, None, moments, ridge=ridge, variant=variant).errors(unseen)[K])

    least = min(left(Ridge.absolute(10.0**power)) for power in range(-4, 8))
    mean = Ridge.absolute(DEFAULT_RIDGE.value * float(np.mean(np.diagonal(moments.scatter))))
    assert left(DEFAULT_RIDGE) <= 1.02 * least
    assert left(mean) >= 1.25 * least


def test_they_are_named_and_noted_and_only_where_a_ridge_is_relative(recwarn):
    moments = Moments.of(rows_with(1000.0, 1))
    with pytest.warns(
        OutlierFeaturesWarning, match=r"^1 of 48 features have more than 1000 times the median.*: 5 \(\d"
    ):
        factors = dalr(WEIGHT, None, moments)
    assert any("feature" in note and "1000 times" in note for note in factors.diagnostics.notes)
    recwarn.clear()
    for ridge in (Ridge.absolute(10.0), 0.0):
        assert not any(
            "features have more" in note for note in dalr(WEIGHT, None, moments, ridge=ridge).diagnostics.notes
        )
    assert not recwarn


def test_no_more_than_three_are_listed():
    rows = rows_with(1.0, 1)
    rows[:, [2, 9, 20, 31]] *= [4000.0, 3000.0, 2000.0, 5000.0]
    moments = Moments.of(rows)
    assert sorted(outlying_features(np.diagonal(moments.scatter))) == [2, 9, 20, 31]
    with pytest.warns(OutlierFeaturesWarning, match=r"^4 of 48 .* and 1 more; in the mean"):
        dalr_sweep(WEIGHT, None, moments, [1e-3, 1e-2])


@pytest.mark.filterwarnings("ignore::dalr_stream.errors.FewSamplesWarning")
@pytest.mark.parametrize(("variant", "options"), ROUTES)
@pytest.mark.parametrize("n", [30, 200])
@pytest.mark.parametrize("affine", [True, False])
def test_rows_give_the_lambda_of_their_moments(variant, options, n, affine):
    rows = rows_with(2000.0, 1, n)
    with pytest.warns(OutlierFeaturesWarning):
        by_rows = dalr_from_rows(WEIGHT, None, [rows[:20], rows[20:]], variant=variant, affine=affine, **options)
    with pytest.warns(OutlierFeaturesWarning):
        by_moments = dalr(WEIGHT, None, Moments.of(rows), variant=variant, affine=affine)
    assert by_rows.diagnostics.ridge == pytest.approx(by_moments.diagnostics.ridge, rel=1e-9)
    assert any("features have more" in note for note in by_rows.diagnostics.notes)
