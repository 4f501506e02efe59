"""From the rows themselves: the dual, the square-root route and the outputs' route against the moments'."""

import warnings

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import PLAIN_VARIANTS, layers, make_rows

from dalr_stream.errors import FewSamplesWarning, InvalidInputError
from dalr_stream.numerics.lowrank.from_rows import dalr_from_rows
from dalr_stream.numerics.lowrank.ridge import Ridge
from dalr_stream.numerics.lowrank.solvers import dalr
from dalr_stream.numerics.lowrank.square_root import root_of_rows
from dalr_stream.numerics.methods import Variant
from dalr_stream.numerics.statistics.moments import Moments

pytestmark = pytest.mark.filterwarnings(
    "ignore::dalr_stream.errors.OutlierFeaturesWarning"  # features of many scales are drawn
)

TINY = 1e-300
REGRESSIONS = st.sampled_from([Variant.PUBLISHED, Variant.OPTIMAL])


def quiet(call, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamplesWarning)
        return call(*args, **options)


def cut(rows, height):
    return [rows[start : start + height] for start in range(0, len(rows), height)]


@settings(max_examples=150)
@given(
    layers(), st.sampled_from([0.0, 1e-6, 1e-3, 1.0, 1e9]), st.booleans(), st.sampled_from(PLAIN_VARIANTS), st.data()
)
def test_rows_give_what_their_moments_give(layer, relative, affine, variant, data):
    """However cut, of as many rows as features or fewer, at all ranks or the first: objective, error, offset."""
    rows, weight, bias = layer
    if data.draw(st.booleans()):
        rows = rows[: max(1, rows.shape[1] - 1)]
    most = data.draw(st.sampled_from([None, 1, 3]))
    options = {"ridge": Ridge.relative(relative), "variant": variant, "affine": affine, "max_rank": most}
    ours = quiet(dalr_from_rows, weight, bias, cut(rows, data.draw(st.integers(1, 9))), **options)
    theirs = quiet(dalr, weight, bias, Moments.of(rows), **options)
    scale = max(theirs.objective[0], TINY)
    np.testing.assert_allclose(ours.objective, theirs.objective, atol=1e-8 * scale, rtol=0)
    np.testing.assert_allclose(ours.center, theirs.center, atol=1e-12 * max(np.abs(rows).max(), TINY))
    assert ours.diagnostics.error == pytest.approx(theirs.diagnostics.error, abs=1e-8 * scale)
    assert ours.diagnostics.ridge == pytest.approx(theirs.diagnostics.ridge, rel=1e-10, abs=1e-12 * scale)
    fewer = len(rows) < rows.shape[1]
    if variant is not Variant.ANCHORED:
        assert (ours.diagnostics.route == "dual") is fewer
        assert f"{len(rows)} rows" in ours.diagnostics.reason


