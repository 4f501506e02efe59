"""Convolutions towards the stream: through batch norm, at the positions drawn, group by group."""

import warnings

import numpy as np
import pytest
import torch
from sequential_twins import RELATIVE, twin_factors
from torch import nn
from torch.nn import functional

import dalr_stream as ds
from dalr_stream.errors import ParameterIncreaseWarning
from dalr_stream.numerics.rows.sampling import at_most

ALL = ds.Folding(ds.HoldoutRule(0.0))
OPTIMAL = "dalr_optimal_affine"


class Block(nn.Module):
    """A block that halves the picture, with batch norm before the addition and a convolution around it."""

    def __init__(self, groups=1):
        super().__init__()
        self.stem, self.relu = nn.Conv2d(2, 6, 3, padding=1), nn.ReLU()
        self.first = nn.Conv2d(6, 8, 3, 2, padding=1, bias=False)
        self.second, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=groups), nn.BatchNorm2d(8)
        self.around = nn.Conv2d(6, 8, 1, 2)
        self.last = nn.Linear(8, 4)

    def parts(self, x):
        """What `second` reads and gives, and the stream before it is added."""
        x = self.relu(self.stem(x))
        inner = self.relu(self.first(x))
        return inner, self.second(inner), self.around(x)

    def stream(self, x):
        _, given, before = self.parts(x)
        return self.norm(given) + before

    def forward(self, x):
        return self.last(self.relu(self.stream(x)).mean((2, 3)))


def made(groups=1):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Block(groups).double().eval()
        for parameter in (model.norm.weight, model.norm.running_var):
            nn.init.uniform_(parameter.detach(), 0.5, 2.0)
        nn.init.normal_(model.norm.running_mean)
    return model


def images(n=60):
    return torch.randn(n, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def compressed(model, x, sizes, *, target="stream", ridge=RELATIVE, **options):
    choices = {name: ds.LayerChoice(OPTIMAL, size, ridge) for name, size in sizes.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        return ds.compress_sequentially(model, x.split(16), choices, target=target, folding=ALL, **options)


@pytest.mark.parametrize("most", [None, 4])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_convolution_is_the_twins_on_the_rows_drawn(most, groups):
    """z' = z + (r - r~) / a, a the scale of the batch norm; in each group on its own."""
    model, x = made(groups), images()
    rule = ds.RowRule(most_patches=most, seed=3)
    small = compressed(model, x, {"stem": 2}, target="outputs", rows=rule).network
    found = compressed(model, x, {"stem": 2, "second": 3}, rows=rule).network
    keep = np.ones((60, 9), np.bool_)
    keep = torch.from_numpy(keep if most is None else at_most(keep, most, seed=3, first_sample=0))
    scale = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    with torch.no_grad():
        (_, z, r), (inner, _, r_now) = model.parts(x), small.parts(x)
        targets = (z + (r - r_now) / scale.reshape(-1, 1, 1)).flatten(2).mT[keep].numpy()
        patches = functional.unfold(inner, 3, padding=1).mT[keep].numpy()
        weight, bias = model.second.weight.detach().flatten(1).numpy(), model.second.bias.detach().numpy()
        width, outputs = patches.shape[1] // groups, 8 // groups
        expected = []
        for group in range(groups):
            rows, own = slice(group * width, (group + 1) * width), slice(group * outputs, (group + 1) * outputs)
            c, b = twin_factors(OPTIMAL, 3, weight[own], bias[own], patches[:, rows], targets[:, own])
            expected.append(functional.unfold(inner, 3, padding=1).mT.numpy()[..., rows] @ c.T + b)
        given = found.second(inner).flatten(2).mT.numpy()
    np.testing.assert_allclose(given, np.concatenate(expected, axis=-1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("last", ["second", "around"])
def test_of_all_convolutions_it_leaves_the_least_error_in_the_stream(last):
    model, x = made(), images()
    sizes = {"stem": 2, "first": 3, last: 8 if last == "second" else 6}
    every = {"rows": ds.RowRule(most_patches=None), "ridge": 0.0}
    errors = []
    for target in ("stream", "outputs"):
        small = compressed(model, x, sizes, target=target, **every).network
        with torch.no_grad():
            errors.append(float((model.stream(x) - small.stream(x)).norm()))
    assert errors[0] < errors[1]


def test_run_on_or_from_the_inputs_it_is_the_same(monkeypatch):
    """The convolution around the block is run after the block, and what it gives is the stream."""
    model, x = made(), images()
    sizes = {"stem": 2, "first": 3, "second": 3, "around": 2}
    found = compressed(model, x, sizes)
    monkeypatch.setattr("dalr_stream.engine.sequential.preparation.KEPT_BYTES", 0)
    again = compressed(model, x, sizes)
    assert found.layers == again.layers
    assert [outcome.target for outcome in found.layers.values()] == ["outputs", "outputs", "stream", "stream"]
    mine, its = found.network.state_dict(), again.network.state_dict()
    assert all(torch.equal(tensor, its[name]) for name, tensor in mine.items())


def test_a_selection_whose_reader_is_a_convolution_restores_nodes_and_says_so():
    model, x = made(), images()
    choices = {"stem": ds.LayerChoice(OPTIMAL, 2), "first": ds.LayerChoice("spectral", 5)}
    choices["second"] = ds.LayerChoice(OPTIMAL, 3)
    found = ds.compress_sequentially(model, x.split(16), choices, target="stream", folding=ALL)
    assert [outcome.target for outcome in found.layers.values()] == ["outputs", "outputs", "stream"]
    assert found.network.second[0].in_channels == 5
