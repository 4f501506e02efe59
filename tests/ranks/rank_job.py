"""What one rank of a job does, by its environment.

DO        accumulate, capture or memory
SEGMENT   segment_batches
WIDE      features of layer "2"
LIMIT     memory limit of a rank, in MiB
DIE       "rank:batch": that rank kills itself when it loads that batch, or the next one that is its own
DIFFER    "rank:batch": that rank's loader gives another batch there
WRAP      "ddp": the network in DistributedDataParallel
LOADER    "dealing": it gives single batches; "torch": torch's own; all of them to every rank by default
LOADED    the file to which each rank adds the numbers of the batches that it loads
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


SAMPLES_OF = (torch.randn(ROWS, 12, generator=torch.Generator().manual_seed(1)) + 1.0).split(SAMPLES)


def network():
    torch.manual_seed(0)
    wide = int(os.environ.get("WIDE", "30"))
    return nn.Sequential(nn.Linear(12, wide), nn.ReLU(), nn.Linear(wide, 5)).eval()


def place_of(word):
    """Return the batch at which this rank is told to do something, or None."""
    rank, _, batch = os.environ.get(word, "").partition(":")
    return int(batch) if rank == os.environ["RANK"] else None


class Loader:
    """All batches, in order, with the last one shorter."""

    def __iter__(self):
        return (self.batch(number) for number in range(BATCHES))

    def __len__(self):
        return BATCHES

    def batch(self, number):
        die = place_of("DIE")
        if die is not None and number >= die and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        if "LOADED" in os.environ:
            with Path(os.environ["LOADED"]).open("a") as log:
                log.write(f"{os.environ['RANK']}:{number}\n")
        return SAMPLES_OF[number] + 1.0 if number == place_of("DIFFER") else SAMPLES_OF[number]


class DealingLoader(Loader):
    """Gives single batches."""

    def batch_sizes(self):
        return [len(batch) for batch in SAMPLES_OF]

    def only(self, numbers):
        return (self.batch(number) for number in numbers)


class Samples(torch.utils.data.Dataset):
    """All samples, for torch's loader."""

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        return torch.cat(SAMPLES_OF)[index]


def loader():
    match os.environ.get("LOADER"):
        case "dealing":
            return DealingLoader()
        case "torch":
            return torch.utils.data.DataLoader(Samples(), SAMPLES, num_workers=int(os.environ.get("WORKERS", "0")))
    return Loader()


def folding():
    segment, limit = int(os.environ.get("SEGMENT", "2")), os.environ.get("LIMIT")
    return ds.Folding(
        ds.HoldoutRule(0.2, seed=1),
        ds.Threads(1),
        memory_limit_bytes=None if limit is None else int(limit) * 2**20,
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
                ds.capture(model, loader(), layers, root, domain="target", ranks=ranks)
            case "memory":
                statistics = ds.accumulate(model, loader(), layers, folding=folding(), ranks=ranks)
                assert list(statistics) == (["0", "2"] if ranks.first else [])
                if ranks.first:
                    Path(root).write_bytes(statistics["2"].inputs.scatter.tobytes())
            case "accumulate":
                ds.accumulate(model, loader(), layers, store=root, folding=folding(), ranks=ranks)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
