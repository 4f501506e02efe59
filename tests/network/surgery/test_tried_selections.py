"""What cannot be narrowed is said when a network is watched, before anything is measured."""

import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.layers.identity import fingerprint
from dalr_stream.network.surgery.rehearsal import _some_nodes

X = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions; `layout` takes what the second gives, 6 channels of 4 x 4 pixels, to 96 features."""

    def __init__(self, layout):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.next = nn.Conv2d(2, 12, 3), nn.BatchNorm2d(12), nn.Conv2d(12, 6, 3, padding=1)
        self.in_features, self.fc, self.layout = 6 * 4 * 4, nn.Linear(6 * 4 * 4, 3), layout
        self.unflatten = nn.Unflatten(1, (6, 16))
        self.eval()

    def forward(self, x):
        h = torch.relu(self.norm(self.conv(x)))
        return self.fc(self.layout(self, torch.relu(self.next(h))))


WRITTEN = {
    "an attribute": lambda net, h: h.reshape(-1, net.in_features),
    "as torchcrepe": lambda net, h: h.permute(0, 2, 1, 3).reshape(-1, net.in_features),
    "as AlexNet": lambda _, h: h.view(h.size(0), 6 * 4 * 4),
    "after flatten": lambda _, h: torch.flatten(h, 1).view(len(h), 96),
    "unflatten": lambda net, h: net.unflatten(h.flatten(1)).flatten(1),
    "equal parts": lambda _, h: h.view(len(h), 3, -1).flatten(1),
    "added to what no layer gives": lambda _, h: (h + torch.linspace(0, 1, 6)[:, None, None]).flatten(1),
    "places": lambda _, h: h[:, torch.arange(6)].flatten(1),
}
TAKEN = {
    "flatten": lambda _, h: h.flatten(1),
    "-1": lambda _, h: h.view(h.size(0), -1),
    "from the tensor": lambda _, h: h.reshape(len(h), h.shape[1] * 16),
}


@pytest.mark.parametrize("layout", WRITTEN.values(), ids=WRITTEN)
def test_a_number_of_channels_that_is_written_into_the_network_is_said_when_it_is_watched(layout):
    net = Net(layout)
    before = fingerprint(net)
    layers = ds.watch(net, ["conv", "next"], example=X)
    conv, after = layers[:2]
    assert conv.group is not None
    assert conv.unprunable == ""
    assert after.group is None
    assert after.unprunable.startswith("layer 'next': its channels cannot be pruned: the network fails without them (")
    assert after.unprunable.endswith("let it take that from the tensor")
    assert fingerprint(net) == before
    with pytest.raises(UnsupportedLayerError, match="layer 'next': its channels cannot be pruned: the network fails"):
        ds.compress(net, {"next": _some_nodes(6)}, example=layers.structure)


@pytest.mark.parametrize("layout", TAKEN.values(), ids=TAKEN)
def test_a_number_that_is_taken_from_the_tensor_is_no_hindrance(layout):
    layers = ds.watch(Net(layout), ["conv", "next"], example=X)
    assert [layer.unprunable for layer in layers[:2]] == ["", ""]


@pytest.mark.parametrize("channels", [2, 3, 4, 6, 12, 64, 97, 1536])
def test_the_channels_that_stay_have_no_factor_in_common_with_all(channels):
    """Of a number written into a network any part divides theirs; and neither the first nor the last ones stay."""
    kept = _some_nodes(channels).kept
    assert all(channels % part or kept.size % part for part in range(2, channels + 1))
    assert kept[0] > 0
    assert channels - kept.size < 2 or kept[-1] < channels - 1
    assert channels < 3 or kept.size > 1
