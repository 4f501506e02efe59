"""Sizes of many layers under one budget, from curves of losses as factors have them."""

from __future__ import annotations

import time

import numpy as np
from timing import Row, against, race

from dalr_stream.numerics.methods import Family
from dalr_stream.numerics.sizes.allocation import common_energy, common_share, within_budget
from dalr_stream.numerics.sizes.nats import by_nats
from dalr_stream.numerics.sizes.shape import LayerShape
from dalr_stream.numerics.sizes.sized_layer import SizedLayer

HALF = 0.5
BAR_SECONDS = 1.0


def budgets(count: int, width: int, turns: int) -> list[Row]:
    """Each rule on the same layers; bars in CPU seconds."""
    rng = np.random.default_rng(0)
    layers = [_layer(rng, f"layer-{number}", width) for number in range(count)]
    budget = HALF * sum(layer.shape.parameters for layer in layers)
    seconds = race(
        {
            "the sum of losses small, half the weights": lambda: within_budget(layers, budget),
            "nine tenths of the nats": lambda: by_nats(layers, 0.9),
            "the same share of each": lambda: common_share(layers, budget),
            "the same energy of each": lambda: common_energy(layers, budget),
        },
        turns,
        clock=time.process_time,
    )
    return against(next(iter(seconds)), seconds, dict.fromkeys(seconds, BAR_SECONDS))


def _layer(rng: np.random.Generator, name: str, width: int) -> SizedLayer:
    """A square layer of any rank, the energy of its outputs falling fast or slowly."""
    shape = LayerShape(width, width)
    ranks = np.append(np.arange(1, shape.break_even_rank), width)
    energies = np.sort(rng.exponential(size=ranks.size))[::-1] * np.exp(-5 * rng.random() * ranks / width)
    losses = np.append(1.0 - np.cumsum(energies / energies.sum())[:-1], 0.0)
    weight = rng.exponential()
    return SizedLayer(name, shape, Family.LOW_RANK, ranks, losses, nats=weight * losses, at_stake=weight)
