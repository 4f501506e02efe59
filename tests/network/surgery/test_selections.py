"""Selections in networks of every make, against the original with what its readers read restored by hooks."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.errors import InvalidInputError
from dalr_stream.network.layers.kinds import CONVOLUTIONS, matrix_of, why_not
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.structure.readers import with_readers
from dalr_stream.network.surgery.compress import parameter_count
from dalr_stream.numerics.statistics.channels import ChannelGroup, channel_moments
from dalr_stream.numerics.statistics.moments import Moments

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


class Block(nn.Module):
    """conv - norm - relu - conv - norm, added to a shortcut."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        h = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)), inplace=True)))
        return functional.relu(h + (x if self.shortcut is None else self.shortcut(x)))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.block1, self.block2, self.block3 = Block(6, 6, 1), Block(6, 10, 2), Block(10, 10, 1)
        self.fc = nn.Linear(10, 3)

    def forward(self, x):
        h = functional.max_pool2d(torch.relu(self.norm(self.stem(x))), 2)
        return self.fc(functional.adaptive_avg_pool2d(self.block3(self.block2(self.block1(h))), 1).flatten(1))


class Plain(nn.Module):
    """VGG in small: convolutions, pooling, a flattened image, linear layers."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 6, 3, stride=2, padding="valid")
        self.fc1, self.fc2 = nn.Linear(6 * 9, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = functional.avg_pool2d(torch.relu(self.conv2(torch.relu(self.conv1(x)))), 2, ceil_mode=True)
        return self.fc2(functional.dropout(torch.relu(self.fc1(h.flatten(1))), training=self.training))


class Dense(nn.Module):
    """Every layer reads all before it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(9, 6, 1)
        self.norm, self.deep = nn.BatchNorm2d(9), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.fc = nn.Linear(6 * 144, 3)

    def forward(self, x):
        a = torch.relu(self.a(x))
        h = torch.cat([a, torch.relu(self.b(a))], 1)
        return self.fc(torch.relu(self.deep(self.c(torch.relu(self.norm(h))))).flatten(1))


