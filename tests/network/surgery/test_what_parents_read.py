"""A replaced layer still answers what its parent reads of it; it is made by torch's own classes."""

import numpy as np
import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.network.layers.spec import weights_of
from dalr_stream.numerics.lowrank.factors import LowRankLayer
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.selection.greedy import spectral
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.streaming.folding import Folding

ALL_ROWS = Folding(holdout=HoldoutRule(0.0))
SETTINGS = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "in_channels", "out_channels")


def full_rank(net, layer):
    """The factor pair that is the layer itself."""
    weight, bias = weights_of(net, layer)
    bias = np.zeros(len(weight)) if bias is None else bias
    outputs, inputs = weight.shape
    factors = (np.eye(inputs), weight) if inputs <= outputs else (weight, np.eye(outputs))
    return LowRankLayer(*(part.astype(float) for part in (*factors, bias)))


def same_outputs(net, small, x):
    with torch.no_grad():
        torch.testing.assert_close(small(x), net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_pair_has_the_settings_of_the_linear_layer(bias, dtype):
    net = nn.Sequential(nn.Linear(5, 7, bias=bias, dtype=dtype))
    pair = ds.compress(net, {"0": ds.truncated_svd(*weights_of(net, "0")).at_rank(2)})[0]
    assert (pair.in_features, pair.out_features) == (5, 7)
    assert (pair.weight.dtype, tuple(pair.weight.shape), pair.weight.device) == (dtype, (7, 5), torch.device("cpu"))
    assert pair.weight.isnan().all()
    assert pair.weight.untyped_storage().nbytes() <= 8
    assert (pair.bias is None) == (not bias)
    assert not hasattr(pair, "stride")
    assert pair.half().weight.dtype == torch.float16
    assert set(pair.state_dict()) == {"0.weight", "1.weight", *(["1.bias"] if bias else [])}


def test_a_pair_has_the_settings_of_the_convolution():
    conv = nn.Conv2d(4, 6, (3, 5), stride=2, padding=1, dilation=2, groups=2, padding_mode="reflect")
    net = nn.Sequential(conv).eval()
    groups = {name: ds.truncated_svd(*weights_of(net, name)).at_rank(2) for name in ("0@group0", "0@group1")}
    pair = ds.compress(net, groups)[0]
    assert {name: getattr(pair, name) for name in SETTINGS} == {name: getattr(conv, name) for name in SETTINGS}
    assert pair.weight.shape == conv.weight.shape
    assert not hasattr(pair, "in_features")


class ReadsSettings(nn.Module):
    """What T5, ViT and Whisper do with their layers beside calling them."""

    def __init__(self):
        super().__init__()
        self.conv, self.wo = nn.Conv1d(3, 6, 3, stride=2, padding=1), nn.Linear(6, 4)

    def forward(self, x):
        x = self.conv(x.to(self.conv.weight.dtype)[..., : 4 * self.conv.stride[0]])
        assert self.wo.in_features == x.shape[1] == self.conv.out_channels
        return self.wo(x.mT.to(dtype=self.wo.weight.dtype, device=self.wo.weight.device))


@pytest.mark.parametrize("layers", [["conv"], ["wo"], ["conv", "wo"]])
@pytest.mark.parametrize("example", [None, torch.randn(2, 3, 9)])
def test_a_parent_that_reads_settings_works_as_before(layers, example):
    net = ReadsSettings().eval()
    small = ds.compress(net, {layer: full_rank(net, layer) for layer in layers}, example=example)
    same_outputs(net, small, torch.randn(2, 3, 9))


def test_a_network_whose_parents_read_settings_is_exported():
    net = ReadsSettings().eval()
    small = ds.compress(net, {layer: full_rank(net, layer) for layer in ("conv", "wo")})
    same_outputs(net, torch.export.export(small, (torch.randn(2, 3, 9),)).module(), torch.randn(2, 3, 9))


class Downsampling(nn.Conv2d):
    """A constructor with defaults of its own."""

    def __init__(self, inputs, outputs, kernel_size, **options):
        super().__init__(inputs, outputs, kernel_size, **{"padding": 1, "stride": 2, **options})


class Fixed(nn.Conv1d):
    """A constructor that takes something else."""

    def __init__(self, width):
        super().__init__(width, width, 3, padding=1)


class Wide(nn.Linear):
    def __init__(self):
        super().__init__(6, 5)


@pytest.mark.parametrize(
    ("net", "layer", "shape"),
    [
        (nn.Sequential(Downsampling(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3)), "0", (2, 2, 11, 11)),
        (nn.Sequential(Downsampling(2, 5, 3, bias=False), nn.ReLU(), nn.Conv2d(5, 4, 3)), "0", (2, 2, 11, 11)),
        (nn.Sequential(Fixed(4), nn.ReLU(), nn.Conv1d(4, 3, 1)), "0", (2, 4, 9)),
        (nn.Sequential(Wide(), nn.ReLU(), nn.Linear(5, 3)), "0", (2, 6)),
    ],
)
def test_layers_of_a_subclass_are_rebuilt_by_torchs_own_class(net, layer, shape):
    """Through the subclass's constructor the pair would pad twice, or not be made at all."""
    net.eval()
    x = torch.randn(shape)
    same_outputs(net, ds.compress(net, {layer: full_rank(net, layer)}), x)
    with torch.no_grad():
        read = net[:2](x)
    channels = read.movedim(1, -1).reshape(-1, read.shape[1]).double().numpy()
    every = spectral(Moments.of(channels)).at_size(channels.shape[1])
    small = ds.compress(net, {layer: every}, example=x)
    same_outputs(net, small, x)


@pytest.mark.parametrize("kind", [Downsampling(4, 6, 3, groups=2), Fixed(4)])
def test_rows_and_groups_of_a_subclass_are_those_of_its_convolution(kind):
    net = nn.Sequential(kind).eval()
    spatial = (9,) * (kind.weight.ndim - 2)
    x = torch.randn(3, 4, *spatial)
    layers = ds.network.select_layers(net, ["0"])
    moments = accumulate_stream(net, [x], layers, rows=ds.RowRule(most_patches=None), folding=ALL_ROWS)
    with torch.no_grad():
        outputs = (net(x) - kind.bias.reshape(-1, *(1 for _ in spatial))).movedim(1, -1).reshape(-1, kind.out_channels)
    energies = [
        np.trace(weights_of(net, spec.name)[0] @ moments[spec.name].second_moment @ weights_of(net, spec.name)[0].T)
        for spec in layers
    ]
    np.testing.assert_allclose(sum(energies), float((outputs.double() ** 2).sum(1).mean()), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # the original, under a padding mask
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("layer", ["layers.0.linear1", "layers.1.linear2"])
def test_a_transformer_encoder_calls_its_replaced_layers(tmp_path, layer, nested, padded):
    """Its fused kernel reads their weights without calling them, and takes nested tensors under a padding mask."""
    torch.manual_seed(0)

    def build():
        one = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        return nn.TransformerEncoder(one, 2, enable_nested_tensor=nested).eval()

    net, x = build(), torch.randn(3, 4, 8)
    mask = torch.arange(4) >= torch.tensor([[4], [3], [2]])
    options = {"src_key_padding_mask": mask} if padded else {}
    batch = {"src": x, **options}
    small = ds.compress(net, {layer: full_rank(net, layer)}, example=batch)
    kept = ~mask if padded else torch.ones_like(mask)
    with torch.no_grad():
        torch.testing.assert_close(small(x, **options)[kept], net(x, **options)[kept], rtol=1e-5, atol=1e-5)
    ds.save(small, tmp_path / "small")
    loaded = ds.load(tmp_path / "small", build)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x, **options), small(x, **options))
    layers = ds.network.select_layers(net, [layer])
    moments = accumulate_stream(net, [batch], layers, rows=ds.RowRule(mask=lambda _batch: kept), folding=ALL_ROWS)
    assert moments[layer].count == int(kept.sum())


def test_a_compiled_network_is_captured_and_compressed_as_it_is():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.randn(20, 6)
    expected = accumulate_stream(net, [x], ds.network.select_layers(net, ["2"]))["2"]
    net.compile(backend="eager")
    moments = accumulate_stream(net, [x], ds.network.select_layers(net, ["2"]))["2"]
    np.testing.assert_array_equal(moments.scatter, expected.scatter)
    wrapped = torch.compile(net, backend="eager")
    layers = ds.network.select_layers(wrapped, ["*2"])
    np.testing.assert_array_equal(accumulate_stream(wrapped, [x], layers)[layers[0].name].scatter, expected.scatter)
    with torch.no_grad():
        torch.testing.assert_close(ds.compress(net, {"2": full_rank(net, "2")}, example=x)(x), net(x))
