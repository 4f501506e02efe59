"""Convolutions as matrices: their rows are the patches under the kernel, and a factor pair is two convolutions."""

import numpy as np
import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.layers.kinds import matrix_of, rows_entering, rows_leaving

pytestmark = [
    pytest.mark.filterwarnings("ignore::dalr_stream.errors.ParameterIncreaseWarning"),  # full rank, on purpose
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),  # of torch
]
CONVOLUTIONS = [
    nn.Conv2d(3, 7, 3, padding=1),
    nn.Conv2d(3, 7, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    nn.Conv2d(3, 7, 4, padding="same", dilation=2),
    nn.Conv2d(3, 7, 3, padding="valid", bias=False),
    nn.Conv2d(3, 7, 3, padding=2, padding_mode="reflect"),
    nn.Conv2d(3, 7, 3, padding=1, padding_mode="circular", stride=3),
    nn.Conv2d(3, 7, 1),
    nn.Conv1d(3, 7, 5, padding=2, stride=2),
    nn.Conv1d(3, 7, 2, padding="same"),
]


def images(module, count=2):
    size = (11, 9) if isinstance(module, nn.Conv2d) else (12,)
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("module", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_a_convolution_is_its_matrix_times_its_rows(module, layout):
    inputs = images(module)
    if layout == "channels last":
        inputs = inputs.movedim(1, -1).contiguous().movedim(-1, 1)
    rows = rows_entering("c", module, inputs).take(None)
    given = rows_leaving(module, module(inputs)).take(None)
    expected = rows @ matrix_of(module).T + (0 if module.bias is None else module.bias)
    assert torch.allclose(given, expected, atol=1e-5)


@pytest.mark.parametrize("module", CONVOLUTIONS, ids=str)
def test_chosen_rows_are_those_of_all_rows(module):
    rows = rows_entering("c", module, images(module))
    chosen = torch.tensor([0, 3, 5, len(rows.take(None)) - 1])
    assert torch.equal(rows.take(chosen), rows.take(None)[chosen])


@pytest.mark.parametrize("module", CONVOLUTIONS, ids=str)
def test_at_full_rank_the_pair_gives_what_the_convolution_gave(module):
    model = nn.Sequential(module, nn.ReLU()).eval()
    layers = ds.network.select_layers(model, ["0"])
    moments = accumulate_stream(model, [images(module, 20)], layers)["0"]
    factors = ds.dalr(*ds.network.weights_of(model, "0"), moments)
    small = ds.compress(model, {"0": factors.at_rank(factors.max_rank)})
    assert [type(part) for part in small[0]] == [type(module)] * 2
    assert torch.allclose(small(images(module)), model(images(module)), atol=1e-5)


def test_errors_from_moments_are_those_of_the_outputs():
    module = CONVOLUTIONS[0]
    model = nn.Sequential(module).eval()
    rule = ds.RowRule(most_patches=None)
    inputs = images(module, 30)
    moments = accumulate_stream(
        model, [inputs], ds.network.select_layers(model, ["0"]), rows=rule, folding=ds.Folding(ds.HoldoutRule(0.0))
    )["0"]
    assert (moments.samples, moments.count) == (30, 30 * 11 * 9)
    factors = ds.dalr(*ds.network.weights_of(model, "0"), moments)
    small = ds.compress(model, {"0": factors.at_rank(3)})
    with torch.no_grad():
        error = float(((model(inputs) - small(inputs)).double() ** 2).sum())
    assert error == pytest.approx(factors.errors(moments)[3], rel=1e-4)


def test_of_a_convolution_sixteen_patches_a_sample_are_taken_by_default_whatever_the_batches():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9 * 7, 5)).eval()
    inputs, layers = images(model[0], 10), ds.network.select_layers(model, ["0", "3"])
    one, other = (accumulate_stream(model, inputs.split(size), layers) for size in (10, 3))
    kept = one["0"].count + one.heldout["0"].count if one.heldout else one["0"].count
    assert kept == 10 * 16
    assert one["3"].count <= 10
    assert one["0"].same_bits(other["0"])