class Sequence(nn.Module):
    """One-dimensional convolutions, and a linear layer at every position."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv1d(2, 6, 5, dilation=2), nn.BatchNorm1d(6), nn.Conv1d(6, 4, 3, bias=False)
        self.gate, self.up, self.down = nn.Linear(4, 7), nn.Linear(4, 7, bias=False), nn.Linear(7, 4)

    def forward(self, x):
        h = self.b(torch.relu(self.norm(self.a(x[:, :, 0])))).transpose(1, 2)
        return h + self.down(functional.silu(self.gate(h)) * self.up(h))


NETWORKS = {
    Plain: ["conv1", "conv2", "fc1"],
    Residual: ["block1.conv1", "block1.conv2", "block2.conv1", "block3.conv2"],
    Dense: ["a", "b", "c"],
    Sequence: ["a", "gate"],
}
CASES = [(kind, layer) for kind, layers in NETWORKS.items() for layer in layers]


def build(kind):
    torch.manual_seed(1)
    net = kind().double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                tensor.data.uniform_(0.5, 1.5)
    return net.eval()


def images(kind, n=40, seed=0):
    shape = (n, 2, 1, 25) if kind is Sequence else (n, 2, 12, 12)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spec_of(structure, layer):
    return with_readers(ds.network.select_layers(structure.model, [layer]), structure)


def solved(net, layer, batch, **options):
    """Moments as the engine takes them, every position of them, and a spectral selection of those."""
    structure = Structure.of(net, batch[:3])
    found = moments_of(net, batch, spec_of(structure, layer))
    group = structure.group_of(layer)
    return ds.spectral(group.joint(found), **options)


def moments_of(net, batch, layers, most_patches=None):
    rule, folding = ds.RowRule(most_patches=most_patches), ds.Folding(ds.HoldoutRule(0))
    return accumulate_stream(net, batch.split(16), layers, rows=rule, folding=folding)


def with_restored(net, replaced, batch):
    """What the original gives where each reader is given restore phi[kept] + offset in place of phi."""
    structure = Structure.of(net, batch[:3])

    def hook(span, record):
        def restored(module, arguments):
            tensor = arguments[0]
            last = tensor.movedim(1, -1).clone() if isinstance(module, CONVOLUTIONS) else tensor.clone()
            stop = span.start + record.restore.shape[0] * span.block
            phi = last[..., span.start : stop].unflatten(-1, (-1, span.block))
            kept = phi[..., torch.from_numpy(record.kept), :]
            back = torch.einsum("ck,...kb->...cb", torch.from_numpy(record.restore.copy()), kept)
            back = back + torch.from_numpy(record.offset.copy())[:, None]
            last[..., span.start : stop] = back.flatten(-2)
            return (last.movedim(-1, 1) if isinstance(module, CONVOLUTIONS) else last,)

        return restored

    groups = {layer: structure.group_of(layer) for layer in replaced}  # all of them before anything is hooked
    hooks = [
        net.get_submodule(reader.span.layer).register_forward_pre_hook(hook(reader.span, record))
        for layer, record in replaced.items()
        for reader in groups[layer].readers
    ]
    try:
        return run(net, batch)
    finally:
        for one in hooks:
            one.remove()


def run(net, batch):
    with torch.no_grad():
        return net(batch).numpy()


@pytest.mark.parametrize(("kind", "layer"), CASES)
def test_a_selection_gives_what_the_restored_channels_would(kind, layer):
    net, batch = build(kind), images(kind)
    record = solved(net, layer, batch).at_size(3)
    small = ds.compress(net, {layer: record}, example=batch)
    fresh = images(kind, seed=1)
    np.testing.assert_allclose(run(small, fresh), with_restored(net, {layer: record}, fresh), **CLOSE)
    assert parameter_count(small) < parameter_count(net)
    assert {type(module) for module in small.modules()} <= {type(module) for module in net.modules()}


@pytest.mark.parametrize("kind", NETWORKS)
def test_all_selections_of_a_network_together(kind):
    net, batch = build(kind), images(kind)
    records = {layer: solved(net, layer, batch).at_size(3) for layer in NETWORKS[kind]}
    fresh = images(kind, seed=1)
    expected = with_restored(net, records, fresh)
    for layers in (records, dict(reversed(records.items()))):
        np.testing.assert_allclose(run(ds.compress(net, layers, example=batch), fresh), expected, **CLOSE)


@pytest.mark.parametrize("kind", NETWORKS)
def test_full_size_gives_the_network_back_and_plans_load(kind, tmp_path):
    net, batch = build(kind), images(kind)
    whole, small = {}, {}
    for layer in NETWORKS[kind]:
        selection = solved(net, layer, batch)
        whole[layer], small[layer] = selection.at_size(selection.nodes), selection.at_size(2)
    np.testing.assert_allclose(
        run(ds.compress(net, whole, example=batch), batch), run(net, batch), rtol=1e-7, atol=1e-7
    )
    made = ds.compress(net, small, example=batch)
    ds.save(made, tmp_path / "small")
    again = ds.load(tmp_path / "small", lambda: build(kind))
    assert np.array_equal(run(again, batch), run(made, batch))


@pytest.mark.filterwarnings("ignore::dalr_stream.errors.ParameterIncreaseWarning")  # full rank is the point here
@pytest.mark.parametrize("kind", NETWORKS)
def test_factor_pairs_and_selections_of_the_same_network(kind):
    """Every layer a pair at full rank, which changes nothing, and the selections narrow the pairs."""
    net, batch = build(kind), images(kind)
    pairs = {}
    for layer, module in net.named_modules():
        if layer not in NETWORKS[kind] and why_not(module) is None:
            weight, bias = ds.network.weights_of(net, layer)
            pairs[layer] = ds.truncated_svd(weight, bias).at_rank(min(weight.shape))
    records = {layer: solved(net, layer, batch).at_size(4) for layer in NETWORKS[kind]}
    small = ds.compress(net, {**records, **pairs}, example=batch)
    np.testing.assert_allclose(run(small, batch), with_restored(net, records, batch), rtol=1e-7, atol=1e-7)


def test_moments_are_of_the_channels_at_every_position():
    net, batch = build(Plain), images(Plain)
    structure = Structure.of(net, batch)
    layers = spec_of(structure, "conv1") + spec_of(structure, "conv2")
    assert [layer.stream for layer in layers] == ["conv1", "conv2@channels", "conv2", "fc1@channels"]
    found = moments_of(net, batch, layers)
    with torch.no_grad():
        h = torch.relu(net.conv1(batch))
        flat = functional.avg_pool2d(torch.relu(net.conv2(h)), 2, ceil_mode=True)
    for stream, tensor in (("conv2@channels", h), ("fc1@channels", flat)):
        expected = Moments.of(tensor.movedim(1, -1).reshape(-1, tensor.shape[1]).numpy())
        assert (found[stream].count, found[stream].samples) == (expected.count, 40)
        np.testing.assert_allclose(found[stream].gram, expected.gram, rtol=1e-12)


def test_channels_of_an_image_are_sampled_by_default():
    net, batch = build(Plain), images(Plain)
    found = moments_of(net, batch, spec_of(Structure.of(net, batch), "conv1"), most_patches=16)
    assert found["conv2@channels"].count == 16 * 40


def test_tied_layers_are_decided_by_all_who_read_them():
    net, batch = build(Residual), images(Residual)
    structure = Structure.of(net, batch)
    group = structure.group_of("block3.conv2")
    assert group == structure.group_of("block2.shortcut.0")
    assert group.producers == ("block2.conv2", "block2.shortcut.0", "block3.conv2")
    assert [reader.span.layer for reader in group.readers] == ["block3.conv1", "fc"]
    rows = [np.random.default_rng(seed).standard_normal((20, 10)) for seed in (0, 1)]
    joint = channel_moments(group.readers, 10, [Moments.of(one) for one in rows])
    np.testing.assert_allclose(joint.gram, Moments.of(np.concatenate(rows)).gram, rtol=1e-12)
    assert (joint.count, joint.samples) == (40, 20)


def test_tied_layers_cannot_be_selected_twice():
    net, batch = build(Residual), images(Residual)
    record = solved(net, "block3.conv2", batch).at_size(5)
    with pytest.raises(InvalidInputError, match=r"'block2.conv2': its channels are those of 'block3.conv2', tied"):
        ds.compress(net, {"block3.conv2": record, "block2.conv2": record}, example=batch)


def test_tied_layers_are_watched_once():
    net, batch = build(Residual), images(Residual)
    structure = Structure.of(net, batch)
    layers = with_readers(ds.network.select_layers(net, ["block2.conv2", "block3.conv2"]), structure)
    known = {layer.name: layer for layer in layers if layer.side is ds.numerics.Side.INPUTS}
    assert isinstance(known["block2.conv2"].group, ChannelGroup)
    assert known["block3.conv2"].group is None
    assert "its channels are those of 'block2.conv2'" in known["block3.conv2"].unprunable


def test_an_offset_is_folded_where_nothing_is_padded_and_refused_elsewhere():
    net, batch = build(Plain), images(Plain)
    record = solved(net, "conv1", batch, affine=True).at_size(3)  # conv2 pads nothing
    small = ds.compress(net, {"conv1": record}, example=batch)
    np.testing.assert_allclose(run(small, batch), with_restored(net, {"conv1": record}, batch), **CLOSE)
    net.conv2.padding = (1, 1)
    net.fc1 = nn.Linear(6 * 9, 8).double()
    with pytest.raises(InvalidInputError, match="layer 'conv2': an offset cannot be folded into a convolution"):
        ds.compress(net, {"conv1": record}, example=batch)


def test_a_selection_needs_an_example():
    net, batch = build(Plain), images(Plain)
    with pytest.raises(InvalidInputError, match=r"layer 'conv1': which layers are narrowed .*, example=batch"):
        ds.compress(net, {"conv1": solved(net, "conv1", batch).at_size(3)})


def test_features_of_moments_apart():
    rows = np.random.default_rng(0).standard_normal((30, 6)) + 3
    part, expected = Moments.of(rows).features_between(2, 5), Moments.of(rows[:, 2:5])
    np.testing.assert_allclose(part.scatter, expected.scatter, rtol=1e-12)
    for name in ("mean", "max_abs", "maximum", "nonzero"):
        np.testing.assert_allclose(getattr(part, name), getattr(expected, name), rtol=1e-12)
    assert Moments.of(rows).features_between(0, 6).count == 30
    with pytest.raises(InvalidInputError, match=r"features must lie in 0..6, got 4..8"):
        Moments.of(rows).features_between(4, 8)


def test_moments_of_another_width_are_refused():
    group = Structure.of(build(Plain), images(Plain)).group_of("conv1")
    other = Moments.of(np.ones((3, 4)))
    with pytest.raises(InvalidInputError, match="layer 'conv2': its stream 'conv2@channels' has 4 features"):
        channel_moments(group.readers, group.channels, [other])
    assert matrix_of(build(Plain).conv1).shape[0] == dataclasses.asdict(group)["channels"]
