"""Convolutions towards the stream: through batch norm, at the positions drawn, group by group."""

import warnings

import numpy as np
import pytest
import torch
from notes import Notes
from sequential_twins import RELATIVE, twin_factors
from torch import nn
from torch.nn import functional

import dalr_stream as ds
from dalr_stream.engine.sequential.pass_plan import PassesOf, plan_passes
from dalr_stream.errors import MemoryLimitError, ParameterIncreaseWarning, UnsupportedLayerError
from dalr_stream.network.structure.graph import Structure
from dalr_stream.numerics.methods import Method
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
    monkeypatch.setattr("dalr_stream.engine.sequential.pass_plan.KEPT_BYTES", 0)
    again = compressed(model, x, sizes)
    assert found.layers == again.layers
    assert [outcome.target for outcome in found.layers.values()] == ["outputs", "outputs", "stream", "stream"]
    mine, its = found.network.state_dict(), again.network.state_dict()
    assert all(torch.equal(tensor, its[name]) for name, tensor in mine.items())


def twin_of_taps(nodes, weight, patches, targets, ridge):
    """A reader of t taps of each node as one of those kept, (m, k, t): ridge regression towards W A_J, centred."""
    m, channels = len(weight), len(nodes.restore)
    start = np.einsum("mct,ck->mkt", weight.reshape(m, channels, -1), nodes.restore).reshape(m, -1)
    kept = patches.reshape(len(patches), channels, -1)[:, nodes.kept].reshape(len(patches), -1)
    shift = ridge * np.mean(patches**2)
    p, z = kept - kept.mean(0), targets - targets.mean(0)
    own = p.T @ p / len(p) + shift * np.eye(p.shape[1])
    solved = np.linalg.solve(own, (z.T @ p / len(p) + shift * start).T).T
    return solved, targets.mean(0) - solved @ kept.mean(0)