def test_chosen_patches_estimate_the_moments_of_all():
    """Unbiased: over seeds the mean of the estimate is the moment itself, within four standard errors."""
    model, inputs = nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), images(nn.Conv2d(3, 4, 3), 5)
    layers, none_apart = ds.network.select_layers(model, ["0"]), ds.Folding(ds.HoldoutRule(0.0))

    def second(rule):
        return accumulate_stream(model, [inputs], layers, rows=rule, folding=none_apart)["0"].second_moment

    found = np.array([second(ds.RowRule(most_patches=4, seed=seed)) for seed in range(60)])
    whole = second(ds.RowRule(most_patches=None))
    spread = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(found.mean(axis=0) - whole) <= 4.5 * spread).all()


@pytest.mark.parametrize("most", [1, 16])
def test_the_jackknife_over_shards_knows_of_the_choice_of_positions(most):
    """Its standard error is the spread over fresh pictures and positions: a shard holds whole pictures.

    Positions of one picture resemble each other here, so shards of single rows would see too small a spread at 16.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 6, 3)).eval()
    weights, layers = ds.network.weights_of(model, "0"), ds.network.select_layers(model, ["0"])
    rule, errors, bars = ds.Folding(ds.HoldoutRule(0.0), shards=8), [], []
    for seed in range(80):
        generator = torch.Generator().manual_seed(seed)
        shared, own = (torch.randn(100, 2, side, side, generator=generator) for side in (1, 10))
        pictures = 2 * shared + own.cumsum(-1) * torch.rand(100, 1, 1, 1, generator=generator)
        rows = ds.RowRule(most_patches=most, seed=seed)
        shards = accumulate_stream(model, pictures.split(50), layers, rows=rows, folding=rule).shards["0"]
        found = ds.numerics.jackknife_low_rank(shards, lambda moments: ds.dalr(*weights, moments))
        errors.append(found.training[2])
        bars.append(found.training_error[2])
    assert 0.75 < np.sqrt(np.mean(np.square(bars))) / np.std(errors, ddof=1) < 1.35


def test_a_saved_network_with_convolutions_loads_strictly(tmp_path):
    def build():
        return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv1d(3, 3, 1)).eval()

    model = build()
    first = nn.Sequential(model[0]).eval()
    layers = ds.network.select_layers(first, ["0"])
    factors = ds.dalr(*ds.network.weights_of(model, "0"), accumulate_stream(first, [images(model[0], 8)], layers)["0"])
    small = ds.compress(model, {"0": factors.at_rank(4)})
    again = ds.load(ds.save(small, tmp_path / "small"), build)
    assert torch.equal(again[0](images(model[0])), small[0](images(model[0])))
    assert small[0][0].stride == (2, 2)


def test_what_is_not_supported_is_named():
    depthwise = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))
    with pytest.raises(
        UnsupportedLayerError, match=r"nothing that is .*: '0' \(it is a depthwise Conv2d: each of its 4"
    ):
        ds.network.select_layers(depthwise, ["0"])
    unbatched = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    with pytest.raises(UnsupportedLayerError, match=r"must read samples x channels x 2 dimensions, got \(3, 8, 8\)"):
        accumulate_stream(unbatched, [torch.randn(3, 8, 8)], ds.network.select_layers(unbatched, ["0"]))


class Conv1D(nn.Module):
    """Stands for transformers.pytorch_utils.Conv1D, which has these attributes and this forward."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


def test_a_transposed_linear_layer_of_transformers_is_one(monkeypatch):
    monkeypatch.setattr(Conv1D, "__module__", "transformers.pytorch_utils")
    model = nn.Sequential(Conv1D(6, 10)).eval()
    tokens = torch.randn(4, 5, 10)
    (layer,) = ds.network.select_layers(model, ["0"])
    assert (layer.kind, layer.inputs, layer.outputs) == ("Conv1D", 10, 6)
    moments = accumulate_stream(model, [tokens], [layer])["0"]
    factors = ds.dalr(*ds.network.weights_of(model, "0"), moments)
    small = ds.compress(model, {"0": factors.at_rank(6)})
    assert torch.allclose(small(tokens), model(tokens), atol=1e-4)
