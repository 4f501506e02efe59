"""Three dense layers, and what each of them reads, worked out by hand in float64."""

import warnings

import numpy as np
import torch
from torch import nn

from dalr_stream.errors import ParameterIncreaseWarning
from dalr_stream.numerics.lowrank.solvers import dalr
from dalr_stream.numerics.statistics.moments import Moments


class Net(nn.Module):
    def __init__(self, bias=True, dtype=torch.float32):
        super().__init__()
        self.fc6 = nn.Linear(10, 12, bias=bias, dtype=dtype)
        self.fc7 = nn.Linear(12, 9, bias=bias, dtype=dtype)
        self.fc8 = nn.Linear(9, 4, bias=bias, dtype=dtype)

    def forward(self, x):
        return self.fc8(torch.relu(self.fc7(torch.relu(self.fc6(x)))))


def build(**options):
    torch.manual_seed(0)
    return Net(**options).eval()


X = torch.randn(200, 10, generator=torch.Generator().manual_seed(1))


def parameters(net):
    """W and b of each layer, float64."""
    plain = {name: value.double().numpy() for name, value in net.state_dict().items()}
    return {n: (plain[f"{n}.weight"], plain.get(f"{n}.bias", np.zeros(1))) for n in ("fc6", "fc7", "fc8")}


def relu(x):
    return np.maximum(x, 0.0)


def hidden(net, x=X):
    """Inputs of fc6, fc7 and fc8."""
    p, h = parameters(net), x.double().numpy()
    h7 = relu(h @ p["fc6"][0].T + p["fc6"][1])
    return {"fc6": h, "fc7": h7, "fc8": relu(h7 @ p["fc7"][0].T + p["fc7"][1])}


def moments(net, layer):
    return Moments.of(hidden(net)[layer])


def factors(net, layer, rank):
    weight, bias = parameters(net)[layer]
    bias = np.broadcast_to(bias, weight.shape[:1]).copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        return dalr(weight, bias, moments(net, layer)).at_rank(rank)
