"""Selections of channels that are laid out anew before they are read: channels last, blocks of them, several times.

The naive twin knows nothing of layouts: it puts the restored channels in the place of what the activation gives.
"""

import numpy as np
import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.structure.readers import with_readers
from dalr_stream.network.surgery.narrowing import map_inputs
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.selection.nodes import SelectedNodes
from dalr_stream.numerics.statistics.channels import ChannelGroup, ChannelReader, ChannelSpan

CHANNELS, HEIGHT, WIDTH = 5, 3, 4
PIXELS = HEIGHT * WIDTH
LAYOUTS = {
    "permute, flatten": lambda h: h.permute(0, 2, 3, 1).flatten(1),
    "columns first": lambda h: h.permute(0, 3, 2, 1).contiguous().view(len(h), -1),
    "channels between": lambda h: h.transpose(1, 2).reshape(len(h), -1),
    "movedim, reshape": lambda h: h.movedim(1, -1).reshape(len(h), -1),
    "a row at a time": lambda h: h.flatten(2).transpose(1, 2).flatten(1),
    "channels_last in memory": lambda h: h.to(memory_format=torch.channels_last).permute(0, 2, 3, 1).flatten(1),
    "columns as positions": lambda h: h.permute(0, 3, 1, 2).flatten(2),
    "columns as positions, channels last": lambda h: h.permute(0, 3, 2, 1).flatten(2),
    "twice": lambda h: torch.cat([h.flatten(1), h.tanh().flatten(1)], 1),
    "channels first": lambda h: h.flatten(1),
}


class Net(nn.Module):
    """A layer that gives channels, an activation, a layout, and a layer that reads what comes of it."""

    def __init__(self, layout, *, tokens=False, norm=False):
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(2, CHANNELS) if tokens else nn.Conv2d(2, CHANNELS, 3, padding=1)
        self.act, self.layout = nn.ReLU(), layout
        features = self._laid_out(self._example()).shape[-1]
        self.norm = nn.BatchNorm1d(features) if norm else nn.Identity()
        self.fc, self.out = nn.Linear(features, 4), nn.Linear(4, 2)
        if norm:
            for tensor in (self.norm.running_mean, self.norm.running_var, self.norm.weight.data):
                tensor.uniform_(0.5, 1.5)
        self.double().eval()

    def _example(self):
        return torch.zeros(2, 6, 2) if isinstance(self.first, nn.Linear) else torch.zeros(2, 2, HEIGHT, WIDTH)

    def _laid_out(self, x):
        return self.layout(self.act(self.first(x)))

    def forward(self, x):
        return self.out(torch.tanh(self.fc(self.norm(self._laid_out(x)))))


