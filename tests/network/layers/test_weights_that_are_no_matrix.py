"""Weights that are no plain matrix of real numbers are refused with the reason, before anything is run."""

import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.layers.spec import select_layers


class Packed(torch.Tensor):
    """As quantising libraries put in the place of a weight."""


def packed():
    layer = nn.Linear(4, 3)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Packed), requires_grad=False)
    return layer


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Linear(4, 3, dtype=torch.complex64), "its weight holds torch.complex64 and not real numbers"),
        (nn.Conv1d(4, 3, 2, dtype=torch.complex64), "its weight holds torch.complex64 and not real numbers"),
        (nn.LazyLinear(3), "its weight has no shape before a batch went through: run the network once first"),
        (nn.LazyConv2d(3, 2), "its weight has no shape before a batch went through: run the network once first"),
        (packed(), "its weight is a .*, packed, quantised or sharded: compress the network before that is done"),
    ],
)
def test_the_reason_is_named(layer, reason):
    net = nn.Sequential(layer, nn.Linear(3, 2))
    with pytest.raises(UnsupportedLayerError, match=reason):
        select_layers(net, ["0"])
    (said,) = ds.unsupported_layers(net, ["*"])
    assert said.startswith("layer '0' is left out: its weight ")
