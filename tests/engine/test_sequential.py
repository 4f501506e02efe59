"""Layer after layer, against a twin that holds all rows, and by its laws."""

import copy
import itertools
import warnings

import numpy as np
import oracles
import pytest
import torch
from notes import Notes
from sequential_twins import RELATIVE, twin_factors
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.engine.sequential.passes import sequential_passes
from dalr_stream.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    LayerNotFoundError,
    ParameterIncreaseWarning,
    RankError,
    UnsupportedLayerError,
)
from dalr_stream.numerics.lowrank.factors import LowRankLayer

ALL = ds.Folding(ds.HoldoutRule(0.0))
EXACT = ds.Ridge.relative(0.0)
TWINS = ds.Ridge.relative(RELATIVE)


def network(*widths, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pairs = [(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
        return nn.Sequential(*[module for pair in pairs for module in pair][:-1]).double().eval()


def data(n=240, d=9, seed=1):
    """Correlated rows: some directions matter more than others."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing


def choice(method, size, ridge=TWINS, **options):
    return ds.LayerChoice(method, size, ridge, **options)


def quietly(call, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        return call(*arguments, **options)


# --- a twin in numpy ------------------------------------------------------------------------------------------------


def twin(model, x, plan):
    """Outputs of the compressed network: original and compressed activations side by side, layer by layer."""
    layers = [(module.weight.detach().numpy(), module.bias.detach().numpy()) for module in model[::2]]
    h, g, narrowed = x, x, None
    for i, (weight, bias) in enumerate(layers):
        y = h @ weight.T + bias
        own = weight if narrowed is None else weight @ narrowed
        method, size = plan.get(str(2 * i), (None, 0))
        narrowed = None
        if method not in (None, "spectral"):
            own, bias = twin_factors(method, size, own, bias, g, y)  # noqa: PLW2901
        h, g = np.maximum(y, 0.0), g @ own.T + bias
        last = g
        g = np.maximum(g, 0.0)
        if method == "spectral":
            sigma = g.T @ g / len(g)
            kept = sorted(oracles.greedy_spectral(sigma)[:size])
            narrowed = h.T @ g[:, kept] / len(g) @ np.linalg.pinv(sigma[np.ix_(kept, kept)])
            g = g[:, kept]
    return last


LOW_RANK = ["dalr_anchored_affine", "dalr_optimal_affine", "dalr_published", "dalr_anchored", "dalr_optimal"]


@pytest.mark.parametrize("method", LOW_RANK)
@pytest.mark.parametrize("middle", ["same", "spectral"])
@pytest.mark.parametrize("last", [6, 14], ids=["narrower", "wider"])  # than what it reads
def test_every_output_is_the_twins(method, middle, last):
    model, x = network(9, 10, 8, last), data()
    plan = {"0": (method, 4), "2": (method if middle == "same" else middle, 5), "4": (method, 3)}
    choices = {name: choice(*chosen, restore_ridge=0.0) for name, chosen in reversed(plan.items())}
    found = quietly(ds.compress_sequentially, model, x.split(50), choices, folding=ALL)
    with torch.inference_mode():
        np.testing.assert_allclose(found.network(x).numpy(), twin(model, x.numpy(), plan), rtol=1e-8, atol=1e-8)


def test_the_errors_are_those_of_the_twin_and_of_the_finished_network():
    model, x = network(9, 10, 8, 6), data()
    choices = {"0": choice("dalr_anchored_affine", 4), "2": choice("spectral", 5), "4": choice("svd", 2)}
    found = ds.compress_sequentially(model, x.split(50), choices)
    apart = ds.HoldoutRule().mask(np.arange(len(x)))
    with torch.inference_mode():
        y, now = model(x).numpy()[apart], found.network[:4](x)
        weight, bias = (ds.network.weights_of(model, "4")[i] for i in (0, 1))
        before = ds.compress_sequentially(model, x.split(50), {k: choices[k] for k in ("0", "2")}).network(x).numpy()
        ys, whole = y - bias, np.linalg.norm(y - bias)
        assert np.linalg.matrix_rank(weight) == 6
        assert now.shape[1] == 5
        assert found.layers["4"].inherited == pytest.approx(np.linalg.norm(before[apart] - y) / whole, rel=1e-6)
        after = found.network(x).numpy()[apart] - bias
        assert found.layers["4"].error == pytest.approx(np.linalg.norm(after - ys) / whole, rel=1e-6)
        psi = torch.relu(ds.compress_sequentially(model, x.split(50), {"0": choices["0"]}).network[:3](x)).numpy()
        phi = torch.relu(model[:3](x)).numpy()
    measured = ds.output_errors(model, found.network, x.split(70), ["0", "4"], holdout=ds.HoldoutRule())
    assert measured == pytest.approx({name: found.layers[name].error for name in ("0", "4")}, rel=1e-6)
    assert found.layers["0"].inherited == 0.0
    nodes = np.linalg.norm(phi[apart])
    assert found.layers["2"].inherited == pytest.approx(np.linalg.norm((phi - psi)[apart]) / nodes, rel=1e-6)
    kept = [i for i in range(8) if (found.network[2].bias == model[2].bias[i]).any()]
    sigma = psi[~apart].T @ psi[~apart]
    inverse = np.linalg.inv(sigma[np.ix_(kept, kept)] + 1e-3 * np.trace(sigma) / 8 * np.eye(5))
    restore = sigma[:, kept] @ inverse
    restore[kept] = np.eye(5)
    restore += (phi[~apart] - psi[~apart][:, kept] @ restore.T).T @ psi[~apart][:, kept] @ inverse
    lost = np.linalg.norm(phi[apart] - psi[apart][:, kept] @ restore.T) / nodes
    assert found.layers["2"].error == pytest.approx(lost, rel=1e-6)


# --- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dalr_anchored_affine", "dalr_published", "svd_bc", "spectral", "prune_max"])
def test_with_one_layer_it_is_the_parallel_solution_to_the_bit(method):
    model, batches = network(9, 10, 8, 6), data().split(50)
    found = ds.compress_sequentially(model, batches, {"2": ds.LayerChoice(method, 3)}).network
    layers = ds.network.select_layers(model, ["2", "4"])
    moments = accumulate_stream(model, batches, layers)
    weight, bias = ds.network.weights_of(model, "2")
    if method in ("spectral", "prune_max"):
        solve = ds.spectral if method == "spectral" else ds.prune_by_max
        record = solve(moments["4"]).at_size(3, ridge=1e-3)
    elif method == "svd_bc":
        record = ds.truncated_svd(weight, bias, moments["2"], compensate_bias=True).at_rank(3)
    else:
        record = ds.dalr(weight, bias, moments["2"], variant=method.split("_")[1]).at_rank(3)
    expected = ds.compress(model, {"2": record}, example=batches[0]).state_dict()
    assert found.state_dict().keys() == expected.keys()
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("seed", range(5))
def test_the_second_layer_is_never_worse_than_its_parallel_solution_on_the_same_inputs(seed):
    """The first layer is the same in both, and `optimal` without a ridge minimises the error on its training rows."""
    model, batches = network(9, 10, 8, seed=seed), data(seed=seed).split(50)
    choices = {name: choice("dalr_optimal_affine", 3, EXACT) for name in ("0", "2")}
    found = ds.compress_sequentially(model, batches, choices, folding=ALL).network
    moments = accumulate_stream(model, batches, ds.network.select_layers(model, ["0", "2"]), folding=ALL)
    together = ds.compress(
        model,
        {
            name: ds.dalr(*ds.network.weights_of(model, name), moments[name], variant="optimal", ridge=EXACT).at_rank(3)
            for name in ("0", "2")
        },
    )
    errors = [ds.output_errors(model, small, batches, ["0", "2"]) for small in (found, together)]
    assert errors[0]["0"] == errors[1]["0"]
    assert errors[0]["2"] < errors[1]["2"]


def test_at_full_size_the_outputs_are_the_originals():
    model, x = network(9, 10, 8, 6), data()
    choices = {"0": choice("dalr_anchored_affine", 9), "2": choice("spectral", 8), "4": choice("dalr_anchored", 6)}
    found = quietly(ds.compress_sequentially, model.float(), x.float().split(50), choices)
    with torch.inference_mode():
        torch.testing.assert_close(found.network(x.float()), model(x.float()), rtol=1e-4, atol=1e-4)
    assert found.layers["4"].error < 1e-5


def test_a_later_layer_makes_up_for_what_was_lost_where_its_rank_allows():
    """A constant that the first layer loses is put back by an affine second one, whatever is anchored to."""
    model, x = network(9, 10, 8), data()
    damaged = ds.compress_sequentially(model, x.split(50), {"0": choice("prune_max", 6)}, folding=ALL)
    choices = {"0": choice("prune_max", 6), "2": choice("dalr_optimal_affine", 6, EXACT)}
    found = quietly(ds.compress_sequentially, model, x.split(50), choices, folding=ALL)
    left = ds.output_errors(model, damaged.network, x.split(50), ["2"])["2"]
    assert found.layers["2"].inherited == pytest.approx(left, rel=1e-9)
    assert found.layers["2"].error < 0.8 * left


def test_the_model_is_left_as_it_was_and_the_plan_loads(tmp_path):
    model, x = network(9, 10, 8, 6), data()
    before = copy.deepcopy(model.state_dict())
    choices = {"0": choice("dalr_anchored_affine", 4), "2": choice("spectral", 5), "4": choice("svd", 2)}
    found = ds.compress_sequentially(model, x.split(50), choices).network
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    ds.save(found, tmp_path / "small")
    again = ds.load(tmp_path / "small", lambda: network(9, 10, 8, 6, seed=7))
    assert torch.equal(again(x), found(x))


def test_what_was_kept_after_a_pass_goes_on_to_the_same_network():
    model, batches = network(9, 10, 8, 6), data().split(50)
    choices = {"0": choice("dalr_anchored_affine", 4), "2": choice("spectral", 5), "4": choice("svd", 2)}
    states = list(sequential_passes(model, batches, choices))
    assert [list(state.layers) for state in states] == [[], ["0"], ["0", "2"], ["0", "2", "4"]]
    for begun in states:
        *_, last = sequential_passes(model, batches, choices, begun=begun)
        assert all(torch.equal(t, last.network.state_dict()[n]) for n, t in states[-1].network.state_dict().items())
        assert last.layers == states[-1].layers


# --- tokens, masks, shared inputs -------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """Three layers read one tensor, a fourth what they give."""

    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(6), nn.Linear(5, 6)
        self.query, self.key, self.value = (nn.Linear(6, 5) for _ in range(3))

    def forward(self, x, mask):
        h = self.norm(x)
        q, k, v = self.query(h), self.key(h), self.value(h)
        scores = (q @ k.mT).masked_fill(~mask[:, None, :], -torch.inf)
        return self.out(torch.softmax(scores, -1) @ v)


def token_batches(n=60):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 7, 6, generator=generator)
    lengths = torch.randint(2, 8, (n,), generator=generator)
    mask = torch.arange(7) < lengths[:, None]
    return [{"x": x[i : i + 16], "mask": mask[i : i + 16]} for i in range(0, n, 16)], x, mask


def test_layers_that_read_one_tensor_share_a_pass_and_padding_decides_nothing():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tokens().eval()
    batches, x, mask = token_batches()
    notes = Notes()
    choices = {name: ds.LayerChoice("dalr_anchored_affine", 2) for name in ("out", "value", "key", "query")}
    options = {"rows": ds.RowRule("mask"), "folding": ALL}
    found = ds.compress_sequentially(model, batches, choices, progress=notes, **options)
    assert found.passes == (("query", "key", "value"), ("out",))
    assert notes.said[0] == "layer after layer: 2 passes over the data: query + key + value; out"
    noisy = [{**batch, "x": torch.where(batch["mask"][..., None], batch["x"], 50.0)} for batch in batches]
    again = ds.compress_sequentially(model, noisy, choices, **options)
    for name, tensor in found.network.state_dict().items():
        torch.testing.assert_close(again.network.state_dict()[name], tensor, rtol=1e-3, atol=1e-3)
    with torch.inference_mode():
        y, now = model(x, mask)[mask], found.network(x, mask)[mask]
    gap = float((y - now).norm() / (y - model.out.bias.detach()).norm())
    assert found.layers["out"].error == pytest.approx(gap, rel=1e-3)
    assert ds.output_errors(model, found.network, batches, ["out"], rows=options["rows"])["out"] == pytest.approx(gap)


def test_momasp_reads_both_domains_in_the_network_as_compressed_so_far():
    model, x, other = network(9, 10, 8, 6), data(), data(seed=5)
    choices = {"0": choice("dalr_anchored_affine", 3), "2": choice("momasp_node", 4, strength=5.0)}
    found = ds.compress_sequentially(model, x.split(50), choices, source=other.split(60), folding=ALL)
    first = ds.compress_sequentially(model, x.split(50), {"0": choices["0"]}, folding=ALL).network
    layers = ds.network.select_layers(first, ["4"])
    target, source = (accumulate_stream(first, r.split(40), layers, folding=ALL)["4"] for r in (x, other))
    kept = ds.momasp(target, source, strength=5.0).at_size(4, ridge=1e-3)
    torch.testing.assert_close(found.network[2].bias, first[2].bias[torch.from_numpy(kept.kept)])
    assert kept.kept.tolist() != ds.spectral(target).at_size(4).kept.tolist()


# --- bad input --------------------------------------------------------------------------------------------------------


class Counted:
    """Batches that count how often they are gone through."""

    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter(data().split(50))


SVD = ds.LayerChoice("svd", 2)


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({}, InvalidInputError, "at least one layer, got none"),
        ({"7": SVD}, LayerNotFoundError, "there is no layer '7'"),
        ({"1": SVD}, UnsupportedLayerError, "layer '1': must be a Linear layer"),
        ({"0": ds.LayerChoice("svd", 10)}, RankError, r"layer '0': rank must lie in 1\.\.9, got 10"),
        (
            {"0": SVD, "2": ds.LayerChoice("spectral", 9)},
            RankError,
            r"layer '2': number of kept nodes .* 1\.\.8, got 9",
        ),
        ({"0": ds.LayerChoice("svd", 0)}, RankError, "got 0"),
        ({"0": ds.LayerChoice("svd", 2.0)}, RankError, r"got 2\.0"),
        ({"0": [SVD, ds.LayerChoice("spectral", 5)]}, InvalidInputError, "layer '0': takes one LayerChoice.*not both"),
        ({"2": ds.LayerChoice("momasp_subset", 5)}, InvalidInputError, "layer '2': momasp_subset .*give source="),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_pass(choices, error, message):
    batches = Counted()
    with pytest.raises(error, match=message):
        ds.compress_sequentially(network(9, 10, 8, 6), batches, choices)
    assert not batches.passes


def test_a_layer_whose_nodes_cannot_be_pruned_is_refused_after_one_batch():
    with pytest.raises(UnsupportedLayerError, match="the network's own output"):
        ds.compress_sequentially(network(9, 10, 8, 6), Counted(), {"4": ds.LayerChoice("spectral", 5)})


def test_bad_batches_shards_and_networks():
    model, good = network(9, 10, 8, 6), data().split(50)
    with pytest.raises(InvalidInputError, match=r"method must be one of .*got 'dalr'"):
        ds.LayerChoice("dalr", 2)
    with pytest.raises(InvalidInputError, match="a generator allows one"):
        ds.compress_sequentially(model, (b for b in good), {"0": SVD})
    with pytest.raises(InvalidInputError, match=r"got shards=2: leave it out; accumulate_cross keeps shards"):
        ds.compress_sequentially(model, good, {"0": SVD}, folding=ds.Folding(shards=2))
    with pytest.raises(InvalidInputError, match=r"in train mode: call model\.eval"):
        ds.compress_sequentially(network(9, 8, 6).train(), good, {"0": SVD})
    small = ds.compress_sequentially(model, good, {"0": SVD}).network
    with pytest.raises(UnsupportedLayerError, match=r"layer '0': must be .*it is a FactorPair"):
        ds.compress_sequentially(small, good, {"0": ds.LayerChoice("spectral", 5)})
    assert isinstance(ds.compress_sequentially(small, good, {"2": SVD}).network[0], nn.Sequential)


def test_a_loader_that_shuffles_is_found_out():
    class Shuffled:
        def __iter__(self):
            return iter(data()[torch.randperm(240)].split(50))

    with pytest.raises(FingerprintMismatchError, match="batches: batch 0 is not the one of the first pass"):
        ds.compress_sequentially(network(9, 10, 8, 6), Shuffled(), {"0": SVD, "2": SVD})


def test_a_selection_that_leaves_a_later_layer_too_few_inputs_is_named():
    choices = {"0": ds.LayerChoice("spectral", 3), "2": ds.LayerChoice("svd", 4)}
    with pytest.raises(RankError, match=r"layer '2': rank must lie in 1\.\.3, got 4"):
        ds.compress_sequentially(network(9, 10, 8, 6), data().split(50), choices)


def test_output_errors_of_narrowed_layers_and_of_no_rows_are_refused():
    model, batches = network(9, 10, 8, 6), data().split(50)
    small = ds.compress_sequentially(model, batches, {"2": ds.LayerChoice("spectral", 3)}).network
    with pytest.raises(InvalidInputError, match="layer '2': gives 8 outputs in one network and 3 in the other"):
        ds.output_errors(model, small, batches, ["2"])
    with pytest.raises(InvalidInputError, match="no held-out row among 240 samples"):
        ds.output_errors(model, small, batches, ["4"], holdout=ds.HoldoutRule(0.0))
    assert ds.output_errors(model, model, batches, ["0", "2", "4"]) == {"0": 0.0, "2": 0.0, "4": 0.0}


def test_any_affine_maps_error_is_that_of_the_rows():
    rng = np.random.default_rng(0)
    x, y, weight, bias = (
        rng.normal(size=(30, 5)) + 3.0,
        rng.normal(size=(30, 4)),
        rng.normal(size=(4, 5)),
        rng.normal(size=4),
    )
    found = ds.numerics.CrossMoments.of(x, y).squared_error(weight, bias)
    assert found == pytest.approx(np.sum((y - x @ weight.T - bias) ** 2), rel=1e-12)
    pair = LowRankLayer(weight[:2], rng.normal(size=(4, 2)), bias)
    whole = ds.numerics.CrossMoments.of(x, y).squared_error(pair.up @ pair.down, pair.bias)
    assert whole == pytest.approx(np.sum((y - x @ pair.down.T @ pair.up.T - bias) ** 2), rel=1e-12)
