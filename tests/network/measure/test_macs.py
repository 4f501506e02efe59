"""Multiply-adds against figures worked out by hand for each kind of layer."""

import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.network.measure.macs import watched_calls
from dalr_stream.numerics.latency import macs_below
from dalr_stream.numerics.lowrank.factors import LowRankLayer

CONV1D = pytest.importorskip("transformers.pytorch_utils").Conv1D


def macs_of(module, *shape):
    """Of one forward pass over inputs of that shape."""
    model = nn.Sequential(module).eval()
    with torch.inference_mode(), watched_calls(model) as calls:
        model(torch.zeros(shape))
    assert calls.samples == shape[0]
    assert not module._forward_hooks
    return calls.macs["0"]


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Linear(7, 5), (3, 7), 3 * 7 * 5),
        (nn.Linear(7, 5, bias=False), (2, 11, 7), 2 * 11 * 7 * 5),
        (CONV1D(5, 7), (2, 11, 7), 2 * 11 * 7 * 5),
        (nn.Conv1d(4, 6, 3), (2, 4, 10), 2 * 8 * 6 * 4 * 3),
        (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 10), 2 * 5 * 6 * 4 * 3),
        (nn.Conv2d(3, 8, 3), (2, 3, 10, 12), 2 * 8 * 10 * 8 * 3 * 9),
        (nn.Conv2d(3, 8, (5, 3), stride=(2, 1), padding="valid"), (2, 3, 11, 12), 2 * 4 * 10 * 8 * 3 * 15),
        (nn.Conv2d(3, 8, 3, padding="same"), (1, 3, 10, 12), 10 * 12 * 8 * 3 * 9),
        (nn.Conv2d(3, 8, 3, dilation=2), (1, 3, 10, 12), 6 * 8 * 8 * 3 * 9),
        (nn.Conv2d(4, 8, 3, groups=2), (1, 4, 5, 5), 9 * 8 * 2 * 9),
        (nn.Conv2d(4, 4, 3, groups=4), (1, 4, 5, 5), 9 * 4 * 9),
    ],
)
def test_each_kind_is_counted_at_the_positions_it_computes(module, shape, expected):
    assert macs_of(module, *shape) == expected


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared, self.idle, self.norm = nn.Linear(6, 6), nn.Linear(6, 9), nn.LayerNorm(6)

    def forward(self, *, first, second):
        return self.norm(self.shared(first)) + self.shared(second)


def test_a_layer_called_twice_counts_twice_and_one_never_called_not_at_all():
    model = Twice().eval()
    with torch.inference_mode(), watched_calls(model) as calls:
        model(first=torch.zeros(4, 6), second=torch.zeros(4, 6))
    assert calls.macs == {"shared": 2 * 4 * 36}
    assert calls.samples == 4


@pytest.mark.parametrize("rank", [1, 4])
def test_a_factor_pair_counts_as_the_sum_of_its_parts(rank):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 5)).eval()
    weight, bias = ds.network.weights_of(model, "0")
    down, up = weight[:rank], weight[:, :rank]
    small = ds.compress(model, {"0": LowRankLayer(down=down, up=up, bias=bias)})
    with torch.inference_mode(), watched_calls(small) as calls:
        small(torch.zeros(2, 3, 9, 9))
    positions = 2 * 4 * 4
    assert calls.macs == {"0.0": positions * 27 * rank, "0.1": positions * rank * 8, "3": 2 * 128 * 5}
    assert macs_below(calls.macs, "0") == positions * rank * (27 + 8)
    assert macs_below(calls.macs, "3") == 2 * 128 * 5
