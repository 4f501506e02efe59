"""Small networks and batches to fine-tune, and loaders that die on the way."""

import torch
from dense_network import build, factors, moments
from torch import nn

from dalr_stream.network.surgery.compress import compress
from dalr_stream.network.training.setting import FineTuning
from dalr_stream.numerics.selection.greedy import spectral

DRAWN = torch.Generator().manual_seed(5)
X = torch.randn(40, 10, generator=DRAWN)
Y = torch.randint(4, (40,), generator=DRAWN)
BATCHES = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 40, 16)]
FAST = FineTuning(epochs=3, rate=1e-2)


def small():
    net = build()
    parts = {"fc7": factors(net, "fc7", 3), "fc6": spectral(moments(net, "fc7"), affine=True).at_size(5)}
    return compress(net, parts, example=X)


class Mixed(nn.Module):
    """A convolution, batch norm and dropout before fully connected layers."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.conv = nn.Conv1d(1, 6, 3, dtype=dtype)
        self.norm = nn.BatchNorm1d(6, dtype=dtype)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(48, 7, dtype=dtype)
        self.head = nn.Linear(7, 4, dtype=dtype)

    def forward(self, x):
        hidden = self.norm(self.conv(x[:, None].to(self.fc.weight.dtype))).flatten(1)
        return self.head(self.drop(torch.relu(self.fc(self.drop(hidden)))))


def mixed(dtype=torch.float32):
    torch.manual_seed(2)
    return Mixed(dtype).eval()


def tensors(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(one, other):
    a, b = tensors(one), tensors(other)
    assert list(a) == list(b)
    return {name for name in a if not torch.equal(a[name], b[name])}


class Killed(BaseException):
    """What ends a process, or nearly."""


class Shuffled:
    """A loader with a memory: its own generator moves on with every epoch, and it draws from torch's as well."""

    def __init__(self, dies_at=None):
        self.generator, self.left = torch.Generator().manual_seed(9), dies_at

    def __iter__(self):
        for part in torch.randperm(40, generator=self.generator).split(16):
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise Killed
            yield X[part] + 0.01 * torch.randn(len(part), 10), Y[part]


class Dying:
    def __init__(self, loader, left):
        self.loader, self.left = loader, left

    def __iter__(self):
        for batch in self.loader:
            self.left -= 1
            if self.left < 0:
                raise Killed
            yield batch