@pytest.mark.parametrize("relative", [1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("variant", ["published", "optimal"])
@pytest.mark.parametrize("shape", [(20, 60), (60, 40)])
def test_the_dual_agrees_with_the_primal_in_the_product(relative, variant, shape):
    """DESIGN section 3: to 1e-8 in C at a relative ridge of 1e-6 and more."""
    rng = np.random.default_rng(0)
    rows, weight = rng.normal(size=(35, shape[1])) @ rng.normal(size=(shape[1],) * 2) + 2.0, rng.normal(size=shape)
    options = {"ridge": Ridge.relative(relative), "variant": variant}
    ours = quiet(dalr_from_rows, weight, None, cut(rows.astype(np.float32), 8), **options)
    theirs = quiet(dalr, weight, None, Moments.of(rows.astype(np.float32)), **options)
    assert ours.diagnostics.route == "dual"
    for k in (1, 5, min(shape)):
        one, two = (f.basis[:, :k] @ f.down[:k] for f in (ours, theirs))
        assert np.linalg.norm(one - two) <= 1e-8 * np.linalg.norm(two)


@settings(max_examples=60)
@given(layers(), st.booleans(), st.integers(1, 9))
def test_the_triangle_is_a_root_of_the_scatter(layer, affine, height):
    rows = layer[0]
    root = root_of_rows(cut(rows, height), affine=affine)
    moments = Moments.of(rows)
    s = moments.scatter if affine else moments.gram
    np.testing.assert_allclose(root.triangle.T @ root.triangle, s, atol=1e-12 * max(np.sum(rows**2), TINY))
    np.testing.assert_allclose(root.mean, moments.mean, atol=1e-13 * max(np.abs(rows).max(), TINY) * len(rows))


@settings(max_examples=60)
@given(layers(kinds=("generic", "relu", "few_samples", "rank_deficient", "dead")), REGRESSIONS, st.booleans())
def test_the_square_root_route_agrees_where_moments_are_good(layer, variant, affine):
    rows, weight, bias = layer
    options = {"ridge": Ridge.relative(1e-3), "variant": variant, "affine": affine}
    ours = quiet(dalr_from_rows, weight, bias, cut(rows, 5), root=True, **options)
    theirs = quiet(dalr, weight, bias, Moments.of(rows), **options)
    np.testing.assert_allclose(ours.objective, theirs.objective, atol=1e-9 * max(theirs.objective[0], TINY))
    assert ours.diagnostics.route == "root"


def test_the_square_root_route_keeps_what_moments_lose():
    """Condition 1e10 of the rows, 1e20 of the moments: least squares on the rows is the judge."""
    rng = np.random.default_rng(1)
    left, right = (np.linalg.qr(rng.normal(size=(n, 12)))[0] for n in (80, 12))
    rows = left * 10.0 ** -np.linspace(0, 10, 12) @ right.T
    weight = rng.normal(size=(12, 12))
    options = {"ridge": Ridge.absolute(0.0), "variant": "optimal", "affine": False}
    by_root = dalr_from_rows(weight, None, cut(rows, 16), root=True, **options)
    by_moments = dalr(weight, None, Moments.of(rows), **options)
    assert by_root.diagnostics.numerical_rank == 12
    assert by_moments.diagnostics.numerical_rank < 12
    judge = oracles.reduced_rank_regression(rows.T, weight @ rows.T)[1]
    lost = [np.linalg.norm(f.basis @ f.down - weight) for f in (by_root, by_moments)]
    assert lost[0] <= 1e-4 * np.linalg.norm(weight) < 0.1 * lost[1]
    assert np.linalg.norm(judge - weight) <= 1e-3 * np.linalg.norm(weight)
    np.testing.assert_allclose(by_root.objective, by_moments.objective, atol=1e-12 * by_root.objective[0])


def test_few_rows_are_warned_of_and_anchored_is_not():
    rng = np.random.default_rng(2)
    rows, weight = rng.normal(size=(5, 9)), rng.normal(size=(4, 9))
    with pytest.warns(FewSamplesWarning, match="5 rows for 9 features"):
        f = dalr_from_rows(weight, None, [rows], variant="optimal")
    assert any("exact on the sample" in note for note in f.diagnostics.notes)
    assert dalr_from_rows(weight, None, [rows]).diagnostics.notes == ()


class Changing:
    """Rows that are others the second time."""

    def __init__(self, rows):
        self.rows, self.turn = rows, 0

    def __iter__(self):
        self.turn += 1
        return iter([self.rows] * self.turn)


def test_bad_rows_are_refused_in_words():
    weight, rows = np.eye(3, 8), make_rows("generic", 5, 8, 0)
    broken = rows.copy()
    broken[1, 1] = np.nan
    cases = [
        (iter([rows]), {}, "iterated twice"),
        ([], {}, "at least one is needed"),
        ([], {"variant": "optimal"}, "at least one is needed"),
        ([], {"variant": "optimal", "root": True}, "at least one is needed"),
        ([rows[:, :7]], {"variant": "optimal"}, r"blocks must be of 8 features, got shape \(5, 7\)"),
        ([broken], {"variant": "optimal"}, "rows must be finite, got 1 NaN or Inf"),
        ([broken], {}, "rows must be finite, got 1 NaN or Inf"),
        ([rows], {"ridge": "0.1"}, "must be a number, which is relative, or a Ridge, got '0.1'"),
        ([rows], {"root": True}, "anchored has no inverse"),
        (Changing(rows[:2]), {"variant": "optimal"}, "2 the first time, and not as many the second"),
    ]
    for some, options, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            quiet(dalr_from_rows, weight, None, some, **options)
