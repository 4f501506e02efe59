"""What a run will cost, from one batch of each loader and arithmetic."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from dalr_stream.errors import DiskSpaceError, InvalidInputError, StoreNotFoundError
from dalr_stream.network.capture.batches import refusals_explained, samples_in
from dalr_stream.network.capture.gradient_rule import GradientRule
from dalr_stream.network.capture.gradients.taking import there_and_back
from dalr_stream.network.capture.loaders import length_of
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.capture.row_rule import RowRule, rule_of
from dalr_stream.network.capture.taken import Taken
from dalr_stream.network.capture.taking import RowTaker
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.network.measure.memory import forward_memory, memory_of
from dalr_stream.numerics.rows.streams import Side
from dalr_stream.numerics.rows.tiling import same_as_before
from dalr_stream.storage.layout import UNFINISHED as CHECKPOINTS
from dalr_stream.storage.places.path import BucketPath
from dalr_stream.storage.places.place import Place
from dalr_stream.storage.rows import rows_exist, rows_path
from dalr_stream.storage.store import ActivationStore
from dalr_stream.streaming.cost import LayerLoad
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.plan import MemoryPlan, plan


def estimate(
    model: nn.Module,
    loaders: Mapping[str, Iterable[Any]],
    layers: Sequence[LayerSpec],
    folding: Folding,
    *,
    rows: RowRule | None = None,
    direct: bool = False,
    ranks: int = 1,
) -> MemoryPlan:
    """Return disk, memory and dominant cost of capturing and accumulating every domain of `loaders`.

    One batch of each loader goes through the network, to see how many rows a sample gives. The number of samples is
    batches x first batch, so it is an upper bound where the last batch is shorter, and every position that a mask may
    leave out is counted; batches padded to more than the first may have more. Layers that read the same tensor in every
    domain count once, under the name of the first.

    Lanes that those rows do not fill take no memory and are not counted. A memory limit relies on that only for layers
    with a row a sample, whose number is known: within one, the others may need more than they do without.

    Of several `ranks` the memory is that of each.

    Where torch folds (`folding.device`), the figures are of that device: lanes and tiles live there, and the memory
    limit is the share of it that they may take; single precision takes 12 KiB a feature and half a tile beside them.
    This process then holds a tile of a store, and one layer's lanes at a time while they are joined and written.

    Raises InvalidInputError for a loader without a length, or where `rows` does not fit.
    """
    rule = rule_of(rows)
    readers: list[dict[str, str]] = []
    counts: dict[str, dict[str, int]] = {}
    known: list[dict[str, int | None]] = []
    lengths: dict[str, int] = {}
    varying: set[str] = set()
    probe = BatchMemory()
    for domain, batches in loaders.items():
        length = length_of(batches)
        if length is None:
            raise InvalidInputError(
                f"domains.{domain}.batches: the loader has no length: give it, or its data set, __len__"
            )
        first, lengths[domain] = next(iter(batches), None), length
        if first is None:
            raise InvalidInputError(f"domains.{domain}.batches: the loader is empty: check the data set and its split")
        with refusals_explained(first, f"domain '{domain}', batch 0"):
            taken = taken_of(model, first, layers, rule) if samples_in(first) else {}
            probe = probe.larger(BatchMemory.of(model, first, taken, layers, rule))
        readers.append(same_as_before(taken))
        counts[domain] = {name: of_layer.rows.shape[0] * length for name, of_layer in taken.items()}
        known.append({name: most_rows(one, first, batches, folding) for name, one in taken.items()})
        varying |= {name for name, one in taken.items() if one.counts is not None}
    shared = dict(set.intersection(*(set(reader.items()) for reader in readers))) if readers else {}
    total = {layer.stream: sum(of.get(layer.stream, 0) for of in counts.values()) for layer in layers}
    loads = [
        load_of(layer, total[layer.stream], probe, _largest(of.get(layer.stream) for of in known))
        for layer in layers
        if layer.stream not in shared
    ]
    found = plan(
        loads,
        threads=folding.threads.workers,
        readers=folding.threads.readers,
        heldout_share=folding.holdout.share,
        shards=folding.shards,
        domains=len(loaders),
        direct=direct,
        memory_limit_bytes=folding.memory_limit_bytes,
        forward_bytes=probe.forward_bytes,
        segments=folding.segments(max(lengths.values(), default=0)),
        ranks=ranks,
    )
    return replace(found, rows=counts, batches=lengths, varying=frozenset(varying))


@dataclass(frozen=True, slots=True)
class BatchMemory:
    """What a batch takes: the network's passes, and the rows that are taken of it, by stream."""

    forward_bytes: int = 0
    rows: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: nn.Module, batch: Any, taken: Mapping[str, Taken], layers: Sequence[LayerSpec], rule: RowRule
    ) -> BatchMemory:
        """Look at a batch whose rows were taken of `layers`; nothing where it has no samples.

        Where gradients are taken, the network runs forward and back.
        """
        if not taken:
            return cls()
        rows = {name: of_layer.rows.nbytes for name, of_layer in taken.items()}
        followed = [layer for layer in layers if layer.side is Side.GRADIENTS]
        if not followed:
            return cls(forward_memory(model, batch).peak_bytes, rows)
        gradients, samples = rule.gradients or GradientRule(), samples_in(batch)
        held = memory_of(model, batch, lambda: there_and_back(model, followed, gradients, batch, samples))
        return cls(held.peak_bytes, rows)

    def larger(self, other: BatchMemory) -> BatchMemory:
        """Return what holds for both."""
        rows = {name: max(self.rows.get(name, 0), other.rows.get(name, 0)) for name in {**self.rows, **other.rows}}
        return BatchMemory(max(self.forward_bytes, other.forward_bytes), rows)


