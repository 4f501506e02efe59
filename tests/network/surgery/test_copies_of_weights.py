"""A network that cached a copy of a weight that is replaced does not go on using it: refused by name, if it is used."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import dalr_stream as ds
from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.layers.identity import fingerprint
from dalr_stream.network.surgery.rehearsal import _some_nodes
from dalr_stream.numerics.lowrank.factors import LowRankLayer

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Both calls its layer and uses what it keeps of the weight."""

    def __init__(self, keep, use, register=None):
        super().__init__()
        torch.manual_seed(0)
        self.fc0, self.fc1, self.head = nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(6, 2)
        kept = keep(self.fc0.weight.detach(), self.fc1.weight.detach())
        if register is None:
            self.kept = kept
        else:
            self.register_buffer("kept", kept, persistent=register)
        self.use = use
        self.eval()

    def forward(self, x):
        return self.head(self.use(x, self.fc1(torch.relu(self.fc0(x))), self.kept))


def beside(x, y, kept):
    return y + functional.linear(x, kept.float())[:, :6]


KEPT = {
    "a clone": (lambda w, _: w.clone(), beside),
    "turned": (lambda w, _: w.T.contiguous(), lambda x, y, kept: y + (x @ kept)[:, :6]),
    "among others": (lambda w, v: torch.cat([v.T, w]), lambda x, y, kept: y + functional.linear(x, kept[9:])[:, :6]),
    "in half precision": (lambda w, _: w.half(), beside),
    "in a list": (lambda w, _: [None, {"w": w.clone()}], lambda x, y, kept: beside(x, y, kept[1]["w"])),
}


@pytest.mark.parametrize(("keep", "use"), KEPT.values(), ids=KEPT)
def test_a_copy_that_is_used_is_named(keep, use):
    net = Net(keep, use)
    before, outputs = fingerprint(net), net(X)
    pair = ds.truncated_svd(*ds.network.weights_of(net, "fc0")).at_rank(2)
    with pytest.raises(
        UnsupportedLayerError, match=r"layer 'fc0': .* a copy of its weight in its attribute 'kept', and"
    ):
        ds.compress(net, {"fc0": pair}, example=X)
    assert fingerprint(net) == before
    assert torch.equal(net(X), outputs)


def test_a_selection_looks_for_copies_too():
    net = Net(lambda w, _: w.clone(), beside)
    with pytest.raises(UnsupportedLayerError, match="layer 'fc0': cannot be replaced: the network keeps a copy"):
        ds.compress(net, {"fc0": _some_nodes(9)}, example=X)
    assert "keeps a copy of its weight" in ds.watch(net, ["fc0"], example=X)[0].unprunable


@pytest.mark.parametrize(
    "net",
    [
        Net(lambda w, _: w.clone(), lambda _x, y, _kept: y),
        Net(lambda w, _: w.clone(), beside, register=True),
        Net(lambda w, _: torch.ones_like(w), beside),
        Net(lambda w, _: w + 1, beside),
    ],
    ids=["not used", "saved with the network", "numbers of its own", "others"],
)
def test_other_tensors_are_no_hindrance(net):
    kept = net.kept.clone()
    small = ds.compress(net, {"fc0": ds.truncated_svd(*ds.network.weights_of(net, "fc0")).at_rank(2)}, example=X)
    assert isinstance(small.fc0, nn.Sequential)
    assert torch.equal(small.kept, kept)


def test_a_buffer_that_is_not_saved_is_a_copy_like_any_other():
    net = Net(lambda w, _: w.clone(), beside, register=False)
    pair = ds.truncated_svd(*ds.network.weights_of(net, "fc0")).at_rank(2)
    with pytest.raises(UnsupportedLayerError, match="a copy of its weight in its attribute 'kept'"):
        ds.compress(net, {"fc0": pair}, example=X)


def test_weights_of_one_number_have_no_copies():
    """Zeros are everywhere, as where a branch begins with none."""
    net = Net(lambda w, _: torch.zeros_like(w), beside)
    with torch.no_grad():
        net.fc0.weight.zero_()
    pair = LowRankLayer(np.zeros((1, 6)), np.zeros((9, 1)), np.zeros(9))
    assert ds.compress(net, {"fc0": pair}, example=X)(X).isfinite().all()
