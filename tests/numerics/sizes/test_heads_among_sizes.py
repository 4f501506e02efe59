"""An attention among layers whose sizes are chosen: its cost counted in arrays, its curve, and every way to divide."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dalr_stream as ds
from dalr_stream.numerics import HeadLayout, head_factors, head_layer, head_nats
from dalr_stream.numerics.methods import Family
from dalr_stream.numerics.sizes.allocation import by_energy, common_share, within_budget
from dalr_stream.numerics.sizes.families import Forms, in_forms, plan_names, plans
from dalr_stream.numerics.sizes.head_layer import MOST_SIZES
from dalr_stream.numerics.sizes.shape import LayerShape
from dalr_stream.numerics.sizes.sized_layer import SizedLayer, as_they_are, cost
from dalr_stream.numerics.sizes.solved_layers import unchanged_layer

LOW, HEADS = Family.LOW_RANK, Family.HEADS
WIDTH, SIZE, HEAD_COUNT, GROUPS = 10, 6, 4, 2


def attention(scale=1.0, low=1.0, name="o"):
    """Forms of the four layers of an attention; losses of heads fall from `scale`, those of pairs from `low`."""
    shapes = {"q": HEAD_COUNT * SIZE, "k": GROUPS * SIZE, "v": GROUPS * SIZE}
    made = []
    for part, outputs in shapes.items():
        shape = LayerShape(outputs, WIDTH)
        unchanged = unchanged_layer(f"{name}.{part}", shape)
        made.append(Forms(with_attention(unchanged, name), pair(f"{name}.{part}", shape, low)))
    shape = LayerShape(WIDTH, HEAD_COUNT * SIZE, head_size=SIZE)
    sizes = np.arange(1, SIZE + 1)
    narrowed = SizedLayer(name, shape, HEADS, sizes, scale * (1 - sizes / SIZE))
    return [*made, Forms(unchanged_layer(name, shape), pair(name, shape, low), narrowed=narrowed)]


def with_attention(layer, name):
    return SizedLayer(layer.name, layer.shape, layer.family, layer.sizes, layer.losses, attention=name)


def pair(name, shape, scale):
    top = min(shape.break_even_rank, shape.max_rank - 1)
    sizes = np.append(np.arange(1, top + 1), shape.max_rank)
    return SizedLayer(name, shape, LOW, sizes, np.append(scale * (1 - sizes[:-1] / shape.max_rank), 0.0))


def arrays(size):
    """The weights of an attention with heads of a size."""
    shapes = [(HEAD_COUNT * size, WIDTH), (GROUPS * size, WIDTH), (GROUPS * size, WIDTH), (WIDTH, HEAD_COUNT * size)]
    return sum(np.empty(shape).size for shape in shapes)


def test_all_four_layers_are_counted():
    layers = attention()
    narrowed = in_forms(layers, plans(layers, 0.5)["heads"])
    whole = as_they_are(narrowed)
    for size in range(1, SIZE + 1):
        assert float(cost(narrowed, {**whole, "o": size})) == arrays(size)
    assert cost(narrowed, {**whole, "o": np.array([1, 3])}).tolist() == [arrays(1), arrays(3)]


def test_what_belongs_to_narrower_heads_is_not_factored():
    layers = [*attention(), Forms(unchanged_layer("fc", LayerShape(8, 8)), pair("fc", LayerShape(8, 8), 1.0))]
    found = plans(layers, 0.5)
    assert found["factor pairs"] == (LOW,) * 5
    assert found["heads"] == (None, None, None, HEADS, LOW)
    assert set(found) <= set(plan_names(selects=False, narrows=True))


@given(st.tuples(st.floats(0.05, 1.0), st.floats(0.05, 1.0)), st.tuples(st.floats(0.05, 1.0), st.floats(0.05, 1.0)))
def test_the_better_family_is_what_trying_both_finds(one, other):
    layers = [*attention(*one, name="a"), *attention(*other, name="b")]

    def loss(family_of):
        lost = 0.0
        for name, family in family_of.items():
            own = [layer for layer in layers if name in (layer.name, layer.unchanged.attention)]
            forms = [layer.form(HEADS if layer.name == name else None) for layer in own]
            if family is LOW:
                forms = [layer.factored for layer in own]
            sizes = within_budget(forms, 0.5 * float(cost(forms, as_they_are(forms))))
            lost += sum(form.loss(sizes[form.name]) for form in forms)
        return lost

    every = [dict(zip("ab", families, strict=True)) for families in itertools.product((LOW, HEADS), repeat=2)]
    best = min(every, key=loss)
    found = plans(layers, 0.5)
    mixed = found.get("the better family in each place")
    if mixed is not None:
        assert {name: mixed[3 + 4 * number] for number, name in enumerate("ab")} == best or loss(best) == pytest.approx(
            loss({name: mixed[3 + 4 * number] for number, name in enumerate("ab")})
        )


@given(st.floats(0.2, 0.95))
def test_a_budget_is_kept_and_spent_on_heads(share):
    layers = [*attention(1.0, name="a"), *attention(0.1, name="b")]
    forms = in_forms(layers, plans(layers, share)["heads"])
    budget = share * 2 * arrays(SIZE)
    sizes = within_budget(forms, budget)
    assert arrays(sizes["a"]) + arrays(sizes["b"]) <= budget
    assert sizes["a"] >= sizes["b"]
    same = common_share(forms, budget)
    assert same["a"] == same["b"] == int(share * SIZE + 1e-9)


def solved(seed, size=SIZE, *, gradients=True):
    rng = np.random.default_rng(seed)
    layout = HeadLayout(*"qkvo", heads=HEAD_COUNT, groups=GROUPS, size=size)
    whole, shared = HEAD_COUNT * size, GROUPS * size
    layers = {}
    for name, (m, d) in {"q": (whole, WIDTH), "k": (shared, WIDTH), "v": (shared, WIDTH), "o": (WIDTH, whole)}.items():
        felt = ds.Moments.of(rng.normal(size=(50, m))) if gradients else None
        inputs = ds.Moments.of(rng.normal(size=(80, d)) @ rng.normal(size=(d, d)) + 1.0)
        layers[name] = ds.Layer(name, rng.normal(size=(m, d)), rng.normal(size=m), inputs=inputs, gradients=felt)
    return head_factors(layers, layout), layers, LayerShape(WIDTH, whole, head_size=size)


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_the_curve_has_the_losses_and_nats_of_heads_of_each_size(seed):
    factors, layers, shape = solved(seed)
    layer = head_layer("o", factors, layers, shape)
    assert layer.sizes.tolist() == list(range(1, SIZE + 1))
    for size in range(1, SIZE):
        record = factors.at_size(size)
        lost, at_stake = head_nats(record, layers)
        assert layer.loss(size) <= max(record.score_loss, record.output_loss) + 1e-12
        assert layer.nats[size - 1] <= lost * (1 + 1e-12)
        assert layer.at_stake == pytest.approx(at_stake)
    assert layer.losses[-1] == layer.nats[-1] == 0.0
    assert by_energy([layer], 0.7)["o"] == next(s for s in range(1, SIZE + 1) if layer.loss(s) <= 0.3 + 1e-12)


def test_few_sizes_of_wide_heads_are_weighed_and_a_head_of_one_dimension_has_none():
    wide, layers, shape = solved(0, 80, gradients=False)
    layer = head_layer("o", wide, layers, shape)
    assert layer.sizes.size == MOST_SIZES + 1
    assert (layer.sizes[0], layer.sizes[-1], layer.nats) == (1, 80, None)
    narrow, layers, shape = solved(0, 1)
    only = head_layer("o", narrow, layers, shape)
    assert only.sizes.tolist() == [1]
    assert only.losses.tolist() == [0.0]
