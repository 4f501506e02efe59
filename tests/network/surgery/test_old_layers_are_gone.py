"""A layer that is also held outside the module tree is not left in use: refused, by compress and by load, by name."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import dalr_stream as ds
from dalr_stream.errors import DalrStreamError, UnsupportedLayerError
from dalr_stream.numerics.lowrank.factors import LowRankLayer
from dalr_stream.numerics.selection.greedy import spectral
from dalr_stream.numerics.statistics.moments import Moments

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


class Chain(nn.Module):
    """Two registered layers; `order` is how they are held beside that."""

    def __init__(self, hold):
        super().__init__()
        self.fc0, self.fc1 = nn.Linear(6, 6), nn.Linear(6, 6)
        self.order = hold(self)

    def forward(self, x):
        held = self.order
        for step in held.values() if isinstance(held, dict) else held if isinstance(held, list | tuple) else [held]:
            x = step(x)
        return x


class Wrapped:
    """An object of one's own, with slots, around a layer."""

    __slots__ = ("layer",)

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x):
        return self.layer(x)


class ByWeight(nn.Module):
    """Keeps the weight, not the layer."""

    def __init__(self, keep):
        super().__init__()
        self.fc0, self.fc1 = nn.Linear(6, 6), nn.Linear(6, 6)
        self.weights = [keep(self.fc0.weight)]

    def forward(self, x):
        return self.fc1(functional.linear(x, self.weights[0]))


HOLDERS = {
    "list": lambda net: [net.fc0, net.fc1],
    "tuple": lambda net: (net.fc0, net.fc1),
    "dict": lambda net: {"first": net.fc0, "second": net.fc1},
    "nested": lambda net: [[net.fc0][0], Wrapped(net.fc1), Wrapped(net.fc0)],
    "bound method": lambda net: net.fc0.forward,
    "partial": lambda net: functools.partial(net.fc0.__class__.__call__, net.fc0),
    "closure": lambda net: lambda x: net.fc1(net.fc0(x)),
    "default": lambda net: lambda x, first=net.fc0: net.fc1(first(x)),
    "slots": lambda net: Wrapped(net.fc0),
}  # fmt: skip


def pair(net, layer="fc0", rank=1):
    weight = net.get_submodule(layer).weight.detach().double().numpy()
    bias = net.get_submodule(layer).bias.detach().double().numpy()
    return ds.truncated_svd(weight, bias).at_rank(rank)


def nodes():
    return spectral(Moments.of(X.double().numpy())).at_size(3)


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
@pytest.mark.parametrize("example", [None, X])
def test_a_layer_held_elsewhere_is_refused_by_name(hold, example):
    net = Chain(hold).eval()
    place = "the network also holds it in its attribute 'order', and would go on using it there"
    with pytest.raises(UnsupportedLayerError, match=f"layer 'fc0': cannot be replaced: {place}"):
        ds.compress(net, {"fc0": pair(net)}, example=example)


@pytest.mark.parametrize("keep", [lambda w: w, lambda w: w.detach(), lambda w: w.data.view(-1).view(6, 6)])
def test_a_weight_held_elsewhere_is_refused_by_name(keep):
    net = ByWeight(keep).eval()
    with pytest.raises(DalrStreamError, match="layer 'fc0'"):
        ds.compress(net, {"fc0": pair(net)})


def test_a_selection_of_a_held_layer_is_refused():
    net = Chain(HOLDERS["list"]).eval()
    with pytest.raises(UnsupportedLayerError, match=r"'fc[01]': cannot be replaced: the network also holds it"):
        ds.compress(net, {"fc0": nodes()}, example=X)


def test_loading_into_a_network_that_holds_its_layers_elsewhere_is_refused(tmp_path):
    plain = Chain(lambda _net: None)
    small = ds.compress(plain.eval(), {"fc0": pair(plain)})
    ds.save(small, tmp_path / "small")
    with pytest.raises(DalrStreamError, match="'fc0': cannot be replaced: the network also holds it in its attribute"):
        ds.load(tmp_path / "small", build=lambda: Chain(HOLDERS["list"]))
    assert ds.load(tmp_path / "small", build=lambda: Chain(lambda _net: None)).fc0[0].out_features == 1


class AsksForItsClass(nn.Module):
    """Skips what is no Linear layer."""

    def __init__(self):
        super().__init__()
        self.fc0, self.fc1 = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        for layer in (self.fc0, self.fc1):
            if isinstance(layer, nn.Linear):
                x = layer(x)
        return x


class ReadsTheWeight(AsksForItsClass):
    def forward(self, x):
        return self.fc1(functional.linear(x, self.fc0.weight, self.fc0.bias))


class CallsTwiceWhenChanged(AsksForItsClass):
    def forward(self, x):
        return self.fc1(self.fc0(x) if type(self.fc0) is nn.Linear else self.fc0(self.fc0(x)))


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (AsksForItsClass(), "is called 1 times less than it was"),
        (ReadsTheWeight(), "depends on it by other ways than through what it gives|reads is not what"),
        (CallsTwiceWhenChanged(), "is called more often than it was"),
    ],
)
def test_a_network_that_does_not_call_the_replacement_as_it_called_the_layer_is_refused(net, reason):
    net.eval()
    with pytest.raises(UnsupportedLayerError, match=f"layer 'fc[01]'.*({reason})"):
        ds.compress(net, {"fc0": pair(net)}, example=X)


def test_whoever_computes_with_the_weight_of_a_pair_gets_nan_and_no_wrong_number():
    net = ReadsTheWeight().eval()
    small = ds.compress(net, {"fc0": pair(net)})  # without an example nothing can be proved
    with torch.no_grad():
        assert small(X).isnan().all()


def test_a_network_that_draws_random_numbers_is_compressed_with_an_example():
    class Noisy(AsksForItsClass):
        def forward(self, x):
            return self.fc1(self.fc0(x) + torch.randn_like(x))

    net = Noisy().eval()
    state = torch.get_rng_state()
    assert ds.compress(net, {"fc0": pair(net)}, example=X).fc0[0].out_features == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_layers_held_by_modules_alone_are_replaced():
    net = nn.Sequential(nn.ModuleDict({"a": nn.Linear(6, 6)})["a"], nn.Linear(6, 6)).eval()
    full = LowRankLayer(np.eye(6), net[0].weight.detach().double().numpy(), net[0].bias.detach().double().numpy())
    with torch.no_grad():
        torch.testing.assert_close(ds.compress(net, {"0": full}, example=X)(X), net(X))
