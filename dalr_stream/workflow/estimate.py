"""What a run will cost, from one batch of each loader and arithmetic."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dalr_stream.errors import DiskSpaceError, InvalidInputError
from dalr_stream.network.capture import call, samples_in, watched
from dalr_stream.network.layers import LayerSpec
from dalr_stream.streaming.accumulate import Folding
from dalr_stream.streaming.plan import LayerLoad, MemoryPlan, plan


def estimate(
    model: nn.Module,
    loaders: Mapping[str, Iterable[Any]],
    layers: Sequence[LayerSpec],
    folding: Folding,
    *,
    direct: bool = False,
) -> MemoryPlan:
    """Return disk, memory and dominant cost of capturing and accumulating every domain of `loaders`.

    One batch of each loader goes through the network, to see how many rows a sample gives. The number of samples is
    batches x first batch, so it is an upper bound where the last batch is shorter.

    Where torch folds (`folding.device`), the figures are of that device: lanes and tiles live there, and the memory
    limit is the share of it that they may take; single precision takes 12 KiB a feature and half a tile beside them.
    This process then holds a tile of a store, and one layer's lanes at a time while they are joined and written.

    Raises InvalidInputError for a loader without a length.
    """
    rows = dict.fromkeys((layer.name for layer in layers), 0)
    for domain, batches in loaders.items():
        if not isinstance(batches, Sized):
            raise InvalidInputError(f"estimate: the loader of '{domain}' has no length: give it __len__")
        first = next(iter(batches), None)
        if first is None:
            raise InvalidInputError(f"estimate: the loader of '{domain}' is empty")
        for name, count in _rows_of(model, first, layers).items():
            rows[name] += count * len(batches)
    loads = [LayerLoad(layer.name, layer.inputs, rows[layer.name], outputs=layer.outputs) for layer in layers]
    return plan(
        loads,
        threads=folding.threads.workers,
        heldout_share=folding.holdout.share,
        domains=len(loaders),
        direct=direct,
        memory_limit_bytes=folding.memory_limit_bytes,
    )


def require_disk(needed: MemoryPlan, folder: Path) -> None:
    """Raise DiskSpaceError where the disk that holds `folder` has less free than the plan may need."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed.disk_bytes > free:
        need, have = needed.disk_bytes / 2**30, free / 2**30
        raise DiskSpaceError(
            f"'{folder}': the run may need {need:,.1f} GiB of disk and {have:,.1f} GiB are free: free some, choose "
            "another run.output, or set capture.direct = true to keep no activations"
        )


def _rows_of(model: nn.Module, batch: Any, layers: Sequence[LayerSpec]) -> dict[str, int]:
    if samples_in(batch) == 0:
        return {}
    with torch.inference_mode(), watched(model, layers) as rows:
        call(model, batch)
    return {name: block.shape[0] for name, block in rows.items()}