def load_of(layer: LayerSpec, rows: int, probe: BatchMemory, most: int | None = None) -> LayerLoad:
    """Return what the plan needs to know of a watched layer; `outputs` where these could be watched instead."""
    outputs, taken = layer.outputs if layer.side is Side.INPUTS else None, probe.rows.get(layer.stream, 0)
    return LayerLoad(layer.stream, layer.features, rows, outputs=outputs, batch_bytes=taken, most_rows=most)


def most_rows(taken: Taken, batch: Any, batches: Iterable[Any], folding: Folding) -> int | None:
    """Return the most rows that a layer has of all batches, given those of the first; None where nobody knows.

    Where a sample gives several, those of another batch may give more: a memory limit does not rely on that.
    """
    rows, length = taken.rows.shape[0], length_of(batches)
    if length is None or (folding.memory_limit_bytes is not None and rows > samples_in(batch)):
        return None
    return rows * length


def _largest(rows: Iterable[int | None]) -> int | None:
    known = list(rows)
    return None if None in known else max((one for one in known if one is not None), default=None)


def require_disk(needed: MemoryPlan, folder: Place, held_bytes: int = 0) -> None:
    """Raise DiskSpaceError where the disk that holds `folder` has less free than the plan may still need.

    `held_bytes` of it are there already: of a run that was stopped, see `held_on_disk`. A bucket has no end.
    """
    if isinstance(folder, BucketPath):
        return
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    still = needed.disk_peak_bytes - held_bytes
    if still > free:
        more = f" more (of {_size(needed.disk_peak_bytes)})" if held_bytes else ""
        others = "".join(f"; or {words}: moments of {_size(least)}" for words, least in needed.disk_alternatives)
        raise DiskSpaceError(
            f"'{folder}': the run may need {_size(still)}{more} of disk and {_size(free)} are free: free some, choose "
            f"another run.output{others}"
        )


def held_on_disk(store: Place, domains: Iterable[str], *, replaced: bool = False) -> int:
    """Return how many of the plan's bytes a store holds already, of these domains.

    Rows count in full, as the plan counts them, whatever they take compressed; where all is to be `replaced`, what
    counts is what removing them gives back. Nothing of a bucket lies on a disk.
    """
    if isinstance(store, BucketPath):
        return 0
    try:
        records = ActivationStore(store).manifest.domains
    except StoreNotFoundError:
        return 0
    held = 0
    for domain in domains:
        folders = [store / kind / domain for kind in ("moments", CHECKPOINTS)]
        if replaced:
            folders.append(store / rows_path(domain, ""))
        elif domain in records:
            rows = [record for name, record in records[domain].layers.items() if rows_exist(store, domain, name)]
            held += sum(record.rows * record.features * np.dtype(record.dtype).itemsize for record in rows)
        held += sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    return held


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def taken_of(model: nn.Module, batch: Any, layers: Sequence[LayerSpec], rule: RowRule) -> dict[str, Taken]:
    """Return the rows of each layer in one batch, as if no position were masked; a mask must fit all the same."""
    samples = samples_in(batch)
    masks = rule.masks_of(batch, samples)
    with without_gradients():
        return RowTaker(model, layers, rule).take(batch, samples, 0, None if masks is None else masks.unmasked())
