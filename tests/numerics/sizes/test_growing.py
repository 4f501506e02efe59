"""Layers grow by the best of all steps each time, as one finds that looks at every size of every layer."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dalr_stream.numerics.methods import Family
from dalr_stream.numerics.sizes.growing import grow
from dalr_stream.numerics.sizes.shape import LayerShape
from dalr_stream.numerics.sizes.sized_layer import RESOLUTION, SizedLayer, cost


def by_every_step(layers, left, enough):
    """The naive twin: of every larger size of every layer, the one that saves most loss for its cost."""
    sizes = {layer.name: int(layer.sizes[0]) for layer in layers}

    def lost():
        return sum(layer.loss(sizes[layer.name]) for layer in layers)

    while lost() > enough + RESOLUTION:
        now, steps = float(cost(layers, sizes)), []
        for layer in layers:
            for size in layer.sizes[layer.sizes > sizes[layer.name]].tolist():
                price = float(cost(layers, {**sizes, layer.name: size})) - now
                gain = layer.loss(sizes[layer.name]) - layer.loss(size)
                if gain > RESOLUTION and price <= left:
                    steps.append((gain / price if price > 0 else np.inf, -size, layer, price))
        if not steps:
            break
        _, size, layer, price = max(steps, key=lambda step: step[:2])
        here = layer.loss(sizes[layer.name])
        need = [k for k in layer.sizes.tolist() if layer.loss(k) <= here - (lost() - enough) + RESOLUTION]
        shorter = min(-size, need[0]) if need else -size
        left -= float(cost(layers, {**sizes, layer.name: shorter})) - now if shorter != -size else price
        sizes[layer.name] = shorter
    return sizes


def a_layer(rng, name, *, convex):
    """Of any family, whose losses fall by random amounts, ever smaller ones where it is convex."""
    m, d = (int(n) for n in rng.integers(2, 12, 2))
    shape, family = LayerShape(m, d), Family(rng.choice([Family.LOW_RANK, Family.SELECTION]))
    whole = shape.max_rank if family is Family.LOW_RANK else m
    most = shape.break_even_rank if family is Family.LOW_RANK else m - 1
    sizes = np.append(np.arange(1, min(most, whole - 1) + 1), whole)
    falls = rng.exponential(size=sizes.size - 1)
    falls = np.sort(falls)[::-1] if convex else falls
    losses = np.append(np.cumsum(falls[::-1])[::-1], 0.0)
    return SizedLayer(name, shape, family, sizes, losses)


@given(st.integers(0, 2**32), st.integers(1, 5), st.booleans(), st.floats(0, 1), st.sampled_from([-np.inf, 0.0, 0.3]))
def test_every_step_is_the_best_of_all(seed, count, convex, share, enough):
    rng = np.random.default_rng(seed)
    layers = [a_layer(rng, f"l{number}", convex=convex) for number in range(count)]
    least = float(cost(layers, {layer.name: int(layer.sizes[0]) for layer in layers}))
    left = share * (float(cost(layers, {layer.name: layer.whole for layer in layers})) - least)
    enough *= sum(float(layer.losses[0]) for layer in layers) + 1.0
    assert grow(layers, left, enough) == by_every_step(layers, left, enough)
