"""What makes another network: all that decides the outputs, weights or not; and nothing that only counts or caches."""

import copy

import pytest
import torch
import transformers
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import FingerprintMismatchError
from dalr_stream.network.layers.identity import fingerprint
from dalr_stream.network.layers.spec import select_layers


class Scaled(nn.Module):
    """A layer with settings of every make beside its weights."""

    def __init__(self, heads=2, temperature=1.0, table=None):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.heads, self.temperature, self.table = heads, temperature, table
        self.scaling, self.active, self._disabled = {"first": 1.0, "second": 0.5}, ["first"], False
        self.calls, self.last = 0, None

    def forward(self, x):
        self.calls += 1
        self.last = self.fc(x)
        return self.last


def build(**options):
    torch.manual_seed(0)
    return Scaled(**{"table": torch.arange(4.0), **options}).eval()


def changed(**attributes):
    net = build()
    for name, value in attributes.items():
        setattr(net, name, value)
    return net


@pytest.mark.parametrize(
    "other",
    [
        build(heads=4),
        build(temperature=0.5),
        build(table=torch.arange(4.0) + 1),
        build(table=None),
        changed(scaling={"first": 2.0, "second": 0.5}),
        changed(scaling={"first": 1.0}),
        changed(active=["second"]),
        changed(active=["first", "second"]),
        changed(_disabled=True),
    ],
)
def test_whatever_is_set_makes_another_network(other):
    assert fingerprint(other) != fingerprint(build())


@pytest.mark.parametrize(
    "other",
    [
        changed(calls=7),
        changed(last=torch.ones(3)),
        changed(name_or_path="elsewhere"),
        changed(hf_device_map={"": "cpu"}),
        build().train(),
        copy.deepcopy(build()),
    ],
)
def test_what_counts_caches_or_says_where_it_lies_does_not(other):
    assert fingerprint(other) == fingerprint(build())


def test_running_a_network_does_not_make_it_another():
    net = build()
    before = fingerprint(net)
    net(torch.ones(2, 4))
    assert fingerprint(net) == before


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(
    "change",
    [
        lambda net: setattr(net.config, "rms_norm_eps", 1e-3),
        lambda net: setattr(net.model.norm, "variance_epsilon", 1e-3),
        lambda net: setattr(net.model.layers[0].self_attn, "scaling", 1.0),
    ],
)
def test_a_value_of_a_config_or_of_a_module_of_transformers_makes_another_network(change):
    net = llama()
    before = fingerprint(net)
    change(net)
    assert fingerprint(net) != before


def test_a_transformers_network_stays_itself_as_it_runs_and_returns_other_things():
    net = llama()
    before = fingerprint(net)
    net(torch.ones(1, 5, dtype=torch.long))
    net.config.use_cache = False
    net.config.output_hidden_states = True
    assert fingerprint(net) == before == fingerprint(llama())


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch gives it up
def test_packed_weights_belong_to_it():
    """torch's own dynamic quantisation keeps int8 weights that are neither parameters nor buffers."""
    quantised = pytest.importorskip("torch.ao.quantization")

    def packed(scale):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 3))
        with torch.no_grad():
            net[0].weight.mul_(scale)
        return quantised.quantize_dynamic(net, {nn.Linear})

    one, same, other = packed(1.0), packed(1.0), packed(2.0)
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)


def test_rows_of_a_network_with_other_settings_are_not_added_to_a_store(tmp_path):
    batches, layers = [torch.randn(6, 4)], select_layers(build(), ["fc"])
    ds.capture(build(), batches, layers, tmp_path, domain="one")
    ds.capture(build(), batches, layers, tmp_path, domain="two")
    with pytest.raises(FingerprintMismatchError):
        ds.capture(changed(_disabled=True), batches, layers, tmp_path, domain="three")
