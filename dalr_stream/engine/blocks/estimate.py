"""What accumulating block by block will cost, from one batch of each domain and arithmetic."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any

from torch import nn

from dalr_stream.engine.blocks.accumulate import stream_bytes
from dalr_stream.engine.blocks.groups import BlockOrder
from dalr_stream.engine.estimate import BatchMemory, load_of
from dalr_stream.errors import InvalidInputError
from dalr_stream.network.blocks.graph_memory import graph_bytes
from dalr_stream.network.blocks.passes import BlockPasses, Blocks
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.blocks.proof import generations_of
from dalr_stream.network.blocks.readings import shared_readings
from dalr_stream.network.blocks.uncached import uncached
from dalr_stream.network.capture.batches import call, inputs_copied, samples_in
from dalr_stream.network.capture.loaders import length_of
from dalr_stream.network.capture.passes import SameEveryPass
from dalr_stream.network.capture.proofs.observed import observed_pass
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.capture.row_rule import RowRule, rule_of
from dalr_stream.network.layers.elsewhere import weights_elsewhere
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.network.measure.flops import is_on_meta
from dalr_stream.numerics.rows.streams import Side, module_name
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.plan import MemoryPlan, plan


def estimate_blocks(  # noqa: PLR0913  # those of estimate, and how blocks go
    model: nn.Module,
    loaders: Mapping[str, Iterable[Any]],
    layers: Sequence[LayerSpec],
    folding: Folding,
    *,
    blocks: Blocks,
    rows: RowRule | None = None,
    keep_moments: bool = True,
    ranks: int = 1,
) -> MemoryPlan:
    """Return disk, memory and dominant cost of accumulating every domain of `loaders` block by block.

    The plan's groups are the blocks. As `estimate` counts, rows are an upper bound; of convolutions those that the rule
    lets through at most. Memory is what is held beside a block and a batch on its way through it, of several `ranks` by
    each. Cost: four forward passes over the first batch of each domain.
    """
    counts: dict[str, dict[str, int]] = {}
    rule, stream, graph, longest = rule_of(rows).of_layers(layers), 0, 0, 0
    for domain, batches in loaders.items():
        length = length_of(batches)
        if length is None:
            raise InvalidInputError(
                f"domains.{domain}.batches: the loader has no length: give it, or its data set, __len__"
            )
        first, pieces = SameEveryPass(batches, f"domains.{domain}.batches").first(), Pieces.of(model)
        with _without_cache(model):
            passes = BlockPasses.of(model, first, pieces, blocks)
            kept = generations_of(model, first, passes)
            counts[domain] = _rows(model, first, layers, rule, length)
            numbers = {layer.stream: passes.pass_of(module_name(layer.name)) for layer in layers}
            shared = shared_readings(model, first, layers, numbers)
            order = BlockOrder.of(layers, numbers, len(passes), all_back=not keep_moments)
            if rule.gradients is not None:
                graph = max(graph, graph_bytes(model, first, passes, pieces, order.followed, rule.gradients))
        stream = max(stream, stream_bytes(kept, order, rule, batches))
        longest = max(longest, length)
    total = {layer.stream: sum(of.get(layer.stream, 0) for of in counts.values()) for layer in layers}
    own = [layer for layer in layers if layer.stream not in shared]
    limited = folding.memory_limit_bytes is not None  # batches padded to more have more rows: see `most_rows`
    most = {name: None if limited else max(of.get(name, 0) for of in counts.values()) for name in total}
    cost = partial(
        plan,
        threads=folding.threads.workers,
        readers=folding.threads.readers,
        heldout_share=folding.holdout.share,
        shards=folding.shards,
        domains=len(loaders),
        direct=True,
        memory_limit_bytes=folding.memory_limit_bytes,
        forward_bytes=graph,
        segments=folding.segments(longest),
        ranks=ranks,
    )
    loads = [load_of(layer, total[layer.stream], BatchMemory(), most[layer.stream]) for layer in own]
    found = cost(loads)
    by_block = [cost([load for load in loads if numbers[load.name] == number]) for number in range(len(passes))]
    by_name = {layer.name: layer.moments_bytes for layer in found.layers}
    blocks_bytes = [
        sum(by_name[layer.stream] for layer in own if numbers[layer.stream] == number) for number in range(len(passes))
    ]
    at_once = max(map(sum, zip(blocks_bytes, [0, *blocks_bytes], strict=False)))  # the last goes once the next is there
    one = "solve and write one block after the other (accumulate.keep_moments = false)", at_once
    return dataclasses.replace(
        found,
        groups=tuple(group for one in by_block for group in one.groups if group),
        strips=tuple(strip for one in by_block for strip in one.strips),
        rows=counts,
        stream_bytes=stream,
        blocks=1 + order.last,
        disk_alternatives=(*found.disk_alternatives, *([one] if keep_moments else [])),
        moments_at_once_bytes=None if keep_moments else at_once,
    )


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """Turn the cache off, but where nothing has numbers: transformers looks at some where it has no cache."""
    if is_on_meta(model) and weights_elsewhere(model) is None:
        yield
        return
    with uncached(model):
        yield


def _rows(model: nn.Module, batch: Any, layers: Sequence[LayerSpec], rule: RowRule, batches: int) -> dict[str, int]:
    """Return at most how many rows each stream has in so many batches like this one."""
    with without_gradients(), observed_pass(model, layers) as observed:
        call(model, inputs_copied(batch))
    samples, counts = samples_in(batch), {}
    for layer in layers:
        seen = [prod(one.leading) for one in observed.get(layer.stream, ())]
        most = rule.most_per_sample if "Conv" not in layer.kind else rule.most_patches or rule.most_per_sample
        draws = rule.gradients.draws if rule.gradients is not None and layer.side is Side.GRADIENTS else 1
        taken = sum(one if most is None else min(one, samples * most) for one in seen)
        counts[layer.stream] = batches * draws * taken
    return counts
