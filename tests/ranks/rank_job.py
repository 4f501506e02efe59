"""What one rank of a job does, by its environment.

DO        accumulate, capture, memory, or blocks: accumulate a deeper network block by block, its weights on disk; or
          sweep: compress it so, one block's moments at a time, into the folder that INTO names
SEGMENT   segment_batches
WIDE      features of layer "2"
LIMIT     memory limit of a rank, in MiB
DIE       "rank:batch": that rank kills itself when it loads that batch, or the next one that is its own
DIE_WITH  a file or folder; before it is there, no rank kills itself
STORE     the URL of the store of DO=blocks, where it is in a bucket
OWN       "1": each rank has a store of its own, named after it
GRADIENTS "1": those of one layer too, of DO=blocks
BLOCKS    the block list that all ranks but the first name
DIFFER    "rank:batch": that rank's loader gives another batch there
WRAP      "ddp": the network in DistributedDataParallel
LOADER    "dealing": it gives single batches; "torch": torch's own; all of them to every rank by default
PACE      rounds from one checkpoint to the next
BATCHES   how many there are, of a loader that is not torch's
LOADED    the file to which each rank adds the numbers of the batches that it loads
"""

import os
import signal
import sys
from functools import partial
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


class Deep(nn.Module):
    """Four blocks in two lists."""

    def __init__(self, one, two):
        super().__init__()
        self.one, self.two = one, two

    def forward(self, x):
        return self.two(self.one(x))


def deep_network():
    torch.manual_seed(0)
    wide = int(os.environ.get("WIDE", "16"))
    one, two = ((nn.Linear(a, wide), nn.ReLU(), nn.Linear(wide, b), nn.ReLU()) for a, b in ((12, wide), (wide, 5)))
    return Deep(nn.Sequential(*one), nn.Sequential(*two)).eval()


def by_blocks(root, ranks):
    model = ds.open_network(deep_network, os.environ["WEIGHTS"])
    blocks = os.environ["BLOCKS"] if "BLOCKS" in os.environ and ranks.rank else True
    root = f"{root}-{ranks.rank}" if "OWN" in os.environ else os.environ.get("STORE", root)
    followed = ["two.0"] if "GRADIENTS" in os.environ else []
    layers = ds.watch(model, ["one.0", "two.*"], gradients=followed)  # the second block only takes the batches further
    rows = ds.RowRule(gradients=ds.GradientRule(draws=2))
    statistics = ds.accumulate(
        model, loader(), layers, store=root, rows=rows, folding=folding(), ranks=ranks, blocks=blocks
    )
    assert list(statistics) == (["one.0", "two.0", "two.2"] if ranks.first else [])


def sweep(root, ranks):
    model = ds.open_network(deep_network, os.environ["WEIGHTS"])
    layers = ds.watch(model, ["one.0", "two.*"])
    with ds.statistics_by_block(
        model, loader(), layers, store=os.environ.get("STORE", root), folding=folding(), ranks=ranks
    ) as statistics:
        assert list(statistics) == (["one.0", "two.0", "two.2"] if ranks.first else [])
        if ranks.first:
            pairs = {name: partial(lambda name: ds.dalr(statistics[name]).at_rank(2), name) for name in statistics}
            ds.compress_into(model, pairs, os.environ["INTO"], made_from="rank 2")


def place_of(word):
    """Return the batch at which this rank is told to do something, or None."""
    rank, _, batch = os.environ.get(word, "").partition(":")
    return int(batch) if rank == os.environ["RANK"] else None


class Loader:
    """All batches, in order, with the last one shorter."""

    def __iter__(self):
        return (self.batch(number) for number in range(len(self)))

    def __len__(self):
        return int(os.environ.get("BATCHES", BATCHES))

    def batch(self, number):
        die = place_of("DIE")
        die = die if Path(os.environ.get("DIE_WITH", "/")).exists() else None
        if die is not None and number >= die and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        if "LOADED" in os.environ:
            with Path(os.environ["LOADED"]).open("a") as log:
                log.write(f"{os.environ['RANK']}:{number}\n")
        return SAMPLES_OF[number] + 1.0 if number == place_of("DIFFER") else SAMPLES_OF[number]


class DealingLoader(Loader):
    """Gives single batches."""

    def batch_sizes(self):
        return [len(batch) for batch in SAMPLES_OF][: len(self)]

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
    return Pace(every_tiles=int(os.environ.get("PACE", "1")))


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
            case "blocks":
                by_blocks(root, ranks)
            case "sweep":
                sweep(root, ranks)
            case "accumulate":
                ds.accumulate(model, loader(), layers, store=root, folding=folding(), ranks=ranks)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
