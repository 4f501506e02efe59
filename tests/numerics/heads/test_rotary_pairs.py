"""Which rotary pairs are kept, against scores written out at every distance and every set of pairs."""

import dataclasses

import numpy as np
import pytest
import rotary_twin as twin
from hypothesis import given, settings
from hypothesis import strategies as st
from test_head_factors import WIDTH, given_by, rows

import dalr_stream as ds
from dalr_stream.errors import InvalidInputError, RankError
from dalr_stream.numerics import HeadLayout, head_factors, head_losses, head_nats
from dalr_stream.numerics.heads.pairs import kept_pairs

SIZE = 8
LAYOUT = HeadLayout("q", "k", "v", "o", heads=4, groups=2, size=SIZE, rotated=SIZE)
PARTLY = dataclasses.replace(LAYOUT, rotated=6)
DISTANCES = np.arange(16)
FREQUENCIES = 2 * np.pi * np.array([1, 2, 5, 7]) / len(DISTANCES)
"""Of different whole numbers of turns, none of which is the negative of another: angles are evenly spread."""
layouts = st.sampled_from([LAYOUT, dataclasses.replace(LAYOUT, interleaved=True)])
seeds, sizes = st.integers(0, 10**6), st.sampled_from([2, 4, 6])


def problem(seed, layout=LAYOUT, x=None, *, gradients=False):
    """Layers of queries, keys and values that read x (n, d), and an output layer."""
    rng = np.random.default_rng(seed)
    whole, shared = layout.heads * layout.size, layout.groups * layout.size
    x = rows(seed, n=30) if x is None else x
    shapes = {"q": (whole, WIDTH), "k": (shared, WIDTH), "v": (shared, WIDTH), "o": (10, whole)}
    layers = {}
    for name, shape in shapes.items():
        read = ds.Moments.of(x if name != "o" else rng.normal(size=(len(x), whole)))
        felt = ds.Moments.of(rng.normal(size=(50, shape[0])) * rng.exponential(size=shape[0])) if gradients else None
        bias = rng.normal(size=shape[0])
        layers[name] = ds.Layer(name, rng.normal(size=shape), bias, inputs=read, gradients=felt)
    return layers, x


