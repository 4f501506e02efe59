"""Ranks that share the sums of a wide layer, each as a process of its own: what they take, hold and receive."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from timing import _mib
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.estimate import estimate
from dalr_stream.streaming.folding import Folding, Threads


@dataclass(frozen=True)
class Shared:
    """What a pass took."""

    ranks: int
    cpu: float
    """Seconds of the busiest rank."""
    peak: float
    """MiB beyond what was held before, of the rank that held most."""
    planned: float
    received: float
    """MiB, by rank 0."""


@dataclass(frozen=True)
class Drawn:
    """Batches made when they are asked for, any of them alone."""

    width: int
    batches: int
    samples: int

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Any:
        return iter(self.only(range(self.batches)))

    def batch_sizes(self) -> Sequence[int]:
        return [self.samples] * self.batches

    def only(self, numbers: Sequence[int]) -> Iterable[torch.Tensor]:
        for number in numbers:
            yield torch.randn(self.samples, self.width, generator=torch.Generator().manual_seed(number))


COLUMNS = "features", "ranks", "CPU seconds", "of one", "MiB at the peak", "planned", "MiB received by rank 0"


def filled(table: Table, *, quick: bool) -> Table:
    """Fold rows of some widths, in batches, into a store, without segments, by each number of ranks."""
    sizes, ranks = ([(64, 4, 8)], (1, 2)) if quick else ([(4096, 32, 512), (8192, 16, 512)], (1, 2, 4))
    for width, batches, samples in sizes:
        passes = [_on(count, width, batches, samples) for count in ranks]
        for one in passes:
            told, ratio = [one.peak, one.planned, one.received], f"{one.cpu / passes[0].cpu:.2f}"
            table.add_row(f"{width:,}", f"{one.ranks}", f"{one.cpu:.1f}", ratio, *(f"{mib:,.0f}" for mib in told))
    return table


def _on(ranks: int, *size: int) -> Shared:
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        probe.close()
        common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        common |= {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, folder, *map(str, size)]
        started = [
            subprocess.Popen(command, env={**os.environ, **common, "RANK": str(rank)}, stdout=subprocess.PIPE)  # noqa: S603  # this file
            for rank in range(ranks)
        ]
        told = [json.loads(process.communicate()[0]) for process in started]
    cpu, peak = max(one["cpu"] for one in told), max(one["peak"] for one in told)
    return Shared(ranks, cpu, peak, told[0]["planned"] / 2**20, told[0]["received"] / 2**20)


def _one(folder: str, width: int, batches: int, samples: int) -> dict[str, float]:
    """What each process does: fold a little to warm up, then time and weigh the pass."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folding = Folding(workers=Threads(1))
    with ds.open_ranks() as ranks:
        for name, size in (("warm", (8, 2 * ranks.ranks, 4)), ("store", (width, batches, samples))):
            loader, model = Drawn(*size), nn.Sequential(nn.Linear(size[0], 2)).eval()
            layers = ds.watch(model, ["0"])
            planned = estimate(model, {"target": loader}, layers, folding, direct=True, ranks=ranks.ranks).peak_bytes
            before, begun, received = _mib("VmRSS"), time.process_time(), ranks.traffic.array_bytes
            ds.accumulate(model, loader, layers, store=f"{folder}/{name}", folding=folding, ranks=ranks)
            cpu, peak = time.process_time() - begun, _mib("VmHWM") - before
    return {"cpu": cpu, "peak": peak, "planned": planned, "received": ranks.traffic.array_bytes - received}


if __name__ == "__main__":
    print(json.dumps(_one(sys.argv[1], *map(int, sys.argv[2:]))))  # noqa: T201
