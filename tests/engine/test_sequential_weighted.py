"""Weighted methods layer after layer: the solvers' own solutions on inputs of one network and targets of the other."""

import copy

import numpy as np
import oracles
import pytest
import torch
from sequential_twins import RELATIVE, TwinBlocks, twin_reader
from stream_blocks import DALR, data, made
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import InvalidInputError

pytestmark = pytest.mark.filterwarnings("ignore::dalr_stream.errors.ParameterIncreaseWarning")
EVERY = ds.Folding(holdout=ds.HoldoutRule(0.0))


@pytest.fixture(scope="module")
def known():
    """A network, its batches, and statistics with gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5)).double().eval()
    batches = list(torch.randn(200, 9, dtype=torch.float64).split(50))
    names = ["0", "2", "4"]
    layers = ds.watch(model, names, example=batches[0], gradients=names)
    return model, batches, ds.accumulate(model, batches, layers, folding=EVERY)


def weighted(statistics, name, size, method="dalr_weighted_affine"):
    return ds.LayerChoice(method, size, layer=statistics[name])


def test_the_first_layer_is_the_parallel_solution(known):
    model, batches, statistics = known
    found = ds.compress_sequentially(model, batches, {"0": weighted(statistics, "0", 4)}, folding=EVERY)
    pair = ds.solve(statistics["0"], "dalr_weighted_affine").at_rank(4)
    down, up = found.network[0]
    np.testing.assert_allclose((up.weight @ down.weight).detach(), pair.up @ pair.down, atol=1e-10)


def test_a_later_layer_is_solved_across_the_two_networks(known):
    model, batches, statistics = known
    choices = {"0": ds.LayerChoice("svd", 4), "2": weighted(statistics, "2", 3)}
    found = ds.compress_sequentially(model, batches, choices, folding=EVERY)
    with torch.no_grad():
        x = torch.cat([found.network[:2](batch) for batch in batches]).numpy()
        z = torch.cat([model[:3](batch) for batch in batches]).numpy()
    layer = statistics["2"]
    cross = ds.numerics.CrossMoments.of(x, z)
    pair = ds.dalr(layer.weight, layer.bias, cross, variant="weighted", gradients=layer.gradients).at_rank(3)
    down, up = found.network[2]
    np.testing.assert_allclose((up.weight @ down.weight).detach(), pair.up @ pair.down, atol=1e-8)


@pytest.mark.parametrize("method", ["spectral_weighted", "spectral_readers"])
def test_a_selection_keeps_what_its_readers_need_of_the_nodes_as_they_are_by_then(known, method):
    model, batches, statistics = known
    choices = {"0": ds.LayerChoice("svd", 4), "2": weighted(statistics, "2", 4, method)}
    found = ds.compress_sequentially(model, batches, choices, folding=EVERY)
    with torch.no_grad():
        nodes = torch.cat([nn.Sequential(found.network[0], *model[1:4])(batch) for batch in batches]).numpy()
    reader = statistics["2"].readers[0]
    weight = reader.weight[:, :, 0]
    g = reader.gradients.second_moment if method == "spectral_weighted" else np.eye(5)
    kept = ds.spectral(ds.Moments.of(nodes), metric=weight.T @ g @ weight).at_size(4).kept
    assert found.network[2].out_features == 4
    np.testing.assert_allclose(
        found.network[2].weight.detach(), model[2].weight.detach()[torch.from_numpy(kept)], atol=1e-12
    )


def test_without_the_layer_it_is_refused_at_once():
    with pytest.raises(InvalidInputError, match=r"dalr_weighted_affine weighs errors .* layer=statistics\[name\]"):
        ds.LayerChoice("dalr_weighted_affine", 4)


@pytest.mark.parametrize("method", ["dalr_weighted_affine", "spectral_weighted"])
def test_a_layer_of_another_network_is_refused_before_any_pass(known, method):
    model, batches, statistics = known
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight[0, 0] += 1.0
    with pytest.raises(InvalidInputError, match="layer after layer: layer '0': the statistics have other weights than"):
        ds.compress_sequentially(other, batches, {"0": weighted(statistics, "0", 4, method)}, folding=EVERY)


# --- towards the stream ---------------------------------------------------------------------------------------------

GAMMA = 1e-2
"""The default ridge of the gradients."""


@pytest.fixture(scope="module")
def on_a_stream():
    """A network whose stem has lost something, what each of its layers reads, and what that stream lacks."""
    model, x = made(2), data()
    names = ["stem", "up.0", "down.0", "head"]
    layers = ds.watch(model, names, example=x, gradients=names)
    statistics = ds.accumulate(model, x.split(50), layers, folding=EVERY)

    def found(name, method, size):
        options = {"ridge": RELATIVE, "restore_ridge": RELATIVE, "gradient_ridge": GAMMA}
        choices = {
            "stem": ds.LayerChoice(DALR, 3, ridge=RELATIVE),
            name: ds.LayerChoice(method, size, layer=statistics[name], **options),
        }
        return ds.compress_sequentially(model, x.split(50), choices, target="stream", folding=EVERY)

    twin, small = TwinBlocks(model), TwinBlocks(model)
    with torch.no_grad():
        stem = ds.compress_sequentially(
            model, x.split(50), {"stem": ds.LayerChoice(DALR, 3, ridge=RELATIVE)}, folding=EVERY
        ).network.stem
        product = (stem[1].weight @ stem[0].weight).numpy()
    small.weights["stem"] = product, stem[1].bias.detach().numpy()
    _, _, given, then = twin.run(x.numpy())
    _, read, _, now = small.run(x.numpy())
    target = given["down.0"] + then["down.0"] - now["down.0"]
    assert np.abs(then["down.0"] - now["down.0"]).max() > 0.1
    return found, twin.weights["down.0"], read["down.0"], target, statistics["down.0"].gradients.second_moment


@pytest.mark.parametrize("method", ["spectral_weighted", "spectral_readers"])
def test_a_weighted_selection_has_its_reader_solved_towards_the_stream(on_a_stream, method):
    found, (weight, _), nodes, target, gradients = on_a_stream
    result = found("up.0", method, 6)
    metric = weight.T @ (gradients if method == "spectral_weighted" else np.eye(8)) @ weight
    kept = []
    for _ in range(6):
        kept.append(int(np.argmax(oracles.every_gain_in_metric(nodes.T, kept, metric))))
    kept = sorted(kept)
    assert kept != sorted(oracles.greedy_spectral(nodes.T @ nodes / len(nodes))[:6])
    expected, bias = twin_reader(kept, weight, nodes, target, RELATIVE)
    down = result.network.down[0]
    np.testing.assert_allclose(down.weight.detach(), expected, atol=1e-8)
    np.testing.assert_allclose(down.bias.detach(), bias, atol=1e-8)
    assert result.layers["up.0"].target == "stream"


def test_weighted_factors_are_solved_towards_the_stream(on_a_stream):
    found, (weight, _), nodes, target, gradients = on_a_stream
    result = found("down.0", "dalr_weighted_affine", 3)
    centre, level = nodes.mean(0), target.mean(0)
    lam = RELATIVE * np.mean(np.sum((nodes - centre) ** 2, axis=0))
    rows, targets = oracles.augmented((nodes - centre).T, (target - level).T, lam, weight)
    felt = gradients + GAMMA * np.trace(gradients) / len(gradients) * np.eye(len(gradients))
    u, m = oracles.reduced_rank_regression(rows, oracles.symmetric_root(felt, 0.5) @ targets)
    expected = oracles.symmetric_root(felt, -0.5) @ u[:, :3] @ u[:, :3].T @ m
    first, second = result.network.down[0]
    np.testing.assert_allclose((second.weight @ first.weight).detach(), expected, atol=1e-8)
    np.testing.assert_allclose(second.bias.detach(), level - expected @ centre, atol=1e-8)
    assert result.layers["down.0"].target == "stream"
