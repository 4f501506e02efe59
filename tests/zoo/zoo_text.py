"""Encoders, decoders and encoder-decoders of text, from the configuration classes of transformers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import transformers as hf
from zoo_case import WORDS, Architecture, padded

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SPECIAL = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SEQUENCES = {**SPECIAL, "decoder_start_token_id": 0}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
SIDES = {f"{side}_{key}": value for side in ("encoder", "decoder")
         for key, value in {"layers": 1, "attention_heads": 2, "ffn_dim": 24}.items()}  # fmt: skip
BART = {"d_model": 16, **SIDES, "max_position_embeddings": 24}
MASKS = {
    "re:.*EncDecAttention\\.[kv]": "attention_mask",  # read what the encoder gave
    "re:.*(encoder_attn|cross_attn)\\.[kv]_proj": "attention_mask",
    "re:(model\\.)?encoder\\..*": "attention_mask",
    "*": "decoder_attention_mask",
}
"""Of encoder-decoders, by pattern of layers."""


def made(kind: str, config: str | None = None, **options: Any) -> Any:
    """Return a network of transformers; its configuration class is that of its name unless `config` is given."""
    if config is None:
        config = next(f"{kind[:n]}Config" for n in range(len(kind), 0, -1) if hasattr(hf, f"{kind[:n]}Config"))
    return getattr(hf, kind)(getattr(hf, config)(**options))


def text() -> dict[str, Any]:
    ids, mask = padded()
    return {"input_ids": ids, "attention_mask": mask}


def two_texts() -> dict[str, Any]:
    ids, mask = padded((3, 7, 5, 6), seed=2)
    return {**text(), "decoder_input_ids": ids, "decoder_attention_mask": mask}


def encoder(kind: str, **options: Any) -> Architecture:
    return Architecture("encoder", partial(made, kind, **{**SIZES, **SPECIAL, **options}), text(), "attention_mask")


def decoder(kind: str, *, family: str = "decoder", **options: Any) -> Architecture:
    build = partial(made, kind, **{**SIZES, **SPECIAL, **options})
    return Architecture(family, build, text(), "attention_mask", generates=True)


def sequences(kind: str, **options: Any) -> Architecture:
    build = partial(made, kind, **{**SEQUENCES, **options})
    return Architecture("encoder-decoder", build, two_texts(), MASKS, generates=True)


def routed() -> Any:
    """Switch, whose routers compute in double precision as all else does."""
    sparse = dict.fromkeys(("num_decoder_layers", "num_sparse_encoder_layers", "num_sparse_decoder_layers"), 1)
    net = made("SwitchTransformersForConditionalGeneration", **T5, **sparse, **SEQUENCES, num_experts=2)
    for module in net.modules():
        if hasattr(module, "router_probabilities") or type(module).__name__.endswith("Router"):
            module.dtype = torch.float64
    return net


def rescaled() -> Any:
    """RWKV after the rescaling of its weights that it does the first time it runs: saved as it is then."""
    net = made("RwkvForCausalLM", **SIZES, **SPECIAL, attention_hidden_size=16)
    net.rwkv.layers_are_rescaled = True
    return net


EXPERTS = {"family": "experts", "experts_implementation": "eager", "num_key_value_heads": 1}
TEXT = {
    "BERT": encoder("BertForSequenceClassification"),
    "RoBERTa": encoder("RobertaModel"),
    "DistilBERT": Architecture(
        "encoder",
        partial(made, "DistilBertModel", dim=16, n_layers=2, n_heads=2, hidden_dim=24, vocab_size=WORDS),
        text(),
        "attention_mask",
    ),
    "ALBERT": encoder("AlbertModel", embedding_size=8),
    "ELECTRA": encoder("ElectraModel", embedding_size=8),
    "MPNet": encoder("MPNetModel"),
    "DeBERTa-v2": encoder("DebertaV2Model", relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "MobileBERT": encoder("MobileBertModel", embedding_size=8, intra_bottleneck_size=8, true_hidden_size=8),
    "SqueezeBERT": encoder("SqueezeBertModel", embedding_size=16, q_groups=2, k_groups=2, v_groups=2,
                           post_attention_groups=1, intermediate_groups=2, output_groups=2),
    "ConvBERT": encoder("ConvBertModel", embedding_size=16, head_ratio=1, conv_kernel_size=3),
    "RoFormer": encoder("RoFormerModel", embedding_size=16),
    "ModernBERT": encoder("ModernBertModel", cls_token_id=1, sep_token_id=2),
    "XLNet": encoder("XLNetModel", d_model=16, n_layer=2, n_head=2, d_inner=24),
    "FNet": encoder("FNetModel"),
    "Nystromformer": encoder("NystromformerModel", num_landmarks=7, segment_means_seq_len=7),
    "Funnel": Architecture(
        "encoder",
        partial(made, "FunnelModel", block_sizes=[1, 1], d_model=16, n_head=2, d_head=8, d_inner=24, vocab_size=WORDS),
        text(),
        "attention_mask",
    ),
    "GPT-2": decoder("GPT2LMHeadModel", **GPT),
    "GPT-Neo": decoder("GPTNeoForCausalLM", num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]]),
    "GPT-NeoX": decoder("GPTNeoXForCausalLM"),
    "GPT-J": decoder("GPTJForCausalLM", **GPT, rotary_dim=4),
    "OPT": decoder("OPTForCausalLM", ffn_dim=24, word_embed_proj_dim=16),
    "BLOOM": decoder("BloomForCausalLM", n_layer=2, n_head=2),
    "MPT": decoder("MptForCausalLM", d_model=16, n_layers=2, n_heads=2),
    "Llama (GQA)": decoder("LlamaForCausalLM", num_attention_heads=4, num_key_value_heads=2),
    "Mistral (GQA)": decoder("MistralForCausalLM", num_key_value_heads=1, sliding_window=4),
    "Qwen2 (GQA)": decoder("Qwen2ForCausalLM", num_key_value_heads=1),
    "Qwen3": decoder("Qwen3ForCausalLM", num_key_value_heads=1, head_dim=8),
    "Gemma2 (MQA)": decoder("Gemma2ForCausalLM", num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8),
    "Falcon (MQA)": decoder("FalconForCausalLM", multi_query=True, new_decoder_architecture=False),
    "StarCoder2": decoder("Starcoder2ForCausalLM", num_key_value_heads=1),
    "Phi": decoder("PhiForCausalLM"),
    "Phi-3": decoder("Phi3ForCausalLM", num_key_value_heads=1),
    "Cohere": decoder("CohereForCausalLM", num_key_value_heads=1),
    "StableLM": decoder("StableLmForCausalLM", num_key_value_heads=1),
    "Mamba": decoder("MambaForCausalLM", family="recurrent", state_size=4),
    "RWKV": Architecture("recurrent", rescaled, {"input_ids": text()["input_ids"]}, generates=True),
    "Mixtral": decoder("MixtralForCausalLM", **EXPERTS, num_local_experts=2),
    "Qwen2-MoE": decoder("Qwen2MoeForCausalLM", **EXPERTS, num_experts=2,
                         num_experts_per_tok=1, moe_intermediate_size=12, shared_expert_intermediate_size=12),
    "OLMoE": decoder("OlmoeForCausalLM", **EXPERTS, num_experts=2,
                     num_experts_per_tok=1),
    "Switch": Architecture("experts", routed, two_texts(), MASKS, generates=True),
    "T5": sequences("T5ForConditionalGeneration", **T5),
    "T5 (gated)": sequences("T5ForConditionalGeneration", **T5, feed_forward_proj="gated-gelu"),
    "LongT5": sequences("LongT5ForConditionalGeneration", **T5, local_radius=3),
    "BART": sequences("BartForConditionalGeneration", **BART),
    "Pegasus": sequences("PegasusForConditionalGeneration", **BART),
    "Marian": sequences("MarianMTModel", config="MarianConfig", **BART),
    "mBART": sequences("MBartForConditionalGeneration", **BART),
    "M2M100": sequences("M2M100ForConditionalGeneration", **BART),
    "Blenderbot": sequences("BlenderbotForConditionalGeneration", **BART),
}  # fmt: skip
