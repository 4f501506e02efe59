"""A network with grouped and depthwise convolutions, its run file, and what its layers compute by hand."""

import shutil

import numpy as np
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project

METHOD = ds.Method.DALR_ANCHORED_AFFINE
GROUPED = {"split": 2, "line": 4}
CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.split = nn.Conv2d(8, 12, 3, stride=2, padding=2, dilation=2, groups=2)
        self.depth = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.line = nn.Conv1d(12, 8, 3, padding=2, dilation=2, groups=4, bias=False)
        self.fc1, self.fc2 = nn.Linear(8 * 16, 20), nn.Linear(20, 3)

    def forward(self, x):
        h = torch.relu(self.split(torch.relu(self.stem(x))))
        h = torch.relu(self.line(torch.relu(self.depth(h)).flatten(2)))
        return self.fc2(torch.relu(self.fc1(h.flatten(1))))


def build():
    return Net()


def train(model, *, seed, report):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in model.children():
            module.reset_parameters()
    report("as it was drawn")


def pictures(*, seed, samples=60):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(20, 1, 8, 8, generator=generator), torch.arange(20) % 3) for _ in range(samples // 20)]


def others(*, seed):
    return pictures(seed=seed + 1, samples=20)
"""
RUN_FILE = """
[run]
name = "grouped"
output = "out"

[network]
build = "grouped_run:build"
train = "grouped_run:train"
layers = ["*"]

[domains.target]
batches = "grouped_run:pictures"

[accumulate]
heldout_share = 0.0

[solve]
methods = ["svd", "dalr_anchored_affine", "spectral"]

[compress]
split = { method = "dalr_anchored_affine", size = 3 }
line = { method = "dalr_anchored_affine", size = 1 }
stem = { method = "dalr_anchored_affine", size = 4 }
fc1 = { method = "spectral", size = 12 }

[evaluate]
batches = "grouped_run:pictures"
options = { samples = 20 }
ranks = [1, 2, 4]
"""


def opened(folder, *overrides, **sizes):
    return Project(load_config(folder / "run.toml", overrides, sizes), folder)


def again(project, folder, tmp_path, *overrides, **sizes):
    """The same run, as far as it is done, in a place of its own."""
    shutil.copytree(project.output, tmp_path / "again")
    return elsewhere(folder, tmp_path / "again", *overrides, **sizes)


def elsewhere(folder, output, *overrides, **sizes):
    return opened(folder, f'run.output="{output}"', *overrides, **sizes)


def inputs(project):
    return torch.cat([pictures for pictures, _ in project.code.batches("target")])


def patches(module, x):
    """(N, groups, d, positions): what each group reads, by torch's own unfolding; a line is an image of one row."""
    sides = [module.kernel_size, module.dilation, module.padding, module.stride]
    if isinstance(module, nn.Conv1d):
        x, sides = x[:, :, None], [(1, sides[0][0]), (1, sides[1][0]), (0, sides[2][0]), (1, sides[3][0])]
    return torch.stack([nn.functional.unfold(part, *sides) for part in x.chunk(module.groups, dim=1)], dim=1)


class ByHand(nn.Module):
    """A convolution's factors applied group by group, as matrices."""

    def __init__(self, module, pair):
        super().__init__()
        self.module, self.parts = module, pair.parts

    def forward(self, x):
        given = []
        for part, rows in zip(self.parts, patches(self.module, x).unbind(1), strict=True):
            up, down, bias = (torch.from_numpy(np.array(one)).float() for one in (part.up, part.down, part.bias))
            given.append(up @ (down @ rows) + bias[:, None])
        return torch.cat(given, dim=1).reshape(self.module(x).shape)


def read_by(project, name, x):
    """What layer `name` reads in the original network."""
    seen = []
    handle = project.network.get_submodule(name).register_forward_pre_hook(lambda _, read: seen.append(read[0]))
    with torch.inference_mode():
        project.network(x)
    handle.remove()
    return seen[0]
