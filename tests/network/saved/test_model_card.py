"""The page beside a saved network, and transformers models that come back from their own configuration."""

import copy
import gc
import json
import pickle
import subprocess
import sys
import weakref

import pytest
import torch
from dense_network import Net, X, build, factors, moments
from safetensors import safe_open
from torch import nn

from dalr_stream.network.layers.spec import weights_of
from dalr_stream.network.saved.checkpoint import load, save
from dalr_stream.network.surgery.compress import compress, parameter_bytes, parameter_count
from dalr_stream.network.surgery.origin import Origin
from dalr_stream.numerics.lowrank.truncated import truncated_svd
from dalr_stream.numerics.selection.greedy import spectral


def compressed():
    net = build()
    parts = {"fc7": factors(net, "fc7", 3), "fc6": spectral(moments(net, "fc7")).at_size(5)}
    return compress(net, parts, example=X)


def page(folder):
    return (folder / "README.md").read_text()


LINES = (
    "| parameters | 289 | 146 | 50.5% |",
    "| bytes | 1,156 | 584 | 50.5% |",
    "| fc6 | 12 x 10 | 5 of 12 outputs | 132 | 55 |",
    "| fc7 | 9 x 12 | a pair, 3 x 5, 9 x 3 | 117 | 51 |",
)


def test_the_figures_are_those_of_the_networks():
    """10 x 12 + 12, 12 x 9 + 9, 9 x 4 + 4 before; 10 x 5 + 5, 5 x 3, 3 x 9 + 9, 9 x 4 + 4 after."""
    origin, small = Origin.of(compressed()), compressed()
    assert (origin.parameters, origin.bytes) == (parameter_count(build()), parameter_bytes(build()))
    left = {change.layer: change.parameters for change in origin.changes(small)}
    gone = sum(change.before.parameters for change in origin.changes(small)) - sum(left.values())
    assert parameter_count(build()) - parameter_count(small) == gone
    assert origin == Origin.of(build())


def test_the_page_says_what_each_layer_was_and_is(tmp_path):
    provenance = {"date": "2026-01-31", "domains": {"target": {"samples": 90}}, "configuration": {"run": "long"}}
    text = page(save(compressed(), tmp_path / "small", provenance=provenance))
    for line in (*LINES, "- date: 2026-01-31", "- domains:\n  - target:\n    - samples: 90"):
        assert line in text
    assert "fc8" not in text
    assert "long" not in text
    assert json.loads((tmp_path / "small" / "plan.json").read_text())["before"] == {"parameters": 289, "bytes": 1156}


def test_figures_are_of_the_first_original_however_often_it_is_compressed_saved_and_loaded(tmp_path):
    net = build()
    half = compress(net, {"fc7": factors(net, "fc7", 3)})
    half = load(save(half, tmp_path / "half"), Net)
    small = compress(half, {"fc6": spectral(moments(net, "fc7")).at_size(5)}, example=X)
    text = page(save(small, tmp_path / "small"))
    for line in LINES:
        assert line in text


def test_a_network_that_was_not_compressed_says_so(tmp_path):
    text = page(save(build(), tmp_path / "whole"))
    assert "| parameters | 289 | 289 | 100.0% |" in text
    assert "the network is as it was" in text
    assert "became" not in text


def test_convolutions_are_told_by_their_patches(tmp_path):
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))
    small = compress(net, {"0": truncated_svd(*weights_of(net, "0")).at_rank(2)})
    assert "| 0 | 6 x 18 | a pair, 2 x 18, 6 x 2 | 114 | 54 |" in page(save(small, tmp_path / "small"))


# --- transformers -------------------------------------------------------------------------------------------------

INNER = "bert.encoder.layer.1.intermediate.dense"


@pytest.fixture(scope="module")
def bert():
    """A small one, with one of its layers as a pair."""
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 8, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = BertForMaskedLM(BertConfig(vocab_size=20, max_position_embeddings=8, **sizes)).eval()
    return compress(model, {INNER: truncated_svd(*weights_of(model, INNER)).at_rank(3)})


def test_a_transformers_model_comes_back_from_its_configuration_alone(bert, tmp_path):
    from transformers import AutoConfig, AutoModelForMaskedLM

    folder = save(bert, tmp_path / "small")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "plan.json",
    ]  # fmt: skip
    back = load(folder, lambda: AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(folder)))
    tokens = torch.arange(10).reshape(2, 5)
    with torch.no_grad():
        assert torch.equal(back(tokens).logits, bert(tokens).logits)
    assert back.cls.predictions.decoder.weight is back.bert.embeddings.word_embeddings.weight  # tied, as it was
    text = page(folder)
    assert f"| {INNER} | 24 x 8 | a pair, 3 x 8, 24 x 3 | 216 | 120 |" in text
    assert "build=lambda: BertForMaskedLM(AutoConfig.from_pretrained(this_folder))" in text


def test_its_own_save_pretrained_keeps_the_factors(bert, tmp_path):
    bert.save_pretrained(tmp_path / "own")
    with safe_open(tmp_path / "own" / "model.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor(f"{INNER}.0.weight"), bert.get_submodule(INNER)[0].weight)
        assert torch.equal(file.get_tensor(f"{INNER}.1.weight"), bert.get_submodule(INNER)[1].weight)
        assert f"{INNER}.weight" not in file.keys()  # noqa: SIM118  # it is no mapping


def test_a_network_that_was_only_tried_is_gone_at_once_and_copies_save_themselves(bert, tmp_path):
    """Sizes within a budget try some sixty networks: held by a circle, they waited in memory for the collector."""
    gc.collect()
    gc.disable()
    try:
        small = compress(bert, {})
        there = weakref.ref(small)
        del small
        assert there() is None
    finally:
        gc.enable()
    for number, other in enumerate((copy.deepcopy(bert), pickle.loads(pickle.dumps(bert)))):  # noqa: S301  # our own
        with torch.no_grad():
            other.get_submodule(INNER)[0].weight.fill_(number)
        other.save_pretrained(tmp_path / str(number))
        with safe_open(tmp_path / str(number) / "model.safetensors", "pt") as file:
            assert bool((file.get_tensor(f"{INNER}.0.weight") == number).all())


def test_saving_another_network_imports_no_transformers(tmp_path):
    code = (
        "import sys, torch, dalr_stream as ds\n"
        f"ds.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), r'{tmp_path / 'net'}')\n"
        "assert 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
