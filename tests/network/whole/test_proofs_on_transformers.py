"""Architectures of transformers, small and random: moments are a hand-made Gram over exactly the right rows, a network
compressed at full rank is the original, and what cannot be proved is refused by name."""

import re

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.errors import InvalidInputError, UnsupportedLayerError
from dalr_stream.network.layers.kinds import CONVOLUTIONS, why_not
from dalr_stream.network.layers.spec import select_layers, weights_of
from dalr_stream.numerics.lowrank.factors import LowRankLayer

ALL_ROWS = ds.Folding(holdout=ds.HoldoutRule(0.0))
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
WORDS = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SEQUENCES = {**WORDS, "decoder_start_token_id": 0}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
BART = {f"{side}_{key}": value for side in ("encoder", "decoder")
        for key, value in {"layers": 1, "attention_heads": 2, "ffn_dim": 24}.items()}  # fmt: skip
IMAGE = {"image_size": 8, "patch_size": 4}
MASKS = {
    "*EncDecAttention.[kv]": "attention_mask",  # read what the encoder gave
    "*encoder_attn.[kv]_proj": "attention_mask",
    "re:(model[.])?encoder.*": "attention_mask",
    "*": "decoder_attention_mask",
}


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def text(*, decoder=False):
    generator = torch.Generator().manual_seed(1)
    places = torch.arange(7)
    masks = [(places < torch.tensor(lengths)[:, None]).long() for lengths in ([7, 4, 3, 6], [3, 7, 5, 6])]
    ids = [torch.randint(3, 40, (4, 7), generator=generator) * mask for mask in masks]
    batch = {"input_ids": ids[0], "attention_mask": masks[0]}
    return {**batch, "decoder_input_ids": ids[1], "decoder_attention_mask": masks[1]} if decoder else batch


OF_ENCODER = (r"(model\.)?encoder\..*", r".*EncDecAttention\.[kv]", r".*encoder_attn\.[kv]_proj")
IMAGES = {"pixel_values": drawn(3, 3, 8, 8)}
SOUND = {"input_features": drawn(3, 8, 20), "decoder_input_ids": torch.arange(3, 18).reshape(3, 5)}
NETWORKS = {
    "t5": (lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, **SEQUENCES)), text(decoder=True), MASKS),
    "bart": (
        lambda: hf.BartForConditionalGeneration(
            hf.BartConfig(d_model=16, **BART, max_position_embeddings=16, **SEQUENCES)
        ),
        text(decoder=True),
        MASKS,
    ),
    "deberta": (
        lambda: hf.DebertaV2Model(
            hf.DebertaV2Config(**SIZES, vocab_size=40, relative_attention=True, pos_att_type=["p2c", "c2p"])
        ),
        text(),
        "attention_mask",
    ),
    "qwen2": (
        lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**SIZES, **WORDS, num_key_value_heads=1)), text(), "attention_mask"
    ),
    "bloom": (
        lambda: hf.BloomForCausalLM(hf.BloomConfig(hidden_size=16, n_layer=2, n_head=2, **WORDS)),
        text(),
        "attention_mask",
    ),
    "vit": (lambda: hf.ViTModel(hf.ViTConfig(**SIZES, **IMAGE)), IMAGES, None),
    "clip": (lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**SIZES, **IMAGE)), IMAGES, None),
    "siglip": (
        lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**SIZES, **IMAGE)), IMAGES, None
    ),
    "whisper": (
        lambda: hf.WhisperForConditionalGeneration(
            hf.WhisperConfig(
                d_model=16, **BART, num_mel_bins=8, max_source_positions=10, max_target_positions=10,
                **{**SEQUENCES, "decoder_start_token_id": 1},
            )
        ),
        SOUND,
        None,
    ),
    "convnext": (
        lambda: hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2)),
        {"pixel_values": drawn(2, 3, 32, 32)},
        None,
    ),
}  # fmt: skip
TABLES = ("pos_key_proj", "pos_query_proj")
"""Of DeBERTa: they read relative positions, which are no sample's."""


def built(build):
    torch.manual_seed(0)
    net = build().eval().double()
    for parameter in net.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.3)
    return net


def layers_of(net):
    names = [
        name for name, m in net.named_modules() if isinstance(m, (nn.Linear, *CONVOLUTIONS)) and why_not(m) is None
    ]
    return [spec for spec in select_layers(net, names) if not spec.name.endswith(TABLES)]


def full_rank(net, layer):
    weight, bias = weights_of(net, layer)
    outputs, inputs = weight.shape
    bias = np.zeros(outputs) if bias is None else bias
    return LowRankLayer(*((np.eye(inputs), weight) if inputs <= outputs else (weight, np.eye(outputs))), bias)