def heads_of(layers, x, layout):
    """(q, k) of each head, rows (n, p)."""
    q, k = (given_by(layers[name], x).reshape(len(x), -1, layout.size) for name in "qk")
    return [(q[:, head], k[:, head // layout.shared]) for head in range(layout.heads)]


def test_pairs_are_where_the_two_kinds_have_them():
    assert LAYOUT.pairs.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert dataclasses.replace(PARTLY, interleaved=True).pairs.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert (LAYOUT.step, LAYOUT.sizes.tolist()) == (2, [2, 4, 6, 8])
    plain = dataclasses.replace(LAYOUT, rotated=0)
    assert (plain.step, plain.sizes.tolist(), plain.pairs.shape) == (1, list(range(1, 9)), (0, 2))


@settings(max_examples=15)
@given(seeds, layouts, sizes, st.sampled_from([1, 3, WIDTH]), st.sampled_from([0.0, 1.0, 30.0]))
def test_what_is_lost_is_what_scores_lack_over_all_distances_and_no_other_pairs_lose_less(
    seed, layout, size, rank, mean
):
    layers, x = problem(seed, layout, rows(seed, n=30, rank=rank, mean=mean))
    record = head_factors(layers, layout).at_size(size)
    heads, all_of_them = heads_of(layers, x, layout), range(len(layout.pairs))
    whole, lost = (
        sum(twin.score_error(q, k, FREQUENCIES, layout.pairs, gone, DISTANCES) for q, k in heads)
        for gone in (all_of_them, [pair for pair in all_of_them if pair not in record.pairs])
    )
    assert record.score_loss == pytest.approx(lost / whole, rel=1e-9)
    _, least = twin.best_pairs(heads, FREQUENCIES, layout.pairs, size // 2, DISTANCES)
    assert lost == pytest.approx(least, rel=1e-9)


def test_with_the_frequencies_of_networks_and_a_text_the_chosen_pairs_are_nearly_the_best():
    """Slow pairs are hardly turned in 64 tokens, where the average over all angles is not what is seen."""
    frequencies, distances, ratios = 100.0 ** -(np.arange(4) / 4), np.arange(64), []
    for seed in range(10):
        layers, x = problem(seed)
        record = head_factors(layers, LAYOUT).at_size(4)
        heads, gone = heads_of(layers, x, LAYOUT), [pair for pair in range(4) if pair not in record.pairs]
        lost = sum(twin.score_error(q, k, frequencies, LAYOUT.pairs, gone, distances) for q, k in heads)
        ratios.append(lost / twin.best_pairs(heads, frequencies, LAYOUT.pairs, 2, distances)[1])
    assert np.median(ratios) < 1.05
    assert max(ratios) < 1.5


@settings(max_examples=15)
@given(seeds, layouts, sizes)
def test_turning_and_scaling_pairs_within_themselves_changes_nothing(seed, layout, size):
    layers, _ = problem(seed, layout)
    rng = np.random.default_rng(seed)
    turn, back = (np.zeros((SIZE, SIZE)) for _ in range(2))
    for one, other in layout.pairs:
        here, (a, b) = np.ix_([one, other], [one, other]), rng.normal(size=2)
        turn[here] = np.array([[a, -b], [b, a]])
        back[here] = np.array([[a, -b], [b, a]]) / (a * a + b * b)
    changed = dict(layers)
    for name, by in (("k", turn), ("q", back)):
        known, map_of_all = layers[name], np.kron(np.eye(len(layers[name].weight) // SIZE), by)
        changed[name] = ds.Layer(name, map_of_all @ known.weight, map_of_all @ known.bias, inputs=known.inputs)
    before, after = (head_factors(one, layout).at_size(size) for one in (layers, changed))
    assert before.pairs == after.pairs
    assert before.score_loss == pytest.approx(after.score_loss)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_kept_pairs_are_as_they_were_and_others_are_gone(interleaved, weighted):
    layout = dataclasses.replace(PARTLY, interleaved=interleaved)
    factors = head_factors(problem(3, layout, gradients=True)[0], layout, weighted=weighted)
    for size in layout.sizes:
        record = factors.at_size(int(size))
        projection = np.einsum("grp,grq->gpq", record.queries, record.keys)
        kept = np.isin(np.arange(6), layout.pairs[list(record.pairs)])
        assert np.array_equal(projection[:, :6, :6], np.broadcast_to(np.diag(kept.astype(float)), (2, 6, 6)))
        assert not projection[:, :6, 6:].any()
        assert not projection[:, 6:, :6].any()
        assert record.size == size
        assert list(record.pairs) == sorted(record.pairs)
    assert projection == pytest.approx(np.broadcast_to(np.eye(8), (2, 8, 8)), abs=1e-8)


@settings(max_examples=15)
@given(seeds, sizes)
def test_pairs_and_dimensions_that_are_not_rotated_share_what_is_left_as_loses_least(seed, size):
    layers, x = problem(seed, PARTLY)
    record = head_factors(layers, PARTLY).at_size(size)
    alone = {}
    for pairs in range(max(1, size // 2 - 1), min(3, size // 2) + 1):
        heads, rest = heads_of(layers, x, PARTLY), size - 2 * pairs
        turned = twin.best_pairs(heads, FREQUENCIES[:3], PARTLY.pairs, pairs, DISTANCES)[1]
        alone[pairs] = turned + sum(_plain_loss(heads[first : first + 2], rest) for first in (0, 2))
    assert min(alone, key=alone.get) == len(record.pairs)
    whole = sum(twin.score_error(q, k, FREQUENCIES[:3], PARTLY.pairs, range(3), DISTANCES) for q, k in heads)
    whole += sum(_plain_loss(heads[first : first + 2], 0) for first in (0, 2))
    assert record.score_loss == pytest.approx(alone[len(record.pairs)] / whole, rel=1e-6)


def _plain_loss(heads, rank):
    """What the scores of two heads that share keys lack in the two last dimensions, about the mean over keys."""
    q = np.concatenate([head[0][:, 6:] for head in heads])
    k = heads[0][1][:, 6:] - heads[0][1][:, 6:].mean(axis=0)
    values = np.linalg.svd(q @ k.T, compute_uv=False)
    return float(np.sum(values[rank:2] ** 2)) / len(k) ** 2


@settings(max_examples=15)
@given(seeds, sizes, st.booleans())
def test_what_is_told_is_what_is_measured_on_the_same_rows(seed, size, partly):
    layout = PARTLY if partly else LAYOUT
    layers, _ = problem(seed, layout, gradients=True)
    record = head_factors(layers, layout).at_size(size)
    assert head_losses(record, layers, heldout=False).scores == pytest.approx(record.score_loss, rel=1e-6)
    lost, at_stake = head_nats(head_factors(layers, layout, weighted=True).at_size(size), layers)
    assert 0.0 < lost < at_stake


def test_by_what_the_loss_feels_products_of_pairs_count_and_each_next_one_costs_least():
    layers, _ = problem(5, gradients=True)
    factors = head_factors(layers, LAYOUT, weighted=True, gradient_ridge=0.0)
    left, order = {0, 1, 2, 3}, factors.pairs.order.tolist()
    for pair in order[:0:-1]:
        costs = {one: _felt(layers, left - {one}) for one in left}
        assert pair == min(costs, key=costs.get)
        left -= {pair}
        assert factors.pairs.losses[len(left)] == pytest.approx(costs[pair])


def _felt(layers, kept):
    """tr G R over the dimensions of pairs that go, of the keys about zero."""
    gone = [dimension for pair in range(4) if pair not in kept for dimension in LAYOUT.pairs[pair]]
    k, inputs = layers["k"], layers["k"].inputs
    mean = k.weight @ inputs.mean + k.bias
    keys = k.weight @ inputs.covariance @ k.weight.T + np.outer(mean, mean)
    places = [[group * SIZE + one for one in gone] for group in range(2)]
    felt = k.gradients.second_moment
    return sum(float(np.sum(felt[np.ix_(here, here)] * keys[np.ix_(here, here)])) for here in places)


def test_the_worst_case_at_any_distance_bounds_what_is_lost():
    layers, x = problem(7)
    record = head_factors(layers, LAYOUT).at_size(4)
    gone = [pair for pair in range(4) if pair not in record.pairs]
    for q, k in heads_of(layers, x, LAYOUT):
        norms = [[np.mean(np.sum(rows[:, LAYOUT.pairs[pair]] ** 2, axis=1)) for pair in gone] for rows in (q, k)]
        bound = np.sum(np.sqrt(np.prod(norms, axis=0))) ** 2
        worst = max(twin.score_error(q, k, FREQUENCIES, LAYOUT.pairs, gone, [distance]) for distance in range(64))
        assert worst <= bound


@pytest.mark.parametrize("kind", ["dead", "one row", "huge mean", "all alike"])
def test_awkward_rows(kind):
    x = rows(1, n=1 if kind == "one row" else 20, mean=1e6 if kind == "huge mean" else 1.0)
    layers, _ = problem(1, LAYOUT, 0 * x if kind == "dead" else np.ones_like(x) if kind == "all alike" else x)
    factors = head_factors(layers, LAYOUT)
    assert sorted(factors.pairs.order) == [0, 1, 2, 3]
    assert np.isfinite(factors.score_losses).all()
    assert np.all(np.diff(factors.score_losses) <= 0)
    assert factors.at_size(8).score_loss == 0.0


def test_pairs_that_nobody_reads_go_first_and_cost_nothing():
    layers, _ = problem(2)
    weight, bias = layers["q"].weight.copy(), layers["q"].bias.copy()
    for head in range(4):
        weight[head * SIZE + LAYOUT.pairs[1]], bias[head * SIZE + LAYOUT.pairs[1]] = 0.0, 0.0
    layers["q"] = ds.Layer("q", weight, bias, inputs=layers["q"].inputs)
    record = head_factors(layers, LAYOUT).at_size(6)
    assert (record.pairs, record.score_loss) == ((0, 2, 3), 0.0)


def test_ties_are_broken_the_same_way_each_time():
    moment = np.eye(SIZE)
    assert kept_pairs([(moment, moment)], LAYOUT).order.tolist() == [3, 2, 1, 0]


def test_bad_input():
    factors = head_factors(problem(0)[0], LAYOUT)
    with pytest.raises(RankError, match=r"layer 'o': size of a head must be even, as pairs that positions rotate .* 3"):
        factors.at_size(3)
    assert repr(factors) == "HeadFactors of 'o': 4 heads of 2 to 8"
    for rotated in (3, -2, 10):
        with pytest.raises(InvalidInputError, match="rotated into an even number of a head's 8 dimensions, got"):
            dataclasses.replace(LAYOUT, rotated=rotated)
