"""Laws of the selections, against twins that form every pseudo-inverse for every candidate."""

import os

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import make_rows, row_blocks, two_domains
from threadpoolctl import threadpool_limits

from dalr_stream.errors import InvalidInputError, RankError
from dalr_stream.numerics.methods import Form, Method
from dalr_stream.numerics.selection import residual
from dalr_stream.numerics.selection.greedy import momasp, spectral
from dalr_stream.numerics.selection.penalties import LIVE_SHARE
from dalr_stream.numerics.selection.ranking import prune_by_max, prune_by_mean
from dalr_stream.numerics.statistics.moments import Moments

SMALL = {"max_rows": 12, "max_features": 6}
UNSURE = (1e-14, 1e-10)
"""A residual in between is neither surely rounding nor surely news: there the twin has nothing to say."""


def nodes_of(rows, *, affine=False):
    """X of the papers: d x n, about the mean where affine."""
    return oracles.about_mean(rows.T) if affine else rows.T


def candidates_of(x, taken, live):
    """The turn order: live nodes that explain something, then the others that do. None where that is unsure."""
    left = [j for j in range(len(x)) if j not in taken]
    news = {j: oracles.unexplained(x, taken, j) for j in left}
    if any(UNSURE[0] < share < UNSURE[1] for share in news.values()):
        return None
    left = [j for j in left if news[j] > UNSURE[1]]
    return [j for j in left if live[j]] or left


def check_order(selection, x, live, scores):
    """Each node taken has the best score of its turn, as the twin sees it; the rest explain nothing more.

    A gain is known to the rounding of the node's own moment over what is left of it, and every retention is a share
    of the sum of all gains, so their doubts add up.
    """
    taken, retention, doubt = [], [0.0], 1e-13
    for position, node in enumerate(selection.order):
        candidates = candidates_of(x, taken, live)
        if candidates is None:
            return
        if not candidates:
            rest = selection.order[position:].tolist()
            assert rest == sorted(rest, key=lambda j: (not live[j], j))
            break
        assert node in candidates
        values = scores(taken, candidates)
        largest = max(oracles.information_retention(x, [*taken, j]) for j in candidates) - retention[-1]
        assert values[candidates.index(node)] >= values.max() - 1e-6 * largest - 1e-13
        left = oracles.unexplained(x, taken, node)
        taken.append(int(node))
        retention.append(oracles.information_retention(x, taken))
        doubt += 64 * np.finfo(float).eps * (retention[-1] - retention[-2]) / left
    assert np.abs(selection.retention[: len(taken)] - retention[1:]).max(initial=0.0) <= doubt
    assert sorted(selection.order.tolist()) == list(range(len(x)))
    assert len(taken) == selection.factor.shape[1]


@settings(max_examples=200)
@given(row_blocks(**SMALL), st.booleans())
def test_spectral_takes_what_the_twin_takes(rows, affine):
    x = nodes_of(rows, affine=affine)

    def scores(taken, candidates):
        return oracles.momasp_scores(x, taken, candidates, strength=0, regulariser=None)

    check_order(spectral(Moments.of(rows), affine=affine), x, np.ones(len(x), bool), scores)


@pytest.mark.parametrize("seed", range(40))
def test_spectral_order_is_the_twins_order(seed):
    """Where nothing ties: five matrices a seed."""
    rng = np.random.default_rng(seed)
    for _ in range(5):
        d = int(rng.integers(2, 9))
        rows = make_rows(str(rng.choice(["generic", "relu", "scales"])), 3 * d + 5, d, int(rng.integers(2**31)))
        assert spectral(Moments.of(rows)).order.tolist() == oracles.greedy_spectral(
            oracles.second_order(rows.T, centered=False)
        )


