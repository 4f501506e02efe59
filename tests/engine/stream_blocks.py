"""A small network with a residual stream, and what compresses it layer after layer."""

import warnings

import torch
from sequential_twins import RELATIVE
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import ParameterIncreaseWarning

ALL = ds.Folding(ds.HoldoutRule(0.0))
DALR, OPTIMAL = "dalr_anchored_affine", "dalr_optimal_affine"


MIXED = {"stem": (DALR, 3), "up.0": ("spectral", 6), "up.1": (DALR, 3), "down.1": (DALR, 3), "down.2": (OPTIMAL, 3)}


class Blocks(nn.Module):
    """Blocks on a stream, added in different ways, with dropout on the way as in an encoder."""

    def __init__(self, blocks=3, width=8):
        super().__init__()
        self.stem, self.head = nn.Linear(6, width), nn.Linear(width, 3)
        self.up = nn.ModuleList(nn.Linear(width, 12) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(12, width) for _ in range(blocks))
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        x = self.stem(x)
        for number, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            inner = self.drop(down(torch.relu(up(x))))
            if number == 0:
                x = inner + x
            elif number == 1:
                x = torch.add(x, inner)
            else:
                inner += x
                x = inner
        return self.head(x)


def made(blocks=3, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Blocks(blocks).to(dtype).eval()


def data(n=240, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, 6, generator=generator, dtype=dtype) @ torch.randn(6, 6, generator=generator, dtype=dtype)
    ) + 0.3


def compressed(model, x, plan, *, ridge=RELATIVE, target="stream", folding=ALL, **options):
    choices = {name: ds.LayerChoice(*choice, ridge=ridge, restore_ridge=ridge) for name, choice in plan.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        return ds.compress_sequentially(model, x.split(50), choices, target=target, folding=folding, **options)


def plan_of(method, blocks=3, rank=3):
    return {f"{part}.{number}": (method, rank) for number in range(blocks) for part in ("up", "down")}


def same(one, other):
    mine, its = one.network.state_dict(), other.network.state_dict()
    assert one.layers == other.layers
    return mine.keys() == its.keys() and all(torch.equal(tensor, its[name]) for name, tensor in mine.items())
