"""Several ranks against one process of one thread, on a pass in which the network takes nearly all the time."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import dalr_stream as ds

SERVER = multiprocessing.get_context("forkserver")
SEGMENT_BATCHES = 8
PARTS = 2
"""Training and held-out."""


@dataclass(frozen=True)
class Pass:
    """What a pass took: of all ranks the longest."""

    ranks: int
    wall: float
    cpu: float
    received_bytes: int
    """By rank 0."""
    joins: int


@dataclass(frozen=True)
class Size:
    width: int
    blocks: int
    batches: int
    samples: int


def compared(size: Size, ranks: tuple[int, ...], turns: int) -> list[Pass]:
    """Return the median pass of each number of ranks, which take turns; several after one to warm up."""
    taken: dict[int, list[Pass]] = {count: [] for count in ranks}
    for turn in range(turns + (turns > 1)):
        for count in ranks:
            one = _on(count, size)
            if turn or turns == 1:
                taken[count].append(one)
    return [
        Pass(
            count,
            statistics.median(one.wall for one in passes),
            statistics.median(one.cpu for one in passes),
            passes[0].received_bytes,
            passes[0].joins,
        )
        for count, passes in taken.items()
    ]


def bytes_allowed(size: Size, ranks: int, joins: int) -> float:
    """d^2 log2(ranks) doubles for each record, each time that sums are joined."""
    return 8 * size.width**2 * math.log2(ranks) * PARTS * joins


def _on(ranks: int, size: Size) -> Pass:
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        probe.close()
        common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started = [
            SERVER.Process(target=_one, args=({**common, "RANK": str(rank)}, folder, size)) for rank in range(ranks)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join()
        told = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    assert len(told) == ranks
    return Pass(ranks, max(t["wall"] for t in told), max(t["cpu"] for t in told), told[0]["bytes"], told[0]["joins"])


def _one(environment: dict[str, str], folder: str, size: Size) -> None:
    """What each process does: build the network, meet the others, and time the pass."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    d = size.width
    blocks = [nn.Sequential(nn.Linear(d, 4 * d), nn.ReLU(), nn.Linear(4 * d, d)) for _ in range(size.blocks)]
    model = nn.Sequential(*blocks).eval()
    layers = ds.watch(model, [f"{size.blocks - 1}.0"])
    batches = list(torch.randn(size.batches * size.samples, d).split(size.samples))
    folding = ds.Folding(workers=ds.Threads(1), segment_batches=SEGMENT_BATCHES)
    with ds.open_ranks() as ranks:
        wall, cpu = time.perf_counter(), time.process_time()
        ds.accumulate(model, batches, layers, folding=folding, ranks=ranks)
        facts = {
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
            "bytes": ranks.traffic.array_bytes,
            "joins": ranks.traffic.messages,
        }
    Path(folder, f"{ranks.rank}.json").write_text(json.dumps(facts))
