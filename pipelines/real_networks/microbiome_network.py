"""MGM (Zhang et al. 2024): a decoder that writes microbial communities, genus by genus, 8.9 million parameters.

The package `microformer-mgm` ships it (MIT): GPT-2 of 8 blocks over 9,669 tokens, built by transformers.
"""

from __future__ import annotations

import json

from torch import nn

from package_files import file_of, tensors_of

PACKAGE, INSTALL = "mgm", "--no-deps 'microformer-mgm>=0.5.8'"
FOLDER = "resources/general_model"


def build() -> nn.Module:
    """Build the network with its weights: a batch is `input_ids` and `attention_mask`, (N, T)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = json.loads(file_of(PACKAGE, f"{FOLDER}/config.json", install=INSTALL).read_text())
    known = GPT2Config().to_dict()
    network = GPT2LMHeadModel(GPT2Config(**{key: value for key, value in settings.items() if key in known}))
    network.load_state_dict(tensors_of(PACKAGE, f"{FOLDER}/pytorch_model.bin", install=INSTALL))
    return network.eval()