@settings(max_examples=200)
@given(
    two_domains(**SMALL),
    st.sampled_from(list(Form)),
    st.sampled_from([0.3, 1.0, 4.0]),
    st.booleans(),
    st.booleans(),
)
def test_momasp_takes_what_the_twin_takes(domains, form, strength, centered, affine):
    x_t, x_s = (rows.T for rows in domains)
    x = nodes_of(domains[0], affine=affine)
    live = oracles.live(oracles.second_order(x_t, centered), LIVE_SHARE)

    def scores(taken, candidates):
        regulariser = (
            oracles.node_regulariser(x_t, x_s, live, centered)
            if form is Form.NODE
            else oracles.subset_regulariser(x_t, x_s, taken, centered)
        )
        weight = strength if live[candidates[0]] else 0.0
        return oracles.momasp_scores(x, taken, candidates, strength=weight, regulariser=regulariser)

    target, source = map(Moments.of, domains)
    s = momasp(target, source, form=form, strength=strength, centered=centered, affine=affine)
    check_order(s, x, live, scores)
    assert s.not_live.tolist() == np.flatnonzero(~live).tolist()


@given(two_domains(), st.sampled_from([form.value for form in Form]), st.booleans())
def test_strength_zero_is_spectral_to_the_bit(domains, form, affine):
    target, source = map(Moments.of, domains)
    a, b = momasp(target, source, form=form, strength=0, affine=affine), spectral(target, affine=affine)
    for name in ("order", "factor", "retention", "center", "not_live"):
        assert np.array_equal(getattr(a, name), getattr(b, name))


@given(row_blocks(), st.booleans())
def test_sizes_nest_and_retention_grows_to_one(rows, affine):
    s = spectral(Moments.of(rows), affine=affine)
    assert (np.diff(s.retention) >= 0).all()
    assert s.retention[-1] == 1.0
    assert (s.retention <= 1.0).all()
    before = set()
    for k in range(1, s.nodes + 1):
        kept = s.at_size(k).kept
        assert (np.diff(kept) > 0).all()
        assert before < set(kept.tolist())
        before = set(kept.tolist())


@settings(max_examples=80)
@given(row_blocks(), st.booleans(), st.integers(0, 2**32 - 1))
def test_restore_minimises_equation_1(rows, affine, seed):
    """Unit rows for kept nodes; error 1 - retention; no rival map does better; exact at full size."""
    s = spectral(Moments.of(rows), affine=affine)
    rng = np.random.default_rng(seed)
    phi = rows - s.center
    total = max(np.sum(phi**2), 1e-300)
    for k in range(1, s.nodes + 1):
        part = s.at_size(k)
        assert part.restore.shape == (s.nodes, part.size)
        assert (part.restore[part.kept] == np.eye(k)).all()
        restored = rows[:, part.kept] @ part.restore.T + part.offset
        error = np.sum((rows - restored) ** 2)
        assert abs(error / total - (1.0 - part.retention)) <= 1e-8
        for step in (1e-5, 1e-2):
            rival = part.restore + step * rng.normal(size=part.restore.shape)
            assert error <= np.sum((phi - phi[:, part.kept] @ rival.T) ** 2) + 1e-8 * total
        best = np.linalg.lstsq(phi[:, part.kept], phi, rcond=None)[0] if k < rows.shape[0] else part.restore.T
        assert error <= np.sum((phi - phi[:, part.kept] @ best) ** 2) + 1e-8 * total
    whole = s.at_size(s.nodes)
    assert (whole.restore == np.eye(s.nodes)).all()
    np.testing.assert_allclose(whole.offset, 0.0, atol=0)


def test_dead_nodes_come_last():
    rows = make_rows("generic", 30, 9, 1)
    rows[:, [0, 4]] = 0.0
    s = spectral(Moments.of(rows))
    assert s.order[-2:].tolist() == [0, 4]
    assert s.not_live.tolist() == [0, 4]
    assert s.diagnostics.numerical_rank == 7
    source = make_rows("generic", 30, 9, 2)  # source-live: every R_j would be infinite
    m = momasp(Moments.of(rows), Moments.of(source))
    assert m.order[-2:].tolist() == [0, 4]
    assert np.isfinite(m.retention).all()


