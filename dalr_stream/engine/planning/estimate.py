"""What capturing and accumulating take of time, of the links between ranks and of a bucket, layer by layer.

From shapes alone where that is all there is: a network on the meta device has no weights, and a batch of it no numbers.
What is measured, what was stated and what is assumed is said with the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from torch import nn

from dalr_stream.engine.estimate import estimate as plan_of
from dalr_stream.engine.planning.duration import Duration, duration_of
from dalr_stream.engine.planning.rates import Rates
from dalr_stream.engine.planning.records import Estimate, LayerEstimate
from dalr_stream.engine.planning.requests import BucketRequests, bucket_requests
from dalr_stream.errors import DalrStreamError, InvalidInputError
from dalr_stream.network.capture.batches import samples_in
from dalr_stream.network.capture.row_rule import RowRule, rule_of
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.network.measure.flops import is_on_meta
from dalr_stream.storage.buckets.requests import NONE
from dalr_stream.storage.places.path import BucketPath
from dalr_stream.storage.places.place import Place, place_of
from dalr_stream.streaming.cost import LayerCost
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.plan import MemoryPlan

_BYTES_OF_A_PAIR = 4
"""Of a symmetric matrix half is sent, in float64."""


@dataclass(frozen=True, slots=True)
class StatedBatches:
    """So many samples in batches like an example: what stands for a loader where there are no data yet."""

    example: Any
    samples: int

    def __len__(self) -> int:
        return ceil(self.samples / samples_in(self.example))

    def __iter__(self) -> Iterator[Any]:
        yield self.example


def estimate(  # noqa: PLR0913  # those of accumulate, and what stands for data, ranks and machine
    model: nn.Module,
    example: Any,
    layers: Sequence[LayerSpec],
    *,
    samples: int,
    rows: RowRule | None = None,
    folding: Folding | None = None,
    store: str | Place | None = None,
    keep_rows: bool = False,
    ranks: int = 1,
    rates: Rates | None = None,
) -> Estimate:
    """Return what `accumulate` will take of one domain: time, memory, links and requests, layer by layer.

    Shapes are enough: built on the meta device, a network takes no memory and needs no weights, and an example there
    has no numbers. Selections of nodes are not in it, as only numbers show which layers read whose nodes.

    Parameters
    ----------
    model
        The network in eval mode, on the meta device or not.
    example
        A batch, on the same device; the others are taken to be like it.
    layers
        What will be recorded, from `watch`.
    samples
        How many samples there will be.
    rows
        Which rows of each layer; all by default, of convolutions a few patches a sample. No mask is looked at.
    folding
        How they become moments.
    store
        Where the store will be; its requests are counted where it is a bucket, which is not asked.
    keep_rows
        Whether rows are captured to the store first, or folded as they come.
    ranks
        How many processes share the work.
    rates
        How fast the machine, its links and the bucket are; what is left out is measured here, or assumed.

    Returns
    -------
    Estimate
        With `seconds`, `layers`, `requests`, `plan`, and `lines` that say what they rest on.

    Raises
    ------
    InvalidInputError
        Where a forward pass needs numbers that the meta device does not have.

    See Also
    --------
    accumulate : what is estimated.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> with torch.device("meta"):
    ...     model = torch.nn.Sequential(torch.nn.Linear(4096, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 10)).eval()
    ...     example = torch.empty(64, 4096)
    >>> found = ds.estimate(
    ...     model, example, ds.watch(model, ["*"]), samples=10**6, ranks=8, store="s3://bucket/birds.zarr",
    ...     rates=ds.Rates(forward=1e14, sums=1e13),
    ... )
    >>> [layer.name for layer in found.layers], found.requests.puts, round(found.sums_seconds, 1)
    (['0', '2'], 76, 3.4)
    """
    if ranks < 1:
        raise InvalidInputError(f"ranks must be at least 1, got {ranks}")
    folding, rule = folding or Folding(), replace(rule_of(rows), mask=None, prove=not is_on_meta(model))
    loaders = {"target": StatedBatches(example, samples)}
    with shapes_explained(model):
        plan = plan_of(model, loaders, layers, folding, rows=rule, direct=not keep_rows, ranks=ranks)
        took = duration_of(model, loaders, layers, folding, plan, rows=rule, rates=rates)
    if rows is not None and rows.mask is not None:
        plan = replace(plan, varying=frozenset(layer.stream for layer in layers))
    place = None if store is None else place_of(store)
    return estimate_of(plan, layers, {"target": folding}, took, store=place, ranks=ranks, rates=rates)


def estimate_of(
    plan: MemoryPlan,
    layers: Sequence[LayerSpec],
    foldings: Mapping[str, Folding],
    took: Duration,
    *,
    store: Place | None,
    ranks: int = 1,
    rates: Rates | None = None,
) -> Estimate:
    """Return the estimate of a plan; `foldings` are those of its domains, `took` is what one process takes."""
    rates, asked = rates or Rates(), BucketRequests({}, NONE)
    if isinstance(store, BucketPath):
        asked = bucket_requests(plan, layers, foldings)
    sent = {layer.name: _sent(layer, foldings, ranks, plan) for layer in plan.layers}
    found = tuple(
        LayerEstimate(
            layer.stream, took.layers.get(layer.stream, 0.0), sent.get(layer.stream, 0), asked.of(layer.stream)
        )
        for layer in layers
    )
    basis = took.basis
    if ranks > 1:
        what = " and ".join(
            (["one join"] if plan.direct and len(plan.strips) < len(plan.groups) else [])
            + (["all rows"] if plan.strips or not plan.direct else [])
        )
        basis += (f"links: {what}, at {rates.of('link'):.2g} bytes a second ({rates.source('link')})",)
    if isinstance(store, BucketPath):
        speed, wait = (f"{rates.of(one):.2g} {{}} ({rates.source(one)})" for one in ("bucket", "request"))
        basis += (f"bucket: {speed.format('bytes a second')}, {wait.format('s a request')}, one after the other",)
    return Estimate(plan, found, took.passes_seconds, ranks, asked.beside, rates, basis)


def _sent(layer: LayerCost, foldings: Mapping[str, Folding], ranks: int, plan: MemoryPlan) -> int:
    """Return what ranks send of a layer: all but the first their sums, once, or their share of the rows.

    Where they share the sums, every row goes to all ranks.
    """
    if not plan.direct:
        return layer.disk_bytes * (ranks - 1) // ranks
    if plan.in_strips(layer.name) is not None:
        return layer.disk_bytes * (ranks - 1)
    records = sum(folding.shards + (folding.holdout.share > 0) for folding in foldings.values())
    return (ranks - 1) * records * _BYTES_OF_A_PAIR * layer.features * (layer.features + 1)


@contextmanager
def shapes_explained(model: nn.Module) -> Iterator[None]:
    """Turn what a network on the meta device raises, where it asks for numbers, into an InvalidInputError."""
    try:
        yield
    except Exception as error:  # whatever a network's own code raises
        cause = error.__cause__ or error
        if isinstance(cause, DalrStreamError) or not is_on_meta(model):
            raise
        reason = str(cause).partition("\n")[0]
        raise InvalidInputError(
            f"network: a forward pass without numbers fails ({type(cause).__name__}: {reason}): check the shape of the "
            "batch; where the network looks at numbers on its way, as a router does, estimate with its data"
        ) from cause
