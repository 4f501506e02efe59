"""What one rank of a job does, by its environment.

DO        accumulate, capture or memory
SEGMENT   segment_batches
DIE       "rank:batch": that rank kills itself when it comes to that batch
DIFFER    "rank:batch": that rank's loader gives another batch there
WRAP      "ddp": the network in DistributedDataParallel
"""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.cli.app import main as command_line
from dalr_stream.streaming.lanes import Pace

BATCHES, SAMPLES, LAST = 23, 40, 7
ROWS = (BATCHES - 1) * SAMPLES + LAST


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 5)).eval()


def place_of(word):
    """Return the batch at which this rank is told to do something, or None."""
    rank, _, batch = os.environ.get(word, "").partition(":")
    return int(batch) if rank == os.environ["RANK"] else None


class Loader:
    """All batches, in order, with the last one shorter."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(1)
        die, differ = place_of("DIE"), place_of("DIFFER")
        for number in range(BATCHES):
            batch = torch.randn(SAMPLES if number < BATCHES - 1 else LAST, 12, generator=generator) + 1.0
            if number == die:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch + 1.0 if number == differ else batch

    def __len__(self):
        return BATCHES


def folding():
    segment = int(os.environ.get("SEGMENT", "2"))
    return ds.Folding(
        ds.HoldoutRule(0.2, seed=1),
        ds.Threads(1),
        pace=every_round,
        device=os.environ.get("DEVICE"),
        segment_batches=segment,
    )


def every_round():
    return Pace(every_tiles=1)


def main(root):
    torch.set_num_threads(1)
    if os.environ["DO"] == "command":
        sys.argv = ["dalr-stream", *os.environ["ARGUMENTS"].split("|")]
        command_line()
        return
    model, wrap = network().to(os.environ.get("DEVICE", "cpu")), os.environ.get("WRAP")
    if wrap is not None:
        torch.distributed.init_process_group(wrap)
        model = nn.parallel.DistributedDataParallel(model)
    layers = ds.watch(model, ["0", "2"])
    with ds.open_ranks(timeout_seconds=20) as ranks:
        match os.environ["DO"]:
            case "capture":
                ds.capture(model, Loader(), layers, root, domain="target", ranks=ranks)
            case "memory":
                statistics = ds.accumulate(model, Loader(), layers, folding=folding(), ranks=ranks)
                assert list(statistics) == (["0", "2"] if ranks.first else [])
                if ranks.first:
                    Path(root).write_bytes(statistics["2"].inputs.scatter.tobytes())
            case "accumulate":
                ds.accumulate(model, Loader(), layers, store=root, folding=folding(), ranks=ranks)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
