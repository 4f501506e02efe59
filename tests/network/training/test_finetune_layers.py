"""Which layers are fine-tuned."""

import warnings

import pytest
import torch
from finetune_cases import BATCHES, FAST, changed, mixed, small, tensors
from torch import nn

from dalr_stream.errors import InvalidInputError, ParameterIncreaseWarning, UnsupportedLayerError
from dalr_stream.network.layers.spec import weights_of
from dalr_stream.network.surgery.compress import compress
from dalr_stream.network.training.finetune import finetune
from dalr_stream.network.training.setting import FineTuning
from dalr_stream.network.training.trainable import trained_parameters
from dalr_stream.numerics.lowrank.truncated import truncated_svd


@pytest.mark.parametrize(
    ("layers", "trained"),
    [
        (("fc7",), ("fc7.0", "fc7.1")),
        (("fc7.1",), ("fc7.1",)),
        ((r"re:fc[78]",), ("fc7.0", "fc7.1", "fc8")),
        (("fc8", "fc*"), ("fc6", "fc7.0", "fc7.1", "fc8")),
    ],
)
def test_a_pattern_names_the_original_layer_and_covers_the_pair(layers, trained):
    net = small()
    names = {f"{layer}.{what}" for layer in trained for what in ("weight", "bias")}
    assert trained_parameters(net, layers).keys() == names
    assert changed(net, finetune(net, BATCHES, FineTuning(1, rate=1e-2, layers=layers))) == names


def test_a_convolution_that_became_a_pair_is_trained_when_it_is_named():
    net = mixed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        pair = truncated_svd(*weights_of(net, "conv")).at_rank(2)
    less = compress(net, {"conv": pair})
    tuned = finetune(less, BATCHES, FineTuning(1, rate=1e-2, layers=("conv", "norm")))
    assert {name.partition(".")[0] for name in changed(less, tuned)} == {"conv", "norm"}
    assert torch.equal(less.norm.running_mean, tuned.norm.running_mean)


def test_a_shared_weight_is_trained_once_and_stays_shared():
    net = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10))
    net[2].weight = net[0].weight
    assert trained_parameters(net).keys() == {"0.weight", "0.bias", "2.bias"}
    tuned = finetune(net, BATCHES, FAST)
    assert tuned[2].weight is tuned[0].weight
    assert "0.weight" in changed(net, tuned)


def test_factors_and_every_bias_may_be_trained_alone():
    net = small()
    names = {"fc7.0.weight", "fc7.0.bias", "fc7.1.weight", "fc7.1.bias", "fc6.bias", "fc8.bias"} & tensors(net).keys()
    assert "fc7.0.weight" in names
    assert trained_parameters(net, train="factors").keys() == names
    assert changed(net, finetune(net, BATCHES, FineTuning(1, rate=1e-2, train="factors"))) == names
    assert trained_parameters(net, ("fc8",), "factors").keys() == {"fc8.bias"}
    assert trained_parameters(nn.LSTM(3, 4), train="factors").keys() == {"bias_ih_l0", "bias_hh_l0"}


def test_everything_may_be_trained():
    net = mixed()
    tuned = finetune(net, BATCHES, FineTuning(2, rate=1e-2, train="all"))
    assert changed(net, tuned) == {name for name, _ in net.named_parameters()}


def test_what_contradicts_itself_or_trains_nothing_is_named():
    with pytest.raises(InvalidInputError, match="train must be one of 'layers', 'factors', 'all', got 'biases'"):
        FineTuning(train="biases")
    with pytest.raises(InvalidInputError, match="train = 'all' trains every layer: leave out `layers`"):
        FineTuning(train="all", layers=("fc7",))
    with pytest.raises(UnsupportedLayerError, match="the network's layers have no factor and no bias to train"):
        finetune(nn.Sequential(nn.Linear(10, 4, bias=False)), BATCHES, FineTuning(train="factors"))