def test_a_constant_node_is_not_live_but_restores():
    """Second turn: after the live nodes, for what it explains."""
    rows = make_rows("generic", 30, 6, 3)
    rows[:, 2] = 5.0
    s = momasp(Moments.of(rows), Moments.of(make_rows("generic", 30, 6, 4)))
    assert (s.not_live.tolist(), s.order[-1]) == ([2], 2)
    assert s.factor.shape[1] == 6


def test_equal_domains_leave_spectral():
    moments = Moments.of(make_rows("relu", 40, 10, 5))
    for form in Form:
        assert (momasp(moments, moments, form=form).order == spectral(moments).order).all()


def test_duplicates_tie_and_the_lowest_wins():
    rows = make_rows("generic", 30, 5, 6)
    rows = rows[:, [0, 1, 2, 0, 1, 2, 3, 4]]
    s = spectral(Moments.of(rows))
    assert set(s.order[:5].tolist()) == {0, 1, 2, 6, 7}
    assert s.order[5:].tolist() == [3, 4, 5]


@pytest.mark.parametrize(("decay", "mean"), [(0.0, 0.0), (0.01, 0.0), (0.1, 0.0), (0.0, 1e4), (0.01, 300.0)])
def test_blocks_do_not_show(monkeypatch, decay, mean):
    """d = 300 over block borders, with the norms recomputed at every step instead: the same order."""
    rng = np.random.default_rng(7)
    d = 300
    rows = (rng.normal(size=(900, d)) * np.exp(-decay * np.arange(d))) @ rng.normal(size=(d, d)) + mean
    moments = Moments.of(rows)
    blocked = spectral(moments)
    monkeypatch.setattr(residual, "BLOCK", 1)
    plain = spectral(moments)
    r = min(blocked.factor.shape[1], plain.factor.shape[1])
    assert abs(blocked.factor.shape[1] - plain.factor.shape[1]) <= 2
    assert (blocked.order[: r - 2] == plain.order[: r - 2]).all()
    np.testing.assert_allclose(blocked.retention, plain.retention, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 40, 130, 257])
