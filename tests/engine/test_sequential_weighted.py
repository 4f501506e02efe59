"""Weighted methods layer after layer: the solvers' own solutions on inputs of one network and targets of the other."""

import numpy as np
import pytest
import torch
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
