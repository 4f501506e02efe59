"""Channels that are flattened and joined with what another layer gives, as an image beside a table's columns."""

import numpy as np
import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.surgery.rehearsal import _some_nodes

X = torch.randn(6, 2, 3, 4, generator=torch.Generator().manual_seed(0))
CHANNELS, PIXELS, COLUMNS = 5, 12, 24


class Net(nn.Module):
    def __init__(self, join):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.side = nn.Conv2d(2, CHANNELS, 3, padding=1), nn.BatchNorm2d(5), nn.Linear(4, COLUMNS)
        self.join, self.fc = join, nn.Linear(CHANNELS * PIXELS + COLUMNS, 3)
        self.eval()

    def forward(self, x):
        return self.fc(self.join(torch.relu(self.norm(self.conv(x))), torch.relu(self.side(x[:, 0, 0]))))


JOINED = {
    "image first": (lambda h, o: torch.cat([h.flatten(1), o], 1), 0, CHANNELS * PIXELS),
    "image last": (lambda h, o: torch.cat([o, h.flatten(1)], 1), COLUMNS, 0),
    "and laid out anew": (lambda h, o: torch.cat([h.reshape(len(h), -1), o], 1).unsqueeze(1).squeeze(1), 0, 60),
}


@pytest.mark.parametrize(("join", "image", "columns"), JOINED.values(), ids=JOINED)
def test_each_is_found_at_its_features_and_restored_there(join, image, columns):
    net = Net(join)
    structure = Structure.of(net, X)
    places = {"conv": (image, PIXELS, CHANNELS), "side": (columns, 1, COLUMNS)}
    for name, (start, block, channels) in places.items():
        (reader,) = structure.group_of(name).readers
        assert (reader.span.layer, reader.span.start, reader.span.block) == ("fc", start, block)
        nodes = _some_nodes(channels)
        restore = np.random.default_rng(0).normal(size=nodes.restore.shape)
        restore[nodes.kept] = np.eye(nodes.size)
        record = type(nodes)(nodes.kept, restore, nodes.offset, 1.0)
        small = ds.compress(net, {name: record}, example=structure)

        def restored(h, kept=nodes.kept, restore=restore):
            return torch.einsum("ck,nk...->nc...", torch.from_numpy(restore).float(), h[:, kept])

        twin = Net(lambda h, o, to=restored, name=name: join(to(h), o) if name == "conv" else join(h, to(o)))
        twin.load_state_dict(net.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(small(X), twin(X), rtol=1e-4, atol=1e-4)


def test_pixels_beside_other_features_are_refused_in_one_line():
    net = Net(lambda h, o: torch.cat([h.permute(0, 2, 3, 1).flatten(1), o], 1))
    line = (
        r"layer 'conv': .*: 'fc' reads them 12 times, beside other features, in blocks of 1 .*: not in whole channels"
    )
    with pytest.raises(UnsupportedLayerError, match=line):
        Structure.of(net, X).group_of("conv")
    conv, side = ds.watch(net, ["conv", "side"], example=X)[:2]
    assert "beside other features" in conv.unprunable
    assert side.unprunable == ""


def test_a_tie_that_no_batch_shows_is_refused_when_it_is_tried():
    """Where the graph lost the order, what is added to the channels is not seen; without some of them it cannot be."""
    shift = torch.ones(CHANNELS, 1, 1)
    net = Net(lambda h, o: torch.cat([(h + shift).flatten(1), o], 1))
    assert "cannot be pruned" in ds.watch(net, ["conv"], example=X)[0].unprunable
