"""What capturing and accumulating ask of a bucket's server, layer by layer, from a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.numerics.statistics.fold_rule import lane_count
from dalr_stream.storage.buckets.requests import (
    BEGUN,
    CLAIMED,
    NONE,
    CapturedRows,
    Requests,
    of_captured,
    of_moments,
    of_read,
    of_strips,
    of_sum,
    of_weights,
)
from dalr_stream.storage.writer import LOST_AT_MOST
from dalr_stream.streaming.cost import LayerCost
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.plan import MemoryPlan

_FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class BucketRequests:
    """What the server of a bucket is asked from a new store to its moments."""

    layers: Mapping[str, Requests]
    """By stream; of layers that read what another reads, their weights alone."""
    beside: Requests
    """Of no layer: manifests, groups and the claim."""

    @property
    def total(self) -> Requests:
        """All together."""
        return sum(self.layers.values(), self.beside)

    def of(self, stream: str) -> Requests:
        """Return those of a layer."""
        return self.layers.get(stream, NONE)


def bucket_requests(plan: MemoryPlan, layers: Sequence[LayerSpec], foldings: Mapping[str, Folding]) -> BucketRequests:
    """Return what a plan's capture and accumulation ask, as they find nothing in the bucket.

    `foldings` says how each domain's rows become moments.
    """
    found: dict[str, Requests] = dict.fromkeys([layer.stream for layer in layers], NONE)
    for layer in {layer.name: layer for layer in reversed(layers)}.values():
        found[layer.stream] += of_weights(layer.outputs, layer.inputs, _FLOAT32)
    beside = BEGUN + Requests(puts=0 if plan.direct else 1)
    for domain, folding in foldings.items():
        rows = {layer.name: _captured(plan, domain, layer) for layer in plan.layers}
        beside += CLAIMED
        if plan.direct:
            beside += Requests(puts=1 + len(plan.groups), small=8 * len(plan.groups))
        else:
            written, manifests = of_captured(rows, plan.batches[domain], LOST_AT_MOST)
            beside += CLAIMED + Requests(puts=1 + manifests)
            for name, requests in written.items():
                found[name] += requests
        for cost in plan.layers:
            found[cost.name] += sum(_moments(cost, rows[cost.name], folding), NONE)
            if not plan.direct:
                found[cost.name] += _folded(cost, rows[cost.name], folding)
    return BucketRequests(found, beside)


def _captured(plan: MemoryPlan, domain: str, layer: LayerCost) -> CapturedRows:
    rows, batches = plan.rows[domain].get(layer.name, 0), plan.batches[domain]
    itemsize = layer.disk_bytes // max(layer.rows * layer.features, 1)
    return CapturedRows(layer.features, rows, rows // max(batches, 1), itemsize, varying=layer.name in plan.varying)


def _folded(layer: LayerCost, rows: CapturedRows, folding: Folding) -> Requests:
    """Return what folding a layer's stored rows reads, and where it is done in strips writes more."""
    parts = 1 if folding.shards > 1 else 1 + bool(folding.holdout.share)
    asked = of_read(rows, layer.passes) + of_sum(layer.features, folding.shards)
    asked += of_strips(layer.features, layer.strips, parts) * layer.partitions
    return asked + Requests(small=2 * layer.passes * lane_count(layer.features))


def _moments(layer: LayerCost, rows: CapturedRows, folding: Folding) -> Iterator[Requests]:
    """Yield what each record of a layer's moments takes, and looking for what an earlier run left."""
    shards = folding.shards if folding.shards > 1 else 0
    yield of_moments(layer.features, empty=not rows.rows) * (1 + shards)
    yield of_moments(layer.features, empty=not rows.rows or not folding.holdout.share)
    yield Requests(small=8)
