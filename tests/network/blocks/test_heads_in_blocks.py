"""Heads found and narrowed within blocks of a network that stays on disk, rotated ones too: as of the whole network."""

import numpy as np
import pytest
import torch
from drawn_pairs import same_network

import dalr_stream as ds
from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics import head_factors


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip

    def build():
        return transformers.AutoModelForCausalLM.from_config(config)

    torch.manual_seed(0)
    model, folder = build().eval(), tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    return model, build, folder


def factors_of(network, words, store):
    layers = ds.watch(network, ["re:model.layers.*proj"], example=words, heads=True)
    heads = {layer.name: layer.heads for layer in layers if layer.heads is not None}
    statistics = ds.accumulate(network, [words], layers, store=store)
    return {name: head_factors(statistics, found) for name, found in heads.items()}, layers


def test_heads_are_those_of_the_whole_network(llama, tmp_path):
    model, build, folder = llama
    network, words = ds.open_network(build, folder), {"input_ids": torch.randint(30, (16, 9))}
    whole, _ = factors_of(model, words, tmp_path / "whole")
    blocks, layers = factors_of(network, words, tmp_path / "blocks")
    assert list(whole) == list(blocks) == [f"model.layers.{number}.self_attn.o_proj" for number in range(2)]
    assert all(np.array_equal(whole[name].at_size(2).restore, blocks[name].at_size(2).restore) for name in whole)
    ds.compress_into(network, {name: one.at_size(2) for name, one in blocks.items()}, tmp_path / "small", example=words)
    small = ds.compress(model, {name: one.at_size(2) for name, one in whole.items()}, example=words)
    loaded, opened = ds.load(tmp_path / "small", build), ds.open_network(build, tmp_path / "small")
    assert same_network(loaded, small)
    with torch.no_grad():
        outputs = [one(**words).logits for one in (small, loaded, opened)]
    assert all(torch.equal(outputs[0], one) for one in outputs[1:])
    reason = next(layer.no_heads for layer in layers if layer.name.endswith("gate_proj"))
    assert reason  # which says why this one is no attention's output layer


def test_heads_need_an_example(llama, tmp_path):
    _, build, folder = llama
    network, words = ds.open_network(build, folder), {"input_ids": torch.randint(30, (16, 9))}
    with pytest.raises(InvalidInputError, match="give example="):
        ds.watch(network, ["re:model.layers.*proj"], heads=True)
    found, _ = factors_of(network, words, tmp_path / "blocks")
    name = next(iter(found))
    with pytest.raises(InvalidInputError, match="example=batch"):
        ds.compress_into(network, {name: found[name].at_size(2)}, tmp_path / "small")