def test_rank_deficient_input_is_stable_to_the_last_pick(rank):
    rng = np.random.default_rng(rank)
    rows = rng.normal(size=(rank, 300)) * 10.0 ** rng.uniform(-4, 4, size=300)
    s = spectral(Moments.of(rows))
    assert s.diagnostics.numerical_rank == rank
    assert s.retention[rank - 1] == 1.0
    part = s.at_size(rank)
    assert np.abs(part.restore / np.abs(rows).max(axis=0)[:, None] * np.abs(rows).max(axis=0)[part.kept]).max() < 1e6
    gap = (rows - rows[:, part.kept] @ part.restore.T) / np.abs(rows).max(axis=0)
    assert np.abs(gap).max() < 1e-6


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("rank", [40, 140])
def test_each_pick_of_rank_deficient_input_is_the_best_there_is(rank, affine):
    """Against what the rows have left, at d = 500: to the last pick, where all gains are the same on paper."""
    rng = np.random.default_rng(rank)
    rows = np.maximum(rng.normal(size=(rank, 500)) + rng.normal(size=(rank, 1)), 0.0) * 10.0 ** rng.uniform(-2, 2, 500)
    x, s = nodes_of(rows, affine=affine), spectral(Moments.of(rows), affine=affine)
    assert s.diagnostics.numerical_rank == rank - affine
    for k in (0, 1, 2, rank // 2, rank - 10, rank - 3, rank - 2, rank - 1 - affine):
        gains = oracles.every_gain(x, s.order[:k])
        assert gains[s.order[k]] >= gains.max() * (1.0 - 1e-9)
        before = s.retention[k - 1] if k else 0.0
        assert s.retention[k] - before == pytest.approx(gains[s.order[k]], rel=1e-5)


def test_the_last_pick_of_rank_deficient_input_has_something_left():
    """All gains tie on paper. The largest in floating point was that of a node at 1e-9 of its own moment."""
    for seed in range(5):
        rows = np.random.default_rng(seed).normal(size=(50, 1000))
        s = spectral(Moments.of(rows))
        last = s.order[49]
        assert s.factor[last, 49] ** 2 > 1e-4 * np.mean(rows[:, last] ** 2)


@pytest.mark.parametrize("kind", ["relu", "rank_deficient", "scales"])
def test_foresight_changes_the_time_and_not_the_choice(monkeypatch, kind):
    moments, other = (Moments.of(make_rows(kind, 700, 260, seed)) for seed in (14, 15))
    runs = [lambda: spectral(moments), lambda: momasp(moments, other), lambda: momasp(moments, other, form="subset")]
    foreseen = [run() for run in runs]
    monkeypatch.setattr(residual, "AHEAD", 1)
    for with_it, without in zip(foreseen, [run() for run in runs], strict=True):
        assert (with_it.order == without.order).all()
        np.testing.assert_allclose(with_it.retention, without.retention, atol=1e-12)


@pytest.mark.parametrize("blas_threads", [1, 2])
def test_the_bits_do_not_depend_on_threads(monkeypatch, blas_threads):
    moments = Moments.of(make_rows("relu", 500, 333, 16))
    monkeypatch.setattr(residual, "PART", 64)
    several = spectral(moments)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    with threadpool_limits(limits=blas_threads, user_api="blas"):
        alone = spectral(moments)
    assert (alone.order == several.order).all()
    assert np.array_equal(alone.factor, several.factor)


def test_rounding_spread_by_a_small_pivot_is_not_taken_for_news():
    """Rank 2, two nodes almost parallel: what is left stood at 3e-12 of its Sigma_jj, above a fixed tolerance."""
    s = spectral(Moments.of(make_rows("scales", 3, 4, 3)), affine=True)
    assert s.diagnostics.numerical_rank == 2
    assert s.retention[1] == 1.0


def test_near_duplicates_do_not_pass_for_news():
    """What is left of a near duplicate is tiny, and its gain a quotient of two tiny numbers."""
    rng = np.random.default_rng(8)
    half = rng.normal(size=(400, 60))
    rows = np.hstack([half, half + 1e-5 * rng.normal(size=half.shape)])
    order = spectral(Moments.of(rows)).order
    assert len({int(node) % 60 for node in order[:60]}) == 60


def test_limit_is_the_beginning():
    moments = Moments.of(make_rows("relu", 500, 200, 9))
    full, first = spectral(moments), spectral(moments, limit=150)
    assert (first.order == full.order[:150]).all()
    assert np.array_equal(first.factor, full.factor[:, :150])
    np.testing.assert_allclose(first.retention, full.retention[:150], atol=1e-13)
    np.testing.assert_allclose(first.at_size(100).restore, full.at_size(100).restore, atol=1e-12)
    with pytest.raises(RankError, match=r"layer 'fc6': number of kept nodes must lie in 1\.\.150, got 151"):
        first.at_size(151, layer="fc6")
    with pytest.raises(InvalidInputError, match="raise the limit"):
        first.at_retention(1.0)


def test_at_retention_is_the_smallest_size():
    s = spectral(Moments.of(make_rows("generic", 40, 12, 10)))
    for alpha in (1e-9, 0.5, 0.9, 0.999, 1.0, float(s.retention[3])):
        k = s.at_retention(alpha).size
        assert s.retention[k - 1] >= alpha
        assert k == 1 or s.retention[k - 2] < alpha
    for wrong in (0.0, -1.0, 1.1, np.nan, "95%", None, True):
        with pytest.raises(InvalidInputError, match=r"layer 'fc7': retention must lie in \(0, 1\]"):
            s.at_retention(wrong, layer="fc7")


@pytest.mark.parametrize(("ranking", "statistic"), [(prune_by_mean, np.mean), (prune_by_max, np.max)])
def test_pure_pruning_ranks_single_nodes(ranking, statistic):
    rows = make_rows("generic", 30, 8, 11)
    s = ranking(Moments.of(rows))
    assert s.order.tolist() == np.argsort(-statistic(rows, axis=0)).tolist()
    part = s.at_size(3)
    expected = np.zeros((8, 3))
    expected[part.kept, range(3)] = 1.0
    assert (part.restore == expected).all()
    assert not part.offset.any()
    lost = np.delete(rows, part.kept, axis=1)
    assert part.retention == pytest.approx(1.0 - np.sum(lost**2) / np.sum(rows**2), abs=1e-12)


def test_bad_input_and_other_options_are_refused_in_words():
    a = Moments.of(make_rows("generic", 20, 5, 12))
    b = Moments.of(make_rows("generic", 20, 6, 13))
    assert momasp(a, a, form="subset").method is Method.MOMASP_SUBSET
    assert momasp(a, a).method is Method.MOMASP_NODE
    forgotten = (a + a) - a
    cases = [
        (lambda: prune_by_max(forgotten), "forgets"),
        (lambda: momasp(a, b), "target has 5 features and source 6"),
        (lambda: momasp(a, Moments.empty(5)), "source moments must come from at least one row"),
        (lambda: momasp(a, a, form="edge"), "form must be one of 'node', 'subset', got 'edge'"),
        (lambda: momasp(a, a, strength=-1.0), "strength must be a finite number >= 0"),
        (lambda: momasp(a, a, strength=np.nan), "strength must be a finite number >= 0"),
        (lambda: spectral(Moments.empty(3)), "at least one row"),
        (lambda: prune_by_mean(Moments.empty(3)), "at least one row"),
        (lambda: spectral(a, limit=0), r"limit must lie in 1\.\.5, got 0"),
        (lambda: spectral(a, limit=6), r"limit must lie in 1\.\.5, got 6"),
    ]
    for call, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            call()


def test_a_restore_ridge_minimises_the_ridge_form_of_eq_1_on_the_pruned_nodes():
    rng = np.random.default_rng(5)
    moments = Moments.of(rng.standard_normal((60, 9)) @ rng.standard_normal((9, 9)) + 1.0)
    sigma, selection = moments.second_moment, spectral(moments)
    for k in (1, 4, 8, 9):
        found = selection.at_size(k, ridge=0.05)
        lam = 0.05 * np.trace(sigma) / 9
        expected = sigma[:, found.kept] @ np.linalg.inv(sigma[np.ix_(found.kept, found.kept)] + lam * np.eye(k))
        expected[found.kept] = np.eye(k)
        np.testing.assert_allclose(found.restore, expected, rtol=1e-9, atol=1e-12)


def test_a_vanishing_restore_ridge_gives_the_papers_restore_matrix():
    moments = Moments.of(np.random.default_rng(6).standard_normal((80, 7)))
    selection = spectral(moments)
    exact, nearly = selection.at_size(4), selection.at_size(4, ridge=1e-13)
    np.testing.assert_allclose(nearly.restore, exact.restore, atol=1e-10)


def test_a_restore_ridge_keeps_other_rows_restored_where_as_many_nodes_are_kept_as_there_are_samples():
    rng = np.random.default_rng(7)
    mix = rng.standard_normal((10, 60))
    rows, others = (rng.standard_normal((n, 10)) @ mix + 0.1 * rng.standard_normal((n, 60)) for n in (30, 500))
    selection = spectral(Moments.of(rows))

    def error(ridge):
        nodes = selection.at_size(30, ridge=ridge)
        return np.linalg.norm(others - others[:, nodes.kept] @ nodes.restore.T) / np.linalg.norm(others)

    assert error(1e-3) < 0.1 < error(0.0)


@pytest.mark.parametrize("ridge", [-1.0, np.nan, np.inf])
def test_an_impossible_restore_ridge_is_refused(ridge):
    with pytest.raises(InvalidInputError, match="ridge must be a finite number"):
        spectral(Moments.of(np.eye(3))).at_size(1, ridge=ridge)


@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_nothing_is_restored_from_nodes_that_are_all_dead_and_lapack_complains_of_nothing(capfd, ridge):
    kept = spectral(Moments.of(np.zeros((9, 3)))).at_size(2, ridge=ridge)
    assert kept.restore.tolist() == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    assert capfd.readouterr() == ("", "")