def outputs_of(net, batch):
    with torch.no_grad():
        given = net(**batch)
    return [value for value in given.values() if isinstance(value, torch.Tensor)]


def read_by(net, batch, names):
    """What each linear layer reads."""
    read = {}
    hooks = [
        net.get_submodule(name).register_forward_pre_hook(lambda _, x, name=name: read.update({name: x[0].detach()}))
        for name in names
    ]
    outputs_of(net, batch)
    for hook in hooks:
        hook.remove()
    return read


@pytest.mark.parametrize(("build", "batch", "mask"), NETWORKS.values(), ids=NETWORKS)
def test_moments_are_those_of_exactly_the_rows_that_count(build, batch, mask):
    net = built(build)
    layers = layers_of(net)
    moments = accumulate_stream(net, [batch], layers, rows=ds.RowRule(mask=mask), folding=ALL_ROWS)
    linear = [spec.name for spec in layers if spec.kind == "Linear"]
    for name, x in read_by(net, batch, linear).items():
        of_decoder = mask is MASKS and not any(re.fullmatch(one, name) for one in OF_ENCODER)
        key = "decoder_attention_mask" if of_decoder else "attention_mask"
        counted = batch[key].bool() if mask is not None and x.ndim == 3 else torch.ones(x.shape[:-1], dtype=torch.bool)
        rows = x[counted].numpy()
        assert moments[name].count == len(rows), name
        np.testing.assert_allclose(moments[name].second_moment, rows.T @ rows / len(rows), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("build", "batch"), [case[:2] for case in NETWORKS.values()], ids=NETWORKS)
def test_a_network_compressed_at_full_rank_is_the_original(build, batch):
    net = built(build)
    tied = {"lm_head", "proj_out"}  # to the embeddings: refused by name elsewhere
    pairs = {spec.name: full_rank(net, spec.name) for spec in layers_of(net) if spec.name not in tied}
    small = ds.compress(net, pairs, example=batch)
    for found, expected in zip(outputs_of(small, batch), outputs_of(net, batch), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["encoder.layer.0.attention.self.pos_key_proj"])
def test_a_table_of_relative_positions_has_no_samples(name):
    build, batch, mask = NETWORKS["deberta"]
    net = built(build)
    with pytest.raises(InvalidInputError, match=rf"layer '{name}': none of its rows, .*, changes with a sample"):
        accumulate_stream(net, [batch], select_layers(net, [name]), rows=ds.RowRule(mask=mask))


def test_the_mask_of_the_encoder_is_not_that_of_the_decoder():
    build, batch, _ = NETWORKS["t5"]
    net = built(build)
    layers = select_layers(net, ["decoder.*.wi"])
    with pytest.raises(InvalidInputError, match=r"layer 'decoder.*.wi': its rows change with other inputs"):
        accumulate_stream(net, [batch], layers, rows=ds.RowRule(mask="attention_mask"))


def test_each_token_is_measured_at_the_expert_that_a_router_sends_it_to():
    config = hf.SwitchTransformersConfig(**T5, num_experts=2, **SEQUENCES)
    net, batch = built(lambda: hf.SwitchTransformersForConditionalGeneration(config)), text(decoder=True)
    experts = select_layers(net, ["decoder.*.experts.*.wi"])
    found = accumulate_stream(net, [batch], experts, rows=ds.RowRule(mask="decoder_attention_mask"), folding=ALL_ROWS)
    counts = [found[expert.stream].count for expert in experts]
    assert sum(counts) == len(experts) // 2 * batch["decoder_attention_mask"].sum()
    assert min(counts) > 0


def test_padding_that_reaches_its_neighbours_is_told():
    """MobileBERT reads each token beside those before and after it, padding or not."""
    config = hf.MobileBertConfig(**SIZES, **WORDS, embedding_size=8, intra_bottleneck_size=8, true_hidden_size=8)
    net = built(lambda: hf.MobileBertModel(config))
    layers = select_layers(net, ["embeddings.embedding_transformation"])
    with pytest.raises(InvalidInputError, match="rows that count change with the content of the padding"):
        accumulate_stream(net, [text()], layers, rows=ds.RowRule(mask="attention_mask"))


@pytest.mark.filterwarnings("ignore")
def test_a_layer_whose_weight_is_read_without_a_call_is_refused():
    net = built(lambda: hf.MambaForCausalLM(hf.MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4, **WORDS)))
    name = "backbone.layers.0.mixer.dt_proj"
    with pytest.raises(UnsupportedLayerError, match=rf"layer '{name}': cannot be replaced: the network's output"):
        ds.compress(net, {name: full_rank(net, name)}, example={"input_ids": text()["input_ids"]})
