"""Compressed networks against the sums they stand for, written out by hand."""

import copy
import warnings

import numpy as np
import pytest
import torch
from dense_network import Net, X, build, factors, hidden, moments, parameters, relu
from torch import fx, nn

from dalr_stream.errors import (
    InvalidInputError,
    LayerNotFoundError,
    UnsupportedLayerError,
)
from dalr_stream.network.layers.identity import fingerprint
from dalr_stream.network.layers.pair import FactorPair
from dalr_stream.network.surgery import compress as surgery
from dalr_stream.network.surgery.compress import parameter_bytes, parameter_count
from dalr_stream.numerics.lowrank.truncated import truncated_svd
from dalr_stream.numerics.selection.greedy import spectral

FLOAT32 = {"rtol": 2e-4, "atol": 2e-4}  # three layers of float32 against float64


def compress(net, replacements):
    return surgery.compress(net, replacements, example=X[:2].to(next(net.parameters()).dtype))


def outputs(net, x=X):
    with torch.no_grad():
        return net(x.to(next(net.parameters()).dtype)).double().numpy()


@pytest.mark.parametrize("bias", [True, False])
def test_a_factor_pair_gives_up_down_x_plus_bias(bias):
    net = build(bias=bias)
    pair = factors(net, "fc7", 3)
    small = compress(net, {"fc7": pair})
    p = parameters(net)
    h8 = relu(hidden(net)["fc7"] @ pair.down.T @ pair.up.T + pair.bias)
    np.testing.assert_allclose(outputs(small), h8 @ p["fc8"][0].T + p["fc8"][1], **FLOAT32)
    assert [tuple(layer.weight.shape) for layer in small.fc7] == [(3, 12), (9, 3)]
    assert small.fc7[0].bias is None


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_selection_gives_the_restored_nodes_to_the_next_layer(affine, bias):
    net = build(bias=bias)
    nodes = spectral(moments(net, "fc7"), affine=affine).at_size(5)
    small = compress(net, {"fc6": nodes})
    p = parameters(net)
    restored = hidden(net)["fc7"][:, nodes.kept] @ nodes.restore.T + nodes.offset
    h8 = relu(restored @ p["fc7"][0].T + p["fc7"][1])
    np.testing.assert_allclose(outputs(small), h8 @ p["fc8"][0].T + p["fc8"][1], **FLOAT32)
    assert tuple(small.fc6.weight.shape) == (5, 10)
    assert tuple(small.fc7.weight.shape) == (9, 5)
    assert torch.equal(small.fc6.weight, net.fc6.weight[torch.from_numpy(nodes.kept)])
    assert (small.fc7.bias is None) == (not bias and not affine)
    assert affine == bool(nodes.offset.any())


@pytest.mark.parametrize("order", [("fc6", "fc7"), ("fc7", "fc6")])
def test_a_selection_shrinks_a_pair_in_front_of_it(order):
    """fc7 becomes a pair, fc6 keeps six nodes: the pair's first layer reads them."""
    net = build()
    parts = {"fc7": factors(net, "fc7", 3), "fc6": spectral(moments(net, "fc7"), affine=True).at_size(6)}
    small = compress(net, {name: parts[name] for name in order})
    pair, nodes, p = parts["fc7"], parts["fc6"], parameters(net)
    restored = hidden(net)["fc7"][:, nodes.kept] @ nodes.restore.T + nodes.offset
    h8 = relu(restored @ pair.down.T @ pair.up.T + pair.bias)
    np.testing.assert_allclose(outputs(small), h8 @ p["fc8"][0].T + p["fc8"][1], **FLOAT32)
    assert tuple(small.fc7[0].weight.shape) == (3, 6)


def test_a_selection_shrinks_the_pair_it_belongs_to():
    net = build()
    pair, nodes = factors(net, "fc6", 4), spectral(moments(net, "fc7")).at_size(6)
    small = compress(compress(net, {"fc6": pair}), {"fc6.1": nodes})
    h7 = relu(hidden(net)["fc6"] @ pair.down.T @ pair.up.T + pair.bias)
    p = parameters(net)
    h8 = relu(h7[:, nodes.kept] @ nodes.restore.T @ p["fc7"][0].T + p["fc7"][1])
    np.testing.assert_allclose(outputs(small), h8 @ p["fc8"][0].T + p["fc8"][1], **FLOAT32)
    assert [tuple(layer.weight.shape) for layer in small.fc6] == [(4, 10), (6, 4)]