def inputs(net, n=30, seed=0):
    shape = (n, *net._example().shape[1:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def watched(net, batch):
    layers = ds.watch(net, ["first"], example=batch)
    rule = ds.RowRule(most_patches=None)
    return layers, accumulate_stream(net, batch.split(8), layers, rows=rule, folding=ds.Folding(HoldoutRule(0)))


def selected(net, batch):
    layers, found = watched(net, batch)
    return layers, ds.spectral(layers.structure.group_of("first").joint(found))


def activations(net, batch):
    """(N, ..., C)"""
    with torch.no_grad():
        given = net.act(net.first(batch))
    return given if isinstance(net.first, nn.Linear) else given.movedim(1, -1)


def restored(net, record, batch):
    """What the network gives with restored channels after the activation, or after the norm of each feature."""
    restore, kept = (torch.from_numpy(np.array(one)) for one in (record.restore, record.kept))

    def hook(module, _arguments, given):
        if module is net.norm:
            pixels = given.reshape(len(given), PIXELS, CHANNELS)
            return (pixels[..., kept] @ restore.T).flatten(1)
        last = given if isinstance(net.first, nn.Linear) else given.movedim(1, -1)
        back = last[..., kept] @ restore.T
        return back if isinstance(net.first, nn.Linear) else back.movedim(-1, 1)

    handle = (net.act if isinstance(net.norm, nn.Identity) else net.norm).register_forward_hook(hook)
    with torch.no_grad():
        given = net(batch)
    handle.remove()
    return given


def carried(act):
    """An image whose channels are carried by a module of their number before they are laid out anew."""
    net = Net(LAYOUTS["columns first"])
    net.act = act.double().eval()
    for tensor in (*net.act.parameters(), *net.act.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5)
    return net


NETWORKS = {name: (lambda layout=layout: Net(layout)) for name, layout in LAYOUTS.items() if name != "twice"}
NETWORKS["normed before"] = lambda: Net(LAYOUTS["permute, flatten"], norm=True)
NETWORKS["normed as an image"] = lambda: carried(nn.BatchNorm2d(CHANNELS))
NETWORKS["a slope for each channel"] = lambda: carried(nn.PReLU(CHANNELS))
NETWORKS["tokens one after another"] = lambda: Net(lambda h: h.flatten(1), tokens=True)


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_a_selection_is_narrowed_exactly(build, tmp_path):
    net = build()
    batch, fresh = inputs(net), inputs(net, seed=1)
    layers, selection = selected(net, batch)
    for size in (2, 4, CHANNELS):
        record = selection.at_size(size)
        small = ds.compress(net, {"first": record}, example=layers.structure)
        assert small.fc.in_features == net.fc.in_features // CHANNELS * size
        with torch.no_grad():
            torch.testing.assert_close(small(fresh), restored(net, record, fresh), rtol=1e-9, atol=1e-9)
            loaded = ds.load(ds.save(small, tmp_path / str(size)), build)
            assert torch.equal(loaded(fresh), small(fresh))
            if size == CHANNELS:
                torch.testing.assert_close(small(fresh), net(fresh), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("build", [NETWORKS[name] for name in NETWORKS if name != "normed before"])
def test_moments_are_those_of_every_pixel(build):
    net = build()
    batch = inputs(net)
    layers, found = watched(net, batch)
    joint = layers.structure.group_of("first").joint(found)
    rows = activations(net, batch).reshape(-1, CHANNELS).numpy()
    assert (joint.count, joint.samples) == (len(rows), len(batch))
    np.testing.assert_allclose(joint.mean, rows.mean(0), rtol=1e-9)
    np.testing.assert_allclose(joint.scatter, (rows - rows.mean(0)).T @ (rows - rows.mean(0)), rtol=1e-9, atol=1e-9)


def test_channels_that_are_read_twice_have_the_moments_of_both():
    net = Net(LAYOUTS["twice"])
    batch = inputs(net)
    layers, selection = selected(net, batch)
    _, found = watched(net, batch)
    rows = activations(net, batch).reshape(-1, CHANNELS)
    both = torch.cat([rows, rows.tanh()]).numpy()
    np.testing.assert_allclose(layers.structure.group_of("first").joint(found).mean, both.mean(0), rtol=1e-9)
    record = selection.at_size(3)
    small = ds.compress(net, {"first": record}, example=layers.structure)
    assert small.fc.in_features == 2 * PIXELS * 3


def test_positions_are_drawn_and_held_out_as_those_of_an_image():
    """The same rows whatever the layout: what is drawn of a sample goes by its pixels' numbers."""
    found = {}
    for name in ("channels first", "permute, flatten"):
        net = Net(LAYOUTS[name])
        layers = ds.watch(net, ["first"], example=inputs(net))
        found[name] = accumulate_stream(net, [inputs(net)], layers, rows=ds.RowRule(most_patches=5))["fc@channels"]
    assert found["channels first"].same_bits(found["permute, flatten"])


def test_a_layer_after_the_other():
    net = Net(LAYOUTS["permute, flatten"])
    batch = inputs(net)
    whole = {"first": ds.LayerChoice(ds.Method.SPECTRAL, CHANNELS), "fc": ds.LayerChoice(ds.Method.SPECTRAL, 4)}
    done = ds.compress_sequentially(net, list(batch.split(10)), whole)
    with torch.no_grad():
        torch.testing.assert_close(done.network(batch), net(batch), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        (lambda h: h.permute(0, 2, 3, 1).flatten(1).roll(1, 1), "mixed with others"),
        (lambda h: h.flatten(1).flip(1), "mixed with others"),
        (lambda h: h.permute(0, 2, 3, 1).flatten(1)[:, :-2], "not in whole channels"),
        (lambda h: torch.cat([h.permute(0, 2, 3, 1).flatten(1), h.mean(1).flatten(1)], 1), "not in whole channels"),
        (
            lambda h: torch.cat([h.permute(0, 2, 3, 1).flatten(1), h.new_ones(len(h), 7)], 1),
            "not in whole channels",
        ),
        (lambda h: h.permute(0, 2, 3, 1).flatten(1).cumsum(1), "mixed with others|in another order"),
    ],
)
def test_what_is_in_no_order_is_refused_by_name(layout, reason):
    net = Net(layout)
    with pytest.raises(UnsupportedLayerError, match=rf"layer 'first': its channels cannot be pruned: .*({reason})"):
        Structure.of(net, inputs(net)).group_of("first")


@pytest.mark.parametrize(
    "layout",
    [
        lambda h: h.permute(0, 2, 3, 1).flatten(1)[:, : (PIXELS - 1) * CHANNELS],
        lambda h: h.permute(0, 2, 3, 1).reshape(-1, PIXELS * CHANNELS),
    ],
)
def test_what_counts_the_channels_is_found_when_they_are_narrowed(layout):
    net = Net(layout)
    kept = SelectedNodes(np.arange(2), np.eye(CHANNELS)[:, :2], np.zeros(CHANNELS), 1.0)
    with pytest.raises(UnsupportedLayerError, match=r"layer 'first': its channels cannot be pruned: "):
        ds.compress(net, {"first": kept}, example=inputs(net))
    assert "its channels cannot be pruned: " in ds.watch(net, ["first"], example=inputs(net))[0].unprunable


def test_a_reader_of_blocks_of_two_sizes_is_refused():
    net = Net(LAYOUTS["permute, flatten"])
    structure = Structure.of(net, inputs(net))
    for name, span in (("first", ChannelSpan("fc", 0, 1, PIXELS, CHANNELS)), ("fc", ChannelSpan("fc", 0, PIXELS))):
        structure.known[name] = ChannelGroup(CHANNELS, (name,), (), (ChannelReader(span, "fc@channels"),))
    with pytest.raises(UnsupportedLayerError, match="layer 'fc': 'fc' reads its channels in blocks of another size"):
        with_readers(ds.network.select_layers(net, ["first", "fc"]), structure)


@pytest.mark.parametrize("span", [ChannelSpan("x", 1, 2, 3, 9), ChannelSpan("x", 0, 1, 4, 3), ChannelSpan("x", 2, 3)])
@pytest.mark.parametrize("kind", [nn.Linear, lambda d, m: nn.Conv2d(d, m, (3, 2)), lambda d, m: nn.Conv1d(d, m, 3)])
def test_a_reader_does_with_fewer_channels_what_it_did_with_all(span, kind):
    """By hand: the old layer on features filled in place by place."""
    torch.manual_seed(0)
    width, kept = 29, np.array([0, 2])
    layer = kind(width, 4).double()
    restore, offset = np.random.default_rng(0).normal(size=(3, 2)), np.zeros(3)
    small = map_inputs(layer, span, restore, offset, bias=True)
    tail = () if isinstance(layer, nn.Linear) else (5, 5) if isinstance(layer, nn.Conv2d) else (6,)
    narrow = torch.randn(2, width - span.places(3).size // 3, *tail, dtype=torch.float64)
    whole = torch.zeros(2, width, *tail, dtype=torch.float64)
    others = [feature for feature in range(width) if feature not in span.places(3)]
    gone = set(span.places(3)[1].tolist())
    left = [feature for feature in range(width) if feature not in gone]
    whole[:, others] = narrow[:, [left.index(feature) for feature in others]]
    for channel in range(3):
        for number, feature in enumerate(span.places(3)[channel]):
            here = [left.index(int(span.places(3)[one][number])) for one in kept]
            whole[:, feature] = sum(float(restore[channel, j]) * narrow[:, here[j]] for j in range(2))
    with torch.no_grad():
        torch.testing.assert_close(small(narrow), layer(whole))
