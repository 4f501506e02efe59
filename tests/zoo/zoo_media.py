"""Vision, sound, time series and pairs of images and text, from the configuration classes of transformers."""

from __future__ import annotations

from functools import partial
from typing import Any

from zoo_case import WORDS, Architecture, numbers, words
from zoo_text import BART, SEQUENCES, SIDES, SIZES, made, text

SMALL = {"image_size": 8, "patch_size": 4}


def image(size: int, samples: int = 3) -> dict[str, Any]:
    return {"pixel_values": numbers(samples, 3, size, size)}


def vision(kind: str, size: int = 8, *, family: str = "vision", **options: Any) -> Architecture:
    return Architecture(family, partial(made, kind, **options), image(size))


def sound(kind: str, **options: Any) -> Architecture:
    wave = {"input_values": numbers(3, 160)}
    convolutions = {"conv_dim": [8, 8], "conv_stride": [4, 2], "conv_kernel": [8, 4], "num_feat_extract_layers": 2,
                    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}  # fmt: skip
    return Architecture("sound", partial(made, kind, **{**SIZES, **convolutions, "vocab_size": WORDS, **options}), wave)


RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "out_features": ["stage2"]}


def resnet_backbone() -> Any:
    import transformers as hf

    return hf.ResNetConfig(**RESNET, layer_type="basic")


def detr(kind: str, **options: Any) -> Any:
    return made(
        kind, backbone_config=resnet_backbone(), use_timm_backbone=False, backbone=None, d_model=16, num_queries=5,
        **SIDES, num_labels=4, **options,
    )  # fmt: skip


MEDIA = {
    "ViT": vision("ViTForImageClassification", **SIZES, **SMALL),
    "DeiT": vision("DeiTModel", **SIZES, **SMALL),
    "BEiT": vision("BeitModel", **SIZES, **SMALL),
    "DINOv2": vision("Dinov2Model", **SIZES, **SMALL),
    "CLIP vision": vision("CLIPVisionModel", **SIZES, **SMALL),
    "SigLIP vision": vision("SiglipVisionModel", **SIZES, **SMALL),
    "Swin": vision("SwinModel", 16, image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2],
                   window_size=2),
    "Swin-v2": vision("Swinv2Model", 16, image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2],
                      window_size=2),
    "ConvNeXt": vision("ConvNextModel", 32, hidden_sizes=[8, 8], depths=[1, 1], num_stages=2),
    "ResNet": vision("ResNetForImageClassification", 32, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
    "RegNet": vision("RegNetModel", 32, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4),
    "MobileNetV2": vision("MobileNetV2Model", 32, depth_multiplier=0.25, finegrained_output=False, image_size=32),
    "EfficientNet": vision("EfficientNetModel", 32, image_size=32, in_channels=[8, 8], out_channels=[8, 16],
                           kernel_sizes=[3, 3], strides=[1, 2], num_block_repeats=[1, 1], expand_ratios=[1, 4],
                           depthwise_padding=[], hidden_dim=320, width_coefficient=0.25),
    "MobileViT": vision("MobileViTModel", 32, image_size=32, hidden_sizes=[8, 12, 16],
                        neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16], num_attention_heads=2),
    "SegFormer": vision("SegformerForSemanticSegmentation", 32, num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1],
                        hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2], num_attention_heads=[1, 2],
                        mlp_ratios=[2, 2], decoder_hidden_size=8),
    "PVT": vision("PvtModel", 32, image_size=32, num_encoder_blocks=2, depths=[1, 1], sequence_reduction_ratios=[2, 1],
                  hidden_sizes=[8, 16], patch_sizes=[4, 2], strides=[4, 2], num_attention_heads=[1, 2],
                  mlp_ratios=[2, 2]),
    "PoolFormer": vision("PoolFormerModel", 32, num_encoder_blocks=2, depths=[1, 1], hidden_sizes=[8, 16],
                         patch_sizes=[7, 3], strides=[4, 2], padding=[2, 1], mlp_ratio=2.0),
    "LeViT": vision("LevitModel", 32, image_size=32, hidden_sizes=[16, 16, 16], num_attention_heads=[2, 2, 2],
                    depths=[1, 1, 1], key_dim=[8, 8, 8], attention_ratio=[2, 2, 2], mlp_ratio=[2, 2, 2]),
    "CvT": vision("CvtModel", 32, embed_dim=[8, 8, 16], num_heads=[1, 2, 2], depth=[1, 2, 3], mlp_ratio=[2.0] * 3),
    "DPT": vision("DPTForDepthEstimation", 8, family="dense", **{**SIZES, "num_hidden_layers": 4}, **SMALL,
                  backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
                  is_hybrid=False, reassemble_factors=[4, 2, 1, 0.5]),
    "YOLOS": vision("YolosForObjectDetection", 8, family="detector", **SIZES, image_size=[8, 8], patch_size=4,
                    num_detection_tokens=5, num_labels=4),
    "DETR": Architecture("detector", partial(detr, "DetrForObjectDetection"), image(32)),
    "Conditional DETR": Architecture("detector", partial(detr, "ConditionalDetrForObjectDetection"), image(32)),
    "Wav2Vec2": sound("Wav2Vec2ForCTC"),
    "HuBERT": sound("HubertModel"),
    "WavLM": sound("WavLMModel", num_buckets=8, max_bucket_distance=16),
    "AST": Architecture(
        "sound",
        partial(made, "ASTForAudioClassification", **SIZES, patch_size=4, frequency_stride=4, time_stride=4,
                max_length=16, num_mel_bins=8),
        {"input_values": numbers(3, 16, 8)},
    ),
    "Whisper": Architecture(
        "sound",
        partial(made, "WhisperForConditionalGeneration", d_model=16, **SIDES, num_mel_bins=8, max_source_positions=10,
                max_target_positions=10, **{**SEQUENCES, "decoder_start_token_id": 1}),
        {"input_features": numbers(3, 8, 20), "decoder_input_ids": words(3, 5)},
    ),
    "Speech2Text": Architecture(
        "sound",
        partial(made, "Speech2TextForConditionalGeneration", **BART, input_feat_per_channel=8, max_source_positions=20,
                max_target_positions=10, conv_channels=8, **SEQUENCES),
        {"input_features": numbers(3, 20, 8), "decoder_input_ids": words(3, 5)},
    ),
    "CLIP": Architecture(
        "image and text",
        partial(made, "CLIPModel", text_config={**SIZES, "vocab_size": WORDS, "eos_token_id": 2},
                vision_config={**SIZES, **SMALL}, projection_dim=8),
        {**image(8, 4), **text()},
        {"text_model.*": "attention_mask"},
    ),
    "PatchTST": Architecture(
        "time series",
        partial(made, "PatchTSTForPrediction", num_input_channels=2, context_length=16, patch_length=4, patch_stride=4,
                d_model=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=24, prediction_length=4),
        {"past_values": numbers(3, 16, 2)},
    ),
}  # fmt: skip