@pytest.mark.parametrize("most", [None, 4])
def test_a_convolution_that_reads_selected_nodes_is_solved_towards_the_stream_as_the_twins_is(most):
    model, x = made(), images()
    rule = ds.RowRule(most_patches=most, seed=3)
    small = compressed(model, x, {"stem": 2}, target="outputs", rows=rule).network
    choices = {"stem": ds.LayerChoice(OPTIMAL, 2, RELATIVE), "first": ds.LayerChoice("spectral", 5, restore_ridge=1e-2)}
    found = ds.compress_sequentially(model, x.split(16), choices, target="stream", folding=ALL, rows=rule)
    assert [str(outcome.target) for outcome in found.layers.values()] == ["outputs", "stream"]
    keep = np.ones((60, 9), np.bool_)
    keep = torch.from_numpy(keep if most is None else at_most(keep, most, seed=3, first_sample=0))
    scale = (model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()).reshape(-1, 1, 1)
    with torch.no_grad():
        (_, z, r), (inner, _, r_now) = model.parts(x), small.parts(x)
        targets = (z + (r - r_now) / scale).flatten(2).mT[keep].numpy()
        patches = functional.unfold(inner, 3, padding=1).mT[keep].numpy()
    taps = patches.reshape(len(patches), 8, 9).transpose(0, 2, 1).reshape(-1, 8)
    nodes = ds.spectral(ds.Moments.of(taps)).at_size(5, ridge=1e-2)
    weight, bias = model.second.weight.detach().flatten(1).numpy(), model.second.bias.detach().numpy()
    solved, shift = twin_of_taps(nodes, weight, patches, targets, 1e-2)
    second = found.network.second
    assert second.in_channels == 5
    np.testing.assert_allclose(second.weight.detach().flatten(1).numpy(), solved, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(second.bias.detach().numpy(), shift, rtol=1e-6, atol=1e-8)
    error = found.layers["first"].error
    with torch.no_grad():
        gap = targets - patches.reshape(len(patches), 8, 9)[:, nodes.kept].reshape(len(patches), -1) @ solved.T - shift
    assert error == pytest.approx(np.linalg.norm(gap) / np.linalg.norm(targets - bias), rel=1e-6)


def test_it_leaves_less_error_in_the_stream_than_restored_nodes_do():
    model, x = made(), images()
    choices = {"stem": ds.LayerChoice(OPTIMAL, 2), "first": ds.LayerChoice("spectral", 5)}
    errors = []
    for target in ("stream", "outputs"):
        small = ds.compress_sequentially(model, x.split(16), choices, target=target, folding=ALL).network
        with torch.no_grad():
            errors.append(float((model.stream(x) - small.stream(x)).norm()))
    assert errors[0] < errors[1]


def test_pruning_sees_no_target_though_what_reads_its_nodes_is_solved_towards_one():
    model, x = made(), images()
    choices = {"stem": ds.LayerChoice(OPTIMAL, 2), "first": ds.LayerChoice("prune_max", 5)}
    choices["second"] = ds.LayerChoice(OPTIMAL, 3)
    found = ds.compress_sequentially(model, x.split(16), choices, target="stream", folding=ALL)
    assert [str(outcome.target) for outcome in found.layers.values()] == ["outputs", "outputs", "stream"]


def test_run_on_kept_or_from_the_inputs_a_refitted_convolution_is_the_same(monkeypatch, tmp_path):
    model, x = made(), images()
    choices = {"stem": ds.LayerChoice(OPTIMAL, 2), "first": ds.LayerChoice("spectral", 5)}
    choices |= {"second": ds.LayerChoice(OPTIMAL, 3), "around": ds.LayerChoice(OPTIMAL, 4)}
    limited = ds.Folding(ds.HoldoutRule(0.0), memory_limit_bytes=2**28)

    def done(**options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ParameterIncreaseWarning)
            options = {"folding": ALL, **options}
            return ds.compress_sequentially(model, x.split(16), choices, target="stream", **options)

    found = done()
    assert [str(outcome.target) for outcome in found.layers.values()] == ["outputs", "stream", "stream", "stream"]
    others = [done(folding=limited), done(store=tmp_path / "s"), done(store=tmp_path / "s")]
    monkeypatch.setattr("dalr_stream.engine.sequential.pass_plan.KEPT_BYTES", 0)
    others.append(done())
    for other in others:
        assert other.layers == found.layers
        mine, its = found.network.state_dict(), other.network.state_dict()
        assert all(torch.equal(tensor, its[name]) for name, tensor in mine.items())


class Flattened(nn.Module):
    """Channels that a linear layer reads as a flattened image, and writes into a stream."""

    def __init__(self, last=False):
        super().__init__()
        self.stem, self.conv = nn.Linear(8, 8), nn.Conv2d(2, 6, 2)
        self.down, self.head, self.last = nn.Linear(6, 8), nn.Linear(8, 3), last

    def forward(self, x):
        x = self.stem(x)
        image = torch.relu(self.conv(x.reshape(-1, 2, 2, 2)))
        return self.head(x + self.down(image.permute(0, 2, 3, 1).flatten(1) if self.last else image.flatten(1)))


class Wide(Flattened):
    """The same with four pixels of each channel."""

    def __init__(self, last=False):
        super().__init__(last)
        self.conv, self.down = nn.Conv2d(2, 6, 1), nn.Linear(24, 8)


def test_a_flattened_image_is_solved_towards_the_stream_and_one_with_channels_last_is_said():
    x, choices = (
        torch.randn(200, 8).double(),
        {"stem": ds.LayerChoice(OPTIMAL, 4), "conv": ds.LayerChoice("spectral", 3)},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, turned = Wide().double().eval(), Wide(last=True).double().eval()
    errors = {}
    for target in ("outputs", "stream"):
        found = ds.compress_sequentially(model, x.split(50), choices, target=target, folding=ALL)
        assert [str(outcome.target) for outcome in found.layers.values()] == ["outputs", target]
        assert found.network.down.in_features == 12
        with torch.no_grad():
            errors[target] = float((found.network(x) - model(x)).norm())
    assert errors["stream"] < errors["outputs"]
    notes, both = Notes(), {**choices, "down": ds.LayerChoice(OPTIMAL, 4)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        ds.compress_sequentially(turned, x.split(50), both, target="stream", folding=ALL, progress=notes)
    assert any("'down', which reads its nodes, reads them with other nodes' in between" in line for line in notes.said)


def test_where_nothing_can_be_mended_it_is_refused_with_the_reason():
    model, x = Wide(last=True).double().eval(), torch.randn(200, 8).double()
    with pytest.raises(UnsupportedLayerError, match="'conv': 'down', which reads its nodes, reads them with other"):
        ds.compress_sequentially(model, x.split(50), {"conv": ds.LayerChoice("spectral", 3)}, target="stream")


class ManyTaps(nn.Module):
    """A block whose second convolution reads many taps of few channels."""

    def __init__(self):
        super().__init__()
        self.stem, self.first = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 16, 1)
        self.second = nn.Conv2d(16, 8, 9, padding=4)

    def forward(self, x):
        x = self.stem(x)
        return x + self.second(torch.relu(self.first(x)))


def test_all_taps_of_what_is_solved_count_against_the_memory_limit_before_any_pass():
    model, x = ManyTaps().eval(), torch.randn(32, 2, 12, 12)
    choices = {"stem": ds.LayerChoice(OPTIMAL, 1), "first": ds.LayerChoice("spectral", 5)}
    limit = ds.Folding(ds.HoldoutRule(0.0), workers=ds.Threads(1), memory_limit_bytes=40 * 2**20)
    ds.compress_sequentially(model, x.split(16), choices, folding=limit)
    with pytest.raises(MemoryLimitError, match=r"first|second"):
        ds.compress_sequentially(model, x.split(16), choices, target="stream", folding=limit)
    planned = PassesOf(model, [["stem"], ["first"]], {"stem": (Method(OPTIMAL),), "first": (Method.SPECTRAL,)},
                       Structure.of(model, x[:2]), ["first"])  # fmt: skip
    assert max(load.features for load in plan_passes(planned, ALL).passes[1].folding.layers) == 16 * 81 + 8
