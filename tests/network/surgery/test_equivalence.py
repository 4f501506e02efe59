"""Selections where something between the layers knows how many channels there are, or which: refused by name."""

import numpy as np
import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import InvalidInputError, NonFiniteError, UnsupportedLayerError
from dalr_stream.network.layers.identity import fingerprint
from dalr_stream.numerics.selection.nodes import SelectedNodes

ROWS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """`between` is what happens to the channels on their way from `a` to `b`."""

    def __init__(self, between, after=None):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.register_buffer("scales", torch.linspace(0.5, 2.0, 6))
        self.between, self.after = between, after or (lambda _, y: y)
        self.eval()

    def forward(self, x):
        h = self.a(x)
        return self.after(h, self.c(torch.relu(self.b(self.between(self, torch.relu(h))))))


def selection(kept, channels=6):
    restore = np.zeros((channels, len(kept)))
    restore[kept, range(len(kept))] = 1.0
    return SelectedNodes(np.array(kept), restore, np.zeros(channels), 1.0)


@pytest.mark.parametrize(
    "between",
    [
        lambda _, h: h * torch.linspace(1, 2, h.shape[1]),
        lambda _, h: h / h.shape[1] ** 0.5,
        lambda net, h: h * net.scales,
        lambda net, h: h * net.scales[: h.shape[1]],
    ],
    ids=["positions", "width", "buffer", "cut buffer"],
)
def test_what_counts_or_numbers_channels_is_refused(between):
    net = Net(between)
    before = fingerprint(net)
    with pytest.raises(
        UnsupportedLayerError, match=r"layer 'a': its channels cannot be pruned: (what 'b' reads|the ne)"
    ):
        ds.compress(net, {"a": selection([0, 2, 5])}, example=ROWS)
    assert fingerprint(net) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_the_output_may_not_know_their_number_either():
    net = Net(lambda _, h: h, after=lambda h, y: y / h.shape[1])
    with pytest.raises(UnsupportedLayerError, match=r"layer 'a', 'b': .* the network's output depends on how many"):
        ds.compress(net, {"a": selection([0, 2]), "b": selection([1])}, example=ROWS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_coarse_selections_and_pairs_together_are_no_hindrance(dtype):
    """Each stretch is compared by itself: what the layers give differs much from the original."""
    net = Net(lambda _, h: torch.tanh(h)).to(dtype)
    weight, bias = ds.network.weights_of(net, "c")
    replaced = {"a": selection([3]), "b": selection([0, 4]), "c": ds.truncated_svd(weight, bias).at_rank(1)}
    small = ds.compress(net, replaced, example=ROWS.to(dtype))
    assert (small.a.out_features, small.b.in_features, small.c[0].in_features) == (1, 1, 2)


def test_a_structure_of_another_network_is_refused():
    net = Net(lambda _, h: h)
    structure = ds.network.Structure.of(Net(lambda _, h: h), ROWS)
    with pytest.raises(InvalidInputError, match="layer 'a': the structure must be of the network that is compressed"):
        ds.compress(net, {"a": selection([0])}, example=structure)


def test_restored_weights_that_overflow_half_precision_are_refused():
    net = Net(lambda _, h: h).half()
    large = selection([0])
    record = SelectedNodes(large.kept, large.restore + 1e6, large.offset, 1.0)
    with pytest.raises(NonFiniteError, match=r"layer 'b': its weights .* must fit into torch\.float16, up to 65504"):
        ds.compress(net, {"a": record}, example=ROWS.half())


class Doubling(nn.BatchNorm1d):
    """A batch norm of one's own, with a constructor of its own and a number for each channel besides."""

    def __init__(self, gains):
        super().__init__(len(gains))
        self.register_buffer("gains", gains)

    def forward(self, x):
        return super().forward(x) * self.gains


def biasless(channels):
    norm = nn.BatchNorm1d(channels)
    norm.register_parameter("bias", None)
    return norm


@pytest.mark.parametrize("make", [lambda: Doubling(torch.arange(1.0, 7.0)), lambda: biasless(6)])
def test_batch_norm_is_narrowed_as_what_it_is(make):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), make(), nn.Linear(6, 2)).eval()
    net[1].weight.data.uniform_(0.5, 2.0)
    net[1].running_var.uniform_(0.5, 2.0)
    net[1].weight.requires_grad_(False)
    small = ds.compress(net, {"0": selection([1, 4])}, example=ROWS)
    seen = []
    net[2].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0][:, [1, 4]]))
    small[2].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        net(ROWS), small(ROWS)
    torch.testing.assert_close(*seen)
    assert type(small[1]) is type(net[1])
    assert not small[1].weight.requires_grad
    assert (net[1].num_features, small[1].num_features) == (6, 2)


def test_what_takes_a_layers_place_is_in_its_mode_and_frozen_as_it_was():
    net = Net(lambda _, h: h)
    net.a.requires_grad_(False)
    net.b.weight.requires_grad_(False)
    net.c.bias.requires_grad_(False)
    net.train()
    net.b.eval()
    pairs = {name: ds.truncated_svd(*ds.network.weights_of(net, name)).at_rank(1) for name in ("b", "c")}
    small = ds.compress(net, {"a": selection([0, 2]), **pairs}, example=ROWS)
    learning = {name for name, parameter in small.named_parameters() if parameter.requires_grad}
    assert learning == {"c.0.weight", "c.1.weight", "c.1.bias"}  # a pair takes the weight's
    training = {name for name, module in small.named_modules() if module.training}
    assert training == {"", "a", "c", "c.0", "c.1"}
