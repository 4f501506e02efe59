"""Both networks see each batch once, and the joint rows are what their layers read and give."""

import numpy as np
import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.errors import InvalidInputError, LayerNotFoundError, NonFiniteError

LAYERS = ["0", "2"]


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def data():
    return torch.randn(300, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def original():
    return network()


@pytest.fixture
def compressed(original):
    """The first layer at rank 2: a pair of layers, so only the second can be watched."""
    weight, bias = ds.network.weights_of(original, "0")
    return ds.compress(original, {"0": ds.truncated_svd(weight, bias).at_rank(2)})


def test_inputs_are_the_compressed_networks_and_outputs_the_originals(original, compressed):
    layers = ds.network.select_layers(original, ["2"])
    found = ds.accumulate_cross(
        original, compressed, data().split(70), layers, folding=ds.Folding(ds.HoldoutRule(0.0))
    )["2"]
    with torch.inference_mode():
        x = compressed[:2](data()).double().numpy()
        y = original(data()).double().numpy()
    expected = ds.numerics.CrossMoments.of(x, y)
    assert (found.count, found.samples, found.input_features, found.output_features) == (300, 300, 8, 3)
    np.testing.assert_allclose(found.cross_scatter, expected.cross_scatter, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found.cross_gram, y.T @ x, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found.outputs.mean, y.mean(axis=0), rtol=1e-5, atol=1e-6)
    bias = original[2].bias.detach().double().numpy()
    np.testing.assert_allclose(found.cross_scatter_about(np.zeros(8), bias), (y - bias).T @ x, rtol=1e-5, atol=1e-4)


def test_with_one_network_twice_it_is_direct_accumulation_and_the_layers_own_map(original):
    layers = ds.network.select_layers(original, LAYERS)
    batches = data().split(64)
    found = ds.accumulate_cross(original, original, batches, layers)
    direct = accumulate_stream(original, batches, layers)
    assert list(found) == list(direct) == LAYERS
    for name in LAYERS:
        for cross, alone in ((found[name], direct[name]), (found.heldout[name], direct.heldout[name])):
            assert (cross.count, cross.samples) == (alone.count, alone.samples)
            np.testing.assert_allclose(cross.inputs.scatter, alone.scatter, rtol=1e-12, atol=1e-12)
            weight, _ = ds.network.weights_of(original, name)
            expected = weight.astype(float) @ alone.scatter
            np.testing.assert_allclose(cross.cross_scatter, expected, rtol=1e-4, atol=1e-4)


def test_batches_do_not_decide_the_bits(original):
    """Up to what a network's own outputs change with the batch size: so through a layer that only copies."""
    with torch.no_grad():
        original[0].weight.copy_(torch.eye(8, 6))
        original[0].bias.zero_()
    layers = ds.network.select_layers(original, ["0"])
    one, many = (ds.accumulate_cross(original, original, data().split(size), layers)["0"] for size in (300, 7))
    assert one.same_bits(many)


def test_both_networks_are_left_as_they_were_found(original, compressed):
    ds.accumulate_cross(original, compressed, data().split(70), ds.network.select_layers(original, ["2"]))
    for module in (*original.modules(), *compressed.modules()):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_what_cannot_be_paired_is_refused(original, compressed):
    batches, second = data().split(70), ds.network.select_layers(original, ["2"])
    with pytest.raises((LayerNotFoundError, InvalidInputError), match="layer '0'"):
        ds.accumulate_cross(original, compressed, batches, ds.network.select_layers(original, LAYERS))
    with pytest.raises(InvalidInputError, match="the original network must be in eval mode"):
        ds.accumulate_cross(network().train(), compressed, batches, second)
    with pytest.raises(InvalidInputError, match="must be in eval mode"):
        ds.accumulate_cross(original, network().train(), batches, second)
    with torch.no_grad():
        original[2].bias[1] = float("nan")
    with pytest.raises(NonFiniteError, match="layer '2': outputs of the original must be finite, got 70 NaN"):
        ds.accumulate_cross(original, compressed, batches, second)
    assert not original[2]._forward_hooks
