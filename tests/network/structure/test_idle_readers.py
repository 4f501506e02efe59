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


@pytest.mark.parametrize("options", [{}, {"auxiliary": nn.Conv2d(5, 5, 9)}, {"idle": nn.Linear(5, 3)}])
def test_what_never_runs_hinders_no_selection(options):
    """Also a head that does not run on the example in train mode either: its images are too small."""
    assert Structure.of(Auxiliary(**options).eval(), EXAMPLE).group_of("conv").producers == ("conv",)


def test_a_head_of_another_width_hinders_no_selection():
    net = Auxiliary(nn.Linear(5, 3)).eval()
    assert Structure.of(net, EXAMPLE).group_of("next").producers == ("next",)