def test_two_selections_in_a_row_shrink_the_layer_between_on_both_sides():
    net = build()
    first, second = spectral(moments(net, "fc7")).at_size(7), spectral(moments(net, "fc8")).at_size(4)
    small = compress(net, {"fc6": first, "fc7": second})
    p = parameters(net)
    h8 = relu(hidden(net)["fc7"][:, first.kept] @ first.restore.T @ p["fc7"][0].T + p["fc7"][1])
    expected = h8[:, second.kept] @ second.restore.T @ p["fc8"][0].T + p["fc8"][1]
    np.testing.assert_allclose(outputs(small), expected, **FLOAT32)
    assert tuple(small.fc7.weight.shape) == (4, 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_rank_and_full_size_give_the_network_back(dtype):
    net = build(dtype=dtype)
    whole = {"fc7": factors(net, "fc7", 9), "fc6": spectral(moments(net, "fc7")).at_size(12)}
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(outputs(compress(net, whole)), outputs(net), rtol=tolerance, atol=tolerance)


def test_the_original_and_the_random_numbers_are_left_alone():
    net = build()
    net.fc7.weight.requires_grad_(False)
    before, drawn = fingerprint(net), torch.get_rng_state()
    small = compress(net, {"fc7": factors(net, "fc7", 3), "fc6": spectral(moments(net, "fc7")).at_size(5)})
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert fingerprint(net) == before
    assert isinstance(net.fc7, nn.Linear)
    assert not hasattr(net, "compression_plan")
    assert torch.equal(torch.get_rng_state(), drawn)


def test_nothing_to_replace_gives_an_equal_copy():
    net = build()
    small = compress(net, {})
    assert small is not net
    assert fingerprint(small) == fingerprint(net)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_dtype_and_mode_are_kept(dtype, training):
    net = build(dtype=torch.float64)
    parts = {"fc7": factors(net, "fc7", 3), "fc6": spectral(moments(net, "fc7"), affine=True).at_size(5)}
    small = compress(net.to(dtype).train(training), parts)
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}
    assert {module.training for module in small.modules()} == {training}


def test_parameters_are_those_of_the_records():
    net = build()
    pair, nodes = factors(net, "fc7", 3), spectral(moments(net, "fc7")).at_size(5)
    assert parameter_count(net) == 10 * 12 + 12 + 12 * 9 + 9 + 9 * 4 + 4
    small = compress(net, {"fc7": pair})
    assert parameter_count(net) - parameter_count(small) == 12 * 9 - pair.parameters
    small = compress(net, {"fc6": nodes})
    assert parameter_count(net) - parameter_count(small) == 7 * (10 + 1 + 9)
    assert parameter_bytes(small.half()) == 2 * parameter_count(small)
    net.fc9 = net.fc8
    assert parameter_count(net) == parameter_count(build())


def test_a_compressed_network_is_plain_torch():
    net = build()
    small = compress(net, {"fc7": factors(net, "fc7", 3), "fc6": spectral(moments(net, "fc7")).at_size(5)})
    assert {type(module) for module in small.modules()} == {Net, nn.Linear, FactorPair}
    assert issubclass(FactorPair, nn.Sequential)
    expected = outputs(small)
    assert np.array_equal(outputs(fx.symbolic_trace(small)), expected)
    again = copy.deepcopy(small)
    again.load_state_dict({name: value * 0 for name, value in small.state_dict().items()})
    again.load_state_dict(small.state_dict())
    assert np.array_equal(outputs(again), expected)
    exported = torch.export.export(small, (X[:3],)).module()
    np.testing.assert_allclose(exported(X[:3]).detach().numpy(), expected[:3], **FLOAT32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch announces the end of torch.jit
        traced = torch.jit.trace(small, X[:3])
    np.testing.assert_allclose(traced(X[:3]).detach().numpy(), expected[:3], **FLOAT32)


# --- refused ------------------------------------------------------------------------------------------------------


def test_solutions_of_other_shapes_are_refused_with_both_shapes():
    net = build()
    with pytest.raises(InvalidInputError, match="layer 'fc8': the solution is for 9 x 12, the layer has 4 x 9"):
        compress(net, {"fc8": factors(net, "fc7", 3)})
    with pytest.raises(InvalidInputError, match="layer 'fc7': the solution is for 12, the layer has 9"):
        compress(net, {"fc7": spectral(moments(net, "fc7")).at_size(5)})


def test_layers_that_cannot_be_replaced_are_refused():
    net = build()
    pair, nodes = factors(net, "fc7", 3), spectral(moments(net, "fc8")).at_size(3)
    with pytest.raises(LayerNotFoundError, match="there is no layer 'fc9'; nearest: fc"):
        compress(net, {"fc9": pair})
    with pytest.raises(LayerNotFoundError, match=r"there is no layer 'fc\*'"):
        compress(net, {"fc*": pair})
    with pytest.raises(UnsupportedLayerError, match="layer 'fc8': its channels cannot be pruned: no layer reads"):
        compress(net, {"fc8": nodes})


def test_a_solution_of_every_rank_is_no_replacement():
    net = build()
    weight, bias = parameters(net)["fc7"]
    with pytest.raises(InvalidInputError, match="layer 'fc7': a replacement is what at_rank or at_size gives, got Low"):
        compress(net, {"fc7": truncated_svd(weight, bias)})
