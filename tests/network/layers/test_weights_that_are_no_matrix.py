"""Weights that are no plain matrix of real numbers are refused with the reason, before anything is run."""

import pytest
import torch
import transformers
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.layers.spec import select_layers


class Packed(torch.Tensor):
    """As quantising libraries put in the place of a weight."""


def packed():
    layer = nn.Linear(4, 3)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Packed), requires_grad=False)
    return layer


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Linear(4, 3, dtype=torch.complex64), "its weight holds torch.complex64 and not real numbers"),
        (nn.Conv1d(4, 3, 2, dtype=torch.complex64), "its weight holds torch.complex64 and not real numbers"),
        (nn.LazyLinear(3), "its weight has no shape before a batch went through: run the network once first"),
        (nn.LazyConv2d(3, 2), "its weight has no shape before a batch went through: run the network once first"),
        (packed(), "its weight is a .*, packed, quantised or sharded: compress the network before that is done"),
    ],
)
def test_the_reason_is_named(layer, reason):
    net = nn.Sequential(layer, nn.Linear(3, 2))
    with pytest.raises(UnsupportedLayerError, match=reason):
        select_layers(net, ["0"])
    (said,) = ds.unsupported_layers(net, ["*"])
    assert said.startswith("layer '0' is left out: its weight ")


MOE = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24, "num_local_experts": 4}


def test_experts_whose_weights_are_one_tensor_are_named_among_what_is_left_out():
    config = transformers.MixtralConfig(hidden_size=16, num_hidden_layers=1, vocab_size=40, **MOE)
    net = transformers.MixtralForCausalLM(config)
    (said,) = ds.unsupported_layers(net, ["model.layers.*"])
    assert said.startswith(
        "layer 'model.layers.0.mlp.experts' is left out: it is a MixtralExperts, which holds the weights of several "
        "layers in one tensor, as of experts: 'gate_up_proj' of 4 x 48 x 16, 'down_proj' of 4 x 16 x 24; let each be"
    )
    with pytest.raises(UnsupportedLayerError, match=r"experts' .*holds the weights of several layers in one tensor"):
        select_layers(net, ["model.layers.0.mlp.experts"])


def test_a_table_of_positions_is_no_weight_that_is_left_out():
    class Tables(nn.Module):
        def __init__(self):
            super().__init__()
            self.places, self.fc = nn.Parameter(torch.zeros(1, 9, 4)), nn.Linear(4, 4)

    assert ds.unsupported_layers(nn.Sequential(Tables()), ["*"]) == ()


@pytest.mark.parametrize("layer", [nn.LSTM(4, 3), nn.GRU(4, 3), nn.LSTMCell(4, 3)])
def test_recurrent_layers_are_named_among_what_is_left_out(layer):
    net = nn.ModuleDict({"memory": layer, "fc": nn.Linear(3, 2)})
    said = f"it is a recurrent layer ({type(layer).__name__}), which reads its weights without calling a layer"
    assert ds.unsupported_layers(net, ["*"]) == (f"layer 'memory' is left out: {said}",)
    with pytest.raises(UnsupportedLayerError, match=r"'memory' \(it is a recurrent layer"):
        select_layers(net, ["memory"])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_layers_of_a_scripted_network_are_named_with_what_to_do():
    net = nn.Sequential(nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU()), nn.Linear(3, 2))
    traced = torch.jit.trace(net, torch.zeros(1, 2, 4))
    said = ds.unsupported_layers(traced, ["*"])
    assert [one.split(", whose")[0] for one in said] == [
        "layer '0.0' is left out: it is a scripted Conv1d",
        "layer '1' is left out: it is a scripted Linear",
    ]
    with pytest.raises(UnsupportedLayerError, match=r"'0.0' \(it is a scripted Conv1d.* load its weights into that"):
        select_layers(traced, ["*"])
