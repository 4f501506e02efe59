"""Sizes of several layers against every combination of them, tried one by one."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import layers as drawn_layers

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.lowrank.solvers import dalr
from dalr_stream.numerics.methods import Family
from dalr_stream.numerics.selection.greedy import spectral
from dalr_stream.numerics.sizes.allocation import by_energy, common_energy, common_share, uniform, within_budget
from dalr_stream.numerics.sizes.losses import lost_energy
from dalr_stream.numerics.sizes.shape import LayerShape
from dalr_stream.numerics.sizes.sized_layer import SizedLayer, Source, as_they_are, cost
from dalr_stream.numerics.sizes.solved_layers import factor_layer, selection_layer, unchanged_layer
from dalr_stream.numerics.statistics.moments import Moments

ALONE = [Family.LOW_RANK, Family.SELECTION]
"""Families of one layer; heads are four."""


@st.composite
def sized(draw, name, family=None, most=9):
    """A layer with any falling curve, convex or not, with flat parts."""
    m, d = draw(st.integers(1, most)), draw(st.integers(1, most))
    shape, family = LayerShape(m, d), family or draw(st.sampled_from(ALONE))
    top = shape.break_even_rank if family is Family.LOW_RANK else m - 1
    whole = shape.max_rank if family is Family.LOW_RANK else m
    falls = draw(st.lists(st.integers(0, 20), min_size=top + 1, max_size=top + 1))
    losses = np.cumsum(falls[::-1])[::-1] / 20.0 / (top + 1) if top else np.zeros(0)
    sizes = np.append(np.arange(1, top + 1), whole)
    positions = draw(st.sampled_from([1.0, 4.0, 2.5]))
    return SizedLayer(name, shape, family, sizes, np.append(losses[:top], 0.0), (), positions)


@st.composite
def reading(draw, name, first):
    """A layer all of whose inputs are nodes of another, or blocks of them, and which may have any size."""
    per_node, m = draw(st.sampled_from([1, 4, 9])), draw(st.integers(1, 9))
    shape, family = LayerShape(m, per_node * first.shape.outputs), draw(st.sampled_from(ALONE))
    whole = shape.max_rank if family is Family.LOW_RANK else m
    source = Source(first.name, per_node)
    return SizedLayer(name, shape, family, np.arange(1, whole + 1), np.linspace(1, 0, whole), (source,), 2.5)


def all_combinations(layers):
    names = [layer.name for layer in layers]
    for sizes in itertools.product(*(layer.sizes.tolist() for layer in layers)):
        yield dict(zip(names, sizes, strict=True))


def naive_cost(layers, sizes):
    """Weights counted as arrays, one layer after another."""
    total = 0.0
    for layer in layers:
        m, d, k = layer.shape.outputs, layer.shape.inputs, sizes[layer.name]
        selected = {other.name: sizes[other.name] for other in layers if other.family is Family.SELECTION}
        first = 0
        for source in layer.reads:  # one after the other, as after a concatenation
            nodes = next(other for other in layers if other.name == source.layer).shape.outputs
            span = range(first, first + nodes * source.inputs)
            first = span.stop
            kept = selected.get(source.layer, nodes)
            d -= len([i for i in span if (i - span.start) // source.inputs >= kept])
        if layer.follows in selected:
            m = len([i for i in range(m) if i < selected[layer.follows]])
        if k == layer.whole:
            arrays = [np.empty((m, d))]
        elif layer.family is Family.LOW_RANK:
            arrays = [np.empty((k, d)), np.empty((m, k))]
        else:
            arrays = [np.empty((k, d))]
        total += layer.positions * sum(array.size for array in arrays)
    return total


def total_loss(layers, sizes):
    return sum(layer.loss(sizes[layer.name]) for layer in layers)


def hull_drops(layer):
    """Losses saved by the steps along the lower convex hull, found with every pair of points."""
    points = [(naive_cost([layer], {layer.name: k}), layer.loss(k)) for k in layer.sizes.tolist()]
    drops, here = [], points[0]
    while ahead := [point for point in points if point[1] < here[1]]:
        after = min(ahead, key=lambda p: ((p[1] - here[1]) / max(p[0] - here[0], 1e-9), p[0]))
        drops.append(here[1] - after[1])
        here = after
    return drops


@given(st.lists(st.integers(0, 2), min_size=1, max_size=3), st.floats(0.05, 1.0), st.data())
def test_a_budget_is_kept_and_within_one_step_of_every_combination(count, share, data):
    layers = [data.draw(sized(f"fc{number}")) for number in range(len(count))]
    budget = share * naive_cost(layers, as_they_are(layers))
    affordable = [sizes for sizes in all_combinations(layers) if naive_cost(layers, sizes) <= budget]
    if not affordable:
        with pytest.raises(InvalidInputError, match="smallest sizes"):
            within_budget(layers, budget)
        return
    found = within_budget(layers, budget)
    assert naive_cost(layers, found) <= budget
    best = min(total_loss(layers, sizes) for sizes in affordable)
    one_step = max(itertools.chain([0.0], *(hull_drops(layer) for layer in layers)))
    assert best - 1e-9 <= total_loss(layers, found) <= best + one_step + 1e-9
    for layer in layers:  # nothing that could still be afforded is left
        for size in layer.sizes[layer.sizes > found[layer.name]].tolist():
            better = {**found, layer.name: size}
            assert naive_cost(layers, better) > budget or layer.loss(size) >= layer.loss(found[layer.name]) - 1e-9


@given(st.lists(st.integers(1, 40), min_size=3, max_size=9), st.integers(3, 200))
def test_equal_layers_with_convex_curves_are_solved_exactly(drops, budget):
    """Costs of one step are equal everywhere, so the best sum is that of the largest steps."""
    falls = np.sort(np.array(drops, float))[::-1]
    losses = (falls.sum() - np.cumsum(falls)) / falls.sum()
    top = losses.size
    shape = LayerShape(top + 1, 7)
    layer = SizedLayer("a", shape, Family.SELECTION, np.arange(1, top + 2), np.append(losses, 0.0))
    other = SizedLayer("b", shape, Family.SELECTION, np.arange(1, top + 2), np.append(losses**2, 0.0))
    affordable = [s for s in all_combinations([layer, other]) if naive_cost([layer, other], s) <= budget]
    if affordable:
        best = min(total_loss([layer, other], sizes) for sizes in affordable)
        convex = np.all(np.diff(np.append(losses**2, 0.0), 2) >= -1e-12)
        if convex and np.all(np.diff(np.append(losses, 0.0), 2) >= -1e-12):
            assert total_loss([layer, other], within_budget([layer, other], budget)) == pytest.approx(best, abs=1e-9)


@given(st.data())
def test_costs_are_those_of_the_arrays_also_where_layers_read_each_other(data):
    first = data.draw(sized("fc1"))
    layers = [first, *(data.draw(reading(f"fc{number}", first)) for number in (2, 3))]
    sizes = {layer.name: data.draw(st.sampled_from(layer.sizes.tolist())) for layer in layers}
    assert float(cost(layers, sizes)) == naive_cost(layers, sizes)
    many = cost(layers, {**sizes, "fc1": first.sizes})
    assert many.tolist() == [naive_cost(layers, {**sizes, "fc1": size}) for size in first.sizes.tolist()]


@st.composite
def gated(draw):
    """Two layers whose nodes are multiplied, one that follows the other, and one that reads the products and more."""
    d, nodes, other, per_node = (draw(st.integers(1, 6)) for _ in range(4))
    kept = np.arange(1, nodes + 1)
    gate = SizedLayer("gate", LayerShape(nodes, d), Family.SELECTION, kept, 1 - kept / nodes)
    side = draw(sized("side", most=6))
    inputs = nodes * per_node + side.shape.outputs * other
    down = draw(sized("down", family=Family.LOW_RANK, most=6))
    reads = (Source("gate", per_node), Source("side", other))
    down = unchanged_layer("down", LayerShape(down.shape.outputs, inputs), reads=reads, positions=2.5)
    return [gate, unchanged_layer("up", LayerShape(nodes, d), follows="gate"), side, down]


@given(gated(), st.data())
def test_a_layer_that_follows_another_is_counted_as_narrow_as_that_one(layers, data):
    sizes = {layer.name: data.draw(st.sampled_from(layer.sizes.tolist())) for layer in layers}
    assert float(cost(layers, sizes)) == naive_cost(layers, sizes)


@given(gated(), st.floats(0.05, 1.0))
def test_what_is_left_of_a_budget_buys_no_node_of_a_gated_pair(layers, share):
    budget = share * naive_cost(layers, as_they_are(layers))
    try:
        found = within_budget(layers, budget)
    except InvalidInputError:
        assert all(naive_cost(layers, sizes) > budget for sizes in all_combinations(layers))
        return
    assert naive_cost(layers, found) <= budget
    for layer in layers:
        for size in layer.sizes[layer.sizes > found[layer.name]].tolist():
            dearer = naive_cost(layers, {**found, layer.name: size}) > budget
            assert dearer or layer.loss(size) >= layer.loss(found[layer.name]) - 1e-9


@given(st.data(), st.floats(0.05, 1.0))
def test_a_common_share_is_the_largest_that_a_scan_finds(data, share):
    layers = [data.draw(sized(name)) for name in ("fc1", "fc2")]
    budget = share * naive_cost(layers, as_they_are(layers))
    weights = {layer.name: [naive_cost([layer], {layer.name: k}) for k in layer.sizes.tolist()] for layer in layers}

    def at_share(part):
        affordable = {
            name: [c for c in costs if c <= part * costs[-1] * (1 + 1e-12)] for name, costs in weights.items()
        }
        return {layer.name: int(layer.sizes[max(len(affordable[layer.name]) - 1, 0)]) for layer in layers}

    for found, shares in (
        (common_share, [(c / costs[-1], at_share) for costs in weights.values() for c in costs]),
        (common_energy, [(1 - loss, lambda part: by_energy(layers, part)) for fc in layers for loss in fc.losses]),
    ):
        tried = [rule(part) for part, rule in shares if part > 0] + [{fc.name: int(fc.sizes[0]) for fc in layers}]
        allowed = [naive_cost(layers, sizes) for sizes in tried if naive_cost(layers, sizes) <= budget]
        if not allowed:
            with pytest.raises(InvalidInputError, match="smallest sizes"):
                found(layers, budget)
        else:
            assert naive_cost(layers, found(layers, budget)) == pytest.approx(max(allowed))


@given(sized("fc"), st.floats(0.0, 9.0))
def test_losses_in_other_units_choose_the_same_sizes(layer, scale):
    assert layer.in_units(scale).losses.tolist() == (scale * layer.losses).tolist()
    with pytest.raises(InvalidInputError, match="layer 'fc': a scale of losses must be 0 or more, got -1"):
        layer.in_units(-1)


@given(st.integers(2, 12), st.integers(2, 12), st.integers(2, 12), st.floats(0.2, 1.0))
def test_a_chain_of_selections_is_counted_as_narrow_as_it_gets(d, a, b, share):
    """Whatever is left of the budget does not buy another node."""
    layers = [
        SizedLayer("fc1", LayerShape(a, d), Family.SELECTION, np.arange(1, a + 1), 1 - np.arange(1, a + 1) / a),
        SizedLayer(
            "fc2",
            LayerShape(b, a),
            Family.SELECTION,
            np.arange(1, b + 1),
            1 - np.arange(1, b + 1) / b,
            (Source("fc1"),),
        ),
    ]
    budget = share * (a * d + a * b)
    if d + 1 > budget:
        return
    found = within_budget(layers, budget)
    k, l = found["fc1"], found["fc2"]  # noqa: E741
    assert k * d + k * l <= budget
    assert (k + 1) * d + (k + 1) * l > budget or k == a
    assert k * d + k * (l + 1) > budget or l == b


@given(st.lists(st.sampled_from([4, 8, 16]), min_size=1, max_size=1), st.data(), st.floats(0.05, 1.0))
def test_rounded_sizes_are_multiples_or_the_layer_as_it_is(step, data, share):
    layers = [data.draw(sized(name, most=40)).multiples_of(step[0]) for name in "ab"]
    whole = as_they_are(layers)
    for rule in (uniform, by_energy):
        for name, size in rule(layers, share).items():
            assert size == whole[name] or (size > 0 and size % step[0] == 0)
    budget = share * naive_cost(layers, whole)
    try:
        found = within_budget(layers, budget)
    except InvalidInputError:
        assert not [s for s in all_combinations(layers) if naive_cost(layers, s) <= budget]
        return
    assert naive_cost(layers, found) <= budget
    assert all(size == whole[name] or size % step[0] == 0 for name, size in found.items())


@given(sized("fc"), st.floats(0.01, 1.0))
def test_energy_and_ratio_are_what_a_scan_finds(layer, share):
    enough = [k for k in layer.sizes.tolist() if layer.loss(k) <= 1.0 - share + 1e-12]
    assert by_energy([layer], share) == {"fc": enough[0]}
    allowed = [k for k in layer.sizes.tolist() if k <= share * layer.whole + 1e-12]
    expected = allowed[-1] if allowed else int(layer.sizes[0])
    if layer.family is Family.LOW_RANK and int(share * layer.whole + 1e-12) > layer.shape.break_even_rank:
        expected = layer.whole
    assert uniform([layer], share) == {"fc": expected}


@given(drawn_layers(max_rows=30, max_features=10))
def test_losses_of_factors_are_measured_on_the_rows(drawn):
    rows, weight, bias = drawn
    moments = Moments.of(rows)
    factors = dalr(weight, bias, moments)
    outputs = rows @ weight.T
    energy = float((outputs**2).sum())
    lost = lost_energy(factors, moments)
    layer = factor_layer("fc", factors, moments)
    for k in range(1, factors.max_rank + 1):
        down, up = factors.down[:k], factors.basis[:, :k]
        shifted = (rows - factors.center) @ down.T @ up.T + weight @ factors.center
        naive = float(((outputs - shifted) ** 2).sum()) / energy if energy else 0.0
        assert lost[k] == pytest.approx(naive, abs=1e-9)
    assert layer.sizes.tolist() == [*range(1, min(factors.break_even_rank, factors.max_rank - 1) + 1), layer.whole]
    assert (np.diff(layer.losses) <= 0).all()
    assert layer.losses[-1] == 0


def test_losses_of_a_selection_are_what_it_does_not_retain():
    nodes = Moments.of(np.random.default_rng(0).normal(size=(40, 6)) @ np.diag([5, 4, 3, 2, 1, 0.5]))
    selection = spectral(nodes, limit=4)
    layer = selection_layer("fc", selection, LayerShape(6, 11))
    assert layer.sizes.tolist() == [1, 2, 3, 4, 6]
    assert layer.losses.tolist() == pytest.approx([*(1 - selection.retention), 0.0])
    assert by_energy([layer], float(selection.retention[2])) == {"fc": 3}
    assert by_energy([layer], 1.0) == {"fc": 6}


@pytest.mark.parametrize("rule", [uniform, by_energy])
@pytest.mark.parametrize("share", [0.0, 1.5, -1.0, float("nan"), "50%", None, True])
def test_shares_outside_their_range_are_refused(rule, share):
    with pytest.raises(InvalidInputError, match=r"must lie in \(0, 1\]"):
        rule([], share)


@pytest.mark.parametrize("rule", [within_budget, common_share, common_energy])
@pytest.mark.parametrize("budget", [float("nan"), "50%", None])
def test_a_budget_that_is_no_number_is_refused(rule, budget):
    layer = unchanged_layer("fc", LayerShape(6, 11))
    with pytest.raises(InvalidInputError, match=r"budget: must be a number of weights, .* got (nan|'50%'|None)"):
        rule([layer], budget)


def test_sizes_that_do_not_end_in_the_layer_as_it_is_are_refused():
    with pytest.raises(InvalidInputError, match=r"layer 'fc': sizes must ascend from at least 1 to 4"):
        SizedLayer("fc", LayerShape(4, 4), Family.LOW_RANK, np.array([1, 2]), np.array([0.1, 0.0]))
