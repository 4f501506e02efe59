"""Convolutions layer after layer: both networks' patches at the same positions, residual nets, groups, selections."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import dalr_stream as ds
from dalr_stream.errors import InvalidInputError, ParameterIncreaseWarning, RankError
from dalr_stream.numerics.rows.sampling import at_most

ALL = ds.Folding(ds.HoldoutRule(0.0))
EVERY_PATCH = ds.RowRule(most_patches=None)
DALR = "dalr_anchored_affine"


def made(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval()


def images(n=200, channels=2, side=6, seed=1):
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    )


class Residual(nn.Module):
    """A block that halves the picture, with a 1 x 1 convolution around it."""

    def __init__(self):
        super().__init__()
        self.stem, self.relu = nn.Conv2d(2, 6, 3, padding=1), nn.ReLU()
        self.first, self.norm = nn.Conv2d(6, 8, 3, 2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.around = nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.Conv2d(6, 8, 1, 2)
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        x = self.relu(self.stem(x))
        inner = self.second(self.relu(self.norm(self.first(x))))
        return self.last(self.relu(inner + self.around(x)).mean((2, 3)))


def grouped():
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(6, 4, 3)
    )


def in_turn(model, x, choices, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterIncreaseWarning)  # full rank, on purpose
        return ds.compress_sequentially(model, x.split(64), choices, **options)


@pytest.mark.parametrize("rule", [ds.RowRule(most_patches=5, seed=2), ds.RowRule(), ds.RowRule(most_per_sample=3)])
def test_what_a_convolution_reads_and_gives_is_taken_at_the_same_positions(rule):
    model, x = made(convolutional), images(40)
    layers = ds.network.select_layers(model, ["0", "2"])
    found = ds.accumulate_cross(model, model, x.split(16), layers, rows=rule, folding=ALL)
    most = min(limit for limit in (rule.most_per_sample, rule.most_patches) if limit is not None)
    for name in ("0", "2"):
        cross, (weight, _) = found[name], ds.network.weights_of(model, name)
        assert cross.count == 40 * most
        np.testing.assert_allclose(cross.cross_scatter, weight @ cross.inputs.scatter, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["first", "second", "around"])
def test_two_networks_rows_are_those_of_the_twin_at_the_positions_drawn(name):
    """Strides, padding, dilation and 1 x 1: patches of the compressed network's input, outputs of the original's."""
    model, x = made(Residual), images(50)
    small = in_turn(model, x, {"stem": ds.LayerChoice(DALR, 2)}).network
    rule = ds.RowRule(most_patches=4, seed=3)
    layers = ds.network.select_layers(model, [name])
    found = ds.accumulate_cross(model, small, x.split(16), layers, rows=rule, folding=ALL)[name]
    read, given = {}, {}
    with torch.no_grad():
        for network, kept, place in ((small, read, 0), (model, given, 1)):
            layer = network.get_submodule(name)
            handle = layer.register_forward_hook(
                lambda _, a, b, kept=kept, place=place: kept.update(t=(a[0], b)[place])
            )
            network(x)
            handle.remove()
    layer = model.get_submodule(name)
    options = {key: getattr(layer, key) for key in ("dilation", "padding", "stride")}
    patches = functional.unfold(read["t"], layer.kernel_size, **options).mT
    outputs = given["t"].flatten(2).mT
    assert outputs.shape[1] == 9
    keep = torch.from_numpy(at_most(np.ones((50, 9), np.bool_), 4, seed=3, first_sample=0))
    twin = ds.numerics.CrossMoments.of(patches[keep].double().numpy(), outputs[keep].double().numpy())
    assert found.count == twin.count == 200
    np.testing.assert_allclose(found.joint.mean, twin.joint.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.joint.scatter, twin.joint.scatter, rtol=1e-4, atol=1e-3)


NETWORKS = {
    "plain": (convolutional, {"0": 3, "2": 3, "5": 2}),
    "residual": (Residual, {"stem": 2, "first": 3, "second": 4, "around": 3, "last": 2}),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_errors_at_each_turn_are_those_of_the_finished_network(kind):
    build, sizes = NETWORKS[kind]
    model, x = made(build), images()
    choices = {
        name: ds.LayerChoice("dalr_optimal_affine", size, ds.Ridge.relative(0.0)) for name, size in sizes.items()
    }
    found = in_turn(model, x, choices, rows=EVERY_PATCH, folding=ALL)
    measured = ds.output_errors(model, found.network, x.split(64), list(sizes))
    assert {name: outcome.error for name, outcome in found.layers.items()} == pytest.approx(measured, rel=1e-4)
    assert all(0.0 < error < 1.0 for error in measured.values())


@pytest.mark.parametrize("kind", NETWORKS)
def test_at_full_rank_the_outputs_are_the_originals(kind):
    build, sizes = NETWORKS[kind]
    model, x = made(build), images()
    full = {name: ds.LayerChoice(DALR, min(ds.network.weights_of(model, name)[0].shape)) for name in sizes}
    with torch.inference_mode():
        torch.testing.assert_close(in_turn(model, x, full).network(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_convolution_behind_a_selection_makes_up_for_it_as_far_as_its_rank_allows():
    model, x = made(convolutional), images()
    first = {"0": ds.LayerChoice("spectral", 3)}
    narrowed = in_turn(model, x, first, rows=EVERY_PATCH, folding=ALL).network
    both = {**first, "2": ds.LayerChoice("dalr_optimal_affine", 8, ds.Ridge.relative(0.0))}
    found = in_turn(model, x, both, rows=EVERY_PATCH, folding=ALL)
    left = ds.output_errors(model, narrowed, x.split(64), ["2"])["2"]
    assert found.network[2][0].in_channels == 3
    assert found.layers["2"].inherited == pytest.approx(left, rel=1e-4)
    assert found.layers["2"].error < 0.9 * left
    assert found.layers["2"].error == pytest.approx(
        ds.output_errors(model, found.network, x.split(64), ["2"])["2"], rel=1e-4
    )


class Tied(nn.Module):
    """What `stem` gives is tied to what `second` gives, and read by `first` and `head`."""

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 7, 3, padding=1), nn.Conv2d(7, 6, 1)
        self.head, self.relu = nn.Conv2d(6, 3, 2, 2), nn.ReLU()

    def forward(self, x):
        x = self.relu(self.stem(x))
        return self.head(self.relu(x + self.second(self.relu(self.first(x)))))


def test_a_selection_restores_what_all_its_readers_read_in_the_original():
    """One of the readers is a pair by then."""
    model, x = made(Tied), images()
    first = {"first": ds.LayerChoice(DALR, 2)}
    before = in_turn(model, x, first, rows=EVERY_PATCH, folding=ALL).network
    choices = {**first, "second": ds.LayerChoice("spectral", 4, restore_ridge=1e-6)}
    found = in_turn(model, x, choices, rows=EVERY_PATCH, folding=ALL)
    read = {"original": [], "now": []}
    with torch.no_grad():
        for key, network, layers in (("original", model, ("first", "head")), ("now", before, ("first.0", "head"))):
            for layer in layers:
                keep = read[key].append
                handle = network.get_submodule(layer).register_forward_pre_hook(lambda _, a, keep=keep: keep(a[0]))
                network(x)
                handle.remove()
    phi, psi = (torch.cat([t.transpose(0, 1).flatten(1) for t in read[key]], dim=1).double() for key in read)
    outcome = found.layers["second"]
    assert outcome.inherited == pytest.approx(float((phi - psi).norm() / phi.norm()), rel=1e-5)
    kept = [i for i in range(6) if (found.network.second.bias == model.second.bias[i]).any()]
    assert len(kept) == 4
    least = phi - torch.linalg.lstsq(psi[kept].T, phi.T).solution.T @ psi[kept]
    assert outcome.error == pytest.approx(float(least.norm() / phi.norm()), rel=1e-4)
    assert found.network(x).shape == model(x).shape


def test_nodes_of_both_networks_are_taken_at_the_same_positions():
    """At full rank and size nothing is lost; nodes of other positions would look like a loss."""
    model, x = made(Tied), images()
    choices = {"first": ds.LayerChoice(DALR, 7), "second": ds.LayerChoice("spectral", 6)}
    found = in_turn(model, x, choices, rows=ds.RowRule(most_patches=3, seed=1))
    assert max(found.layers["second"].inherited, found.layers["second"].error) < 1e-5
    with torch.inference_mode():
        torch.testing.assert_close(found.network(x), model(x), rtol=1e-4, atol=1e-4)


def test_the_groups_of_a_convolution_share_a_pass_and_are_solved_each_on_its_own():
    model, x = made(grouped), images()
    choices = {name: ds.LayerChoice(DALR, rank) for name, rank in (("0", 2), ("2", 1), ("4", 2))}
    found = in_turn(model, x, choices, rows=EVERY_PATCH, folding=ALL)
    assert found.passes == (("0",), ("2",), ("4",))
    assert [part.groups for part in found.network[2]] == [2, 2]
    with torch.inference_mode():
        given, now = model[:3](x), found.network[:3](x)
        gap = (given - now).norm() / (given - model[2].bias[:, None, None]).norm()
        assert found.layers["2"].error == pytest.approx(float(gap), rel=1e-4)
        full = in_turn(model, x, {"2": ds.LayerChoice(DALR, 3)}).network
        torch.testing.assert_close(full(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"2@group1": 1}, InvalidInputError, "'2@group1': .* choose for '2', all of its groups together"),
        ({"2": 4}, RankError, r"layer '2': rank must lie in 1\.\.3, got 4"),
    ],
)
def test_sizes_that_the_groups_cannot_have_are_refused_before_any_pass(choices, error, message):
    class Never:
        def __iter__(self):
            raise AssertionError("a pass began")

    with pytest.raises(error, match=message):
        ds.compress_sequentially(made(grouped), Never(), {name: ds.LayerChoice(DALR, r) for name, r in choices.items()})
