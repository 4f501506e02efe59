"""Layers that read channels in training only: a selection would leave them as wide as they were."""

import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.layers.identity import fingerprint
from dalr_stream.network.structure.graph import Structure


class Auxiliary(nn.Module):
    """A head that runs in training only, after a batch norm."""

    def __init__(self, auxiliary=None, idle=None):
        super().__init__()
        self.conv, self.next, self.fc = nn.Conv2d(2, 5, 3), nn.Conv2d(5, 4, 3), nn.Linear(4, 3)
        self.norm, self.auxiliary, self.idle = nn.BatchNorm2d(5), auxiliary, idle

    def forward(self, x):
        h = torch.relu(self.norm(self.conv(x)))
        y = self.fc(torch.relu(self.next(h)).mean((2, 3)))
        if self.training and self.auxiliary is not None:
            return y, self.auxiliary(h if isinstance(self.auxiliary, nn.Conv2d) else h.mean((2, 3)))
        return y


EXAMPLE = torch.randn(2, 2, 7, 7, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("head", [nn.Linear(5, 3), nn.Conv2d(5, 3, 1)])
def test_a_head_that_runs_in_training_only_is_named(head):
    net = Auxiliary(head).eval()
    before, drawn = fingerprint(net), torch.get_rng_state()
    message = "layer 'conv': its channels cannot be pruned: 'auxiliary', which runs in training only, is as wide"
    with pytest.raises(UnsupportedLayerError, match=message):
        Structure.of(net, EXAMPLE).group_of("conv")
    layers = ds.watch(net, ["conv"], example=EXAMPLE)
    assert layers[0].group is None
    assert "'auxiliary', which runs in training only" in layers[0].unprunable
    assert fingerprint(net) == before
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not net.training


@pytest.mark.parametrize("options", [{}, {"idle": nn.Linear(5, 3)}])
def test_what_never_runs_hinders_no_selection(options):
    assert Structure.of(Auxiliary(**options).eval(), EXAMPLE).group_of("conv").producers == ("conv",)


def test_a_head_of_another_width_hinders_no_selection():
    net = Auxiliary(nn.Linear(5, 3)).eval()
    assert Structure.of(net, EXAMPLE).group_of("next").producers == ("next",)


def test_a_head_that_does_not_run_on_the_example_in_train_mode_either_is_named():
    """Its images are too small for it."""
    with pytest.raises(UnsupportedLayerError, match="'auxiliary', which does not run on the example, and is named in"):
        Structure.of(Auxiliary(nn.Conv2d(5, 5, 9)).eval(), EXAMPLE).group_of("conv")


class Exits(nn.Module):
    """Inputs that are sure enough leave early, by one of several ways to write it."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 7), nn.Linear(7, 3)
        self.leave = nn.Linear(6, 3)
        self.exits = nn.ModuleList([nn.Sequential(nn.ReLU(), nn.Linear(6, 3))])
        self.named, self.unused = nn.ModuleDict({"early": nn.Linear(6, 3)}), nn.Linear(6, 3)
        self.way = way

    def forward(self, x):
        h = torch.relu(self.first(x))
        if float(h.detach().max()) > 100:
            return self.early(h)
        return self.last(torch.relu(self.second(h)))

    def early(self, h):
        if self.way == "list":
            return next(leave(h) for leave in self.exits)
        if self.way == "dict":
            return self.named["early"](h)
        return getattr(self, "leave")(h) if self.way == "word" else self.leave(h)  # noqa: B009


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["attribute", "word", "list", "dict"])
def test_an_early_exit_that_the_example_does_not_take_is_named(way):
    net, example = Exits(way).eval(), torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    with pytest.raises(UnsupportedLayerError, match=r"layer 'first': .*'leave', which does not run on the"):
        Structure.of(net, example).group_of("first")
    net.leave = None
    with pytest.raises(UnsupportedLayerError, match=r"layer 'first': .*'exits.0.1', which does not run on the"):
        Structure.of(net, example).group_of("first")
    net.exits = None
    with pytest.raises(UnsupportedLayerError, match=r"layer 'first': .*'named.early', which does not run on the"):
        Structure.of(net, example).group_of("first")
    net.named = None
    assert Structure.of(net, example).group_of("first").producers == ("first",)  # `unused` is named nowhere
    assert Structure.of(net, example).group_of("second").producers == ("second",)
