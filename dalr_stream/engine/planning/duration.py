"""How long capturing and accumulating will take: timed here on one batch of each domain, or from rates.

Of a batch the second pass counts: the first one proves things and warms up. Folding is timed on one tile of each width,
wide ones on their first columns, since its work is known: d^2 operations a row. A network on the meta device cannot be
timed: its operations are counted. Writing rows to a disk, and reading them again, are not in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from dalr_stream.engine.backend import backend_of, rows_for
from dalr_stream.engine.planning.rates import Rates, products_here
from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.batches import samples_in
from dalr_stream.network.capture.gradient_rule import GradientRule
from dalr_stream.network.capture.loaders import length_of
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.capture.row_rule import RowRule, rule_of
from dalr_stream.network.capture.taking import RowTaker
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.network.measure.flops import forward_flops, is_on_meta
from dalr_stream.network.torch_library import wait_for_devices
from dalr_stream.numerics.rows.streams import Side
from dalr_stream.streaming.folding import CUPY, Folding
from dalr_stream.streaming.layer_lanes import NewLanes
from dalr_stream.streaming.plan import MemoryPlan

_TIMED_FEATURES = 1024
"""Wider layers are timed on so many columns: their products run at least as fast."""


@dataclass(frozen=True, slots=True)
class Duration:
    """What capturing and accumulating take of time in one process, in seconds."""

    passes_seconds: float
    """The network on all batches, as often as the plan goes through it."""
    layers: Mapping[str, float]
    """Rows to moments, by stream."""
    basis: tuple[str, ...] = ()
    """What was measured, what stated and what assumed, in words."""

    @property
    def folding_seconds(self) -> float:
        """Rows to moments, of all layers."""
        return sum(self.layers.values())

    @property
    def seconds(self) -> float:
        """Both together, in one process."""
        return self.passes_seconds + self.folding_seconds


def duration_of(
    model: nn.Module,
    loaders: Mapping[str, Iterable[Any]],
    layers: Sequence[LayerSpec],
    folding: Folding,
    plan: MemoryPlan,
    *,
    rows: RowRule | None = None,
    rates: Rates | None = None,
) -> Duration:
    """Time a batch of each loader and a tile of each width; `plan` is that of `estimate` for the same.

    What `rates` state is not timed. Raises InvalidInputError for a device that is not here, and for CuPy.
    """
    rates, rule = rates or Rates(), rule_of(rows)
    if folding.device == CUPY and rates.sums is None:
        raise InvalidInputError("folding on CuPy is not timed")
    passes = max(1.0, len(plan.groups) / max(plan.blocks, 1)) if plan.direct else 1
    if rates.forward is None and not is_on_meta(model):
        forward = sum(_seconds_a_batch(model, batches, layers, rule, folding) for batches in loaders.values())
        how = "forward passes: a batch of each domain, timed here"
    else:
        rate = rates.forward or products_here()
        flops = (_flops(model, batches, layers, rule, by_blocks=bool(plan.blocks)) for batches in loaders.values())
        forward = sum(flops) / rate
        known = (
            "as stated" if rates.forward else "assumed: that of a product of float32 measured here, which is a bound"
        )
        how = f"forward passes: operations counted, at {rate:.2g} a second ({known})"
    sums, also = _seconds_of_rows(plan, folding, rates)
    return Duration(passes * forward, sums, (how, also))


def _seconds_of_rows(plan: MemoryPlan, folding: Folding, rates: Rates) -> tuple[dict[str, float], str]:
    """Return what folding takes, layer by layer, and how that is known."""
    if rates.sums is not None:
        seconds = {layer.name: 2 * layer.multiply_adds / rates.sums for layer in plan.layers}
        return seconds, f"sums: d^2 operations a row, at {rates.sums:.2g} a second (as stated)"
    each = {width: seconds_a_row(width, folding) for width in {layer.features for layer in plan.layers}}
    seconds = {layer.name: layer.rows * each[layer.features] for layer in plan.layers}
    return seconds, "sums: a tile of each width, timed here"


def _flops(
    model: nn.Module, batches: Iterable[Any], layers: Sequence[LayerSpec], rule: RowRule, *, by_blocks: bool
) -> float:
    """Return the operations of all batches of a loader, were each like the first; back they are twice those there.

    By blocks each of them is run once more on the way back.
    """
    watched = any(layer.side is Side.GRADIENTS for layer in layers)
    draws = (rule.gradients or GradientRule()).draws if watched else 0
    passes = 1 + 2 * draws + (by_blocks and watched)
    return forward_flops(model, next(iter(batches))) * passes * (length_of(batches) or 1)


def _seconds_a_batch(
    model: nn.Module, batches: Iterable[Any], layers: Sequence[LayerSpec], rule: RowRule, folding: Folding
) -> float:
    """Return what all batches of a loader take, were each like the first."""
    batch, taker, to_rows, seconds = next(iter(batches)), RowTaker(model, layers, rule), rows_for(folding), 0.0
    samples = samples_in(batch)
    if not samples:
        return 0.0
    masks = rule.masks_of(batch, samples)
    with without_gradients():
        for _ in range(2):
            begun = time.perf_counter()
            taken = taker.take(batch, samples, 0, masks)
            for one in {id(one): one for one in taken.values()}.values():
                to_rows(one.rows)
            wait_for_devices()
            seconds = time.perf_counter() - begun
    return seconds * (length_of(batches) or 1)


def seconds_a_row(features: int, folding: Folding) -> float:
    """Return what folding a row of this width takes; the second of two tiles counts."""
    width, seconds = min(features, _TIMED_FEATURES), 0.0
    rule, backend = folding.rule(width), backend_of(folding)
    tile = backend.stage(np.random.default_rng(0).standard_normal((rule.tile_rows, width), dtype=np.float32))
    with ThreadPoolExecutor(folding.threads.workers) as executor:
        lanes = NewLanes(backend, executor).of(rule)
        for number in range(2):
            samples = np.arange(number * rule.tile_rows, (number + 1) * rule.tile_rows)
            begun = time.perf_counter()
            lanes.push(tile, samples)
            wait_for_devices()
            seconds = time.perf_counter() - begun
    return seconds / rule.tile_rows * (features / width) ** 2
