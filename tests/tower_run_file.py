"""A run file whose network is a tower of three blocks, with its Python and its weights."""

from difflib import unified_diff

import torch

import dalr_stream as ds

CODE = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.blocks, self.head = nn.Linear(6, 8), nn.ModuleList(Block() for _ in range(3)), nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def build():
    return Tower()


def target(*, seed, samples=60):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 6, generator=generator)
    return list(zip(inputs.split(25), (inputs[:, 0] > 0).long().split(25)))
"""
RUN_FILE = """
[run]
name = "blocks"
output = "out"

[network]
build = "tower:build"
weights = "tower.safetensors"
layers = ["blocks.*"]
blocks = true

[capture]
keep_activations = false

[domains.target]
batches = "tower:target"

[solve]
methods = ["svd", "dalr_anchored_affine"]
"""
NAMED = """
[compress]
'blocks.*' = { method = 'dalr_anchored_affine', size = 3 }
"""
BY_BLOCKS = {
    "named": None,
    "energy": 'compress.energy="90%"',
    "singular values": 'compress.singular_values="60%"',
    "ratio": 'compress.ratio="40%"',
}
"""Sizes that each layer decides by itself, as settings of the run file; those that are named no setting can give."""


def write_tower(folder):
    """Write the run file, its Python and the network's weights; return the run file."""
    folder.mkdir()
    (folder / "tower.py").write_text(CODE)
    path = folder / "run.toml"
    path.write_text(RUN_FILE)
    names = {}
    exec(CODE, names)  # noqa: S102  # the text above
    torch.manual_seed(0)
    ds.network.save_weights(names["Tower"](), folder / "tower.safetensors")
    return path


def named(run_file):
    """Name the sizes in the run file; no setting can."""
    run_file.write_text(f"{run_file.read_text()}{NAMED}")
    return []


def files(root):
    """Return the bytes of every file below a folder, by name."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def differences(one, other):
    """Return what differs between two folders read by `files`, a line each: empty where they are the same."""
    lines = [f"{name} is in one alone" for name in sorted(one.keys() ^ other.keys())]
    for name in sorted(one.keys() & other.keys()):
        if one[name] != other[name]:
            lines += [f"{name}:", *(f"  {words}" for words in _parted(one[name], other[name]))]
    return lines


def _parted(one, other):
    """Yield where two files part, as lines where they are text."""
    try:
        pair = [data.decode().splitlines() for data in (one, other)]
    except UnicodeDecodeError:
        first = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
        yield f"{len(one)} and {len(other)} bytes, which part at byte {first}"
        return
    yield from unified_diff(*pair, lineterm="", n=1)
