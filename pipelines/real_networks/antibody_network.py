"""AntiBERTy (Ruffolo et al. 2021): a BERT of antibody sequences, 25.8 million parameters, which its package ships.

The package is MIT-licensed; its weights came with it up to version 0.1.3. The masked language model is built from them
by transformers; the package's heads for species, chain and grafting are left out.
"""

from __future__ import annotations

import json

from torch import nn

from package_files import file_of, tensors_of

PACKAGE, INSTALL = "antiberty", "--no-deps 'antiberty==0.1.3'"
FOLDER = "trained_models/AntiBERTy_md_smooth"
OTHER_HEADS = ("cls.species", "cls.chain", "cls.graft", "bert.pooler", "bert.embeddings.position_ids")


def build() -> nn.Module:
    """Build the network with its weights: a batch is `input_ids` and `attention_mask`, (N, T)."""
    from transformers import BertConfig, BertForMaskedLM

    settings = json.loads(file_of(PACKAGE, f"{FOLDER}/config.json", install=INSTALL).read_text())
    known = BertConfig().to_dict()
    network = BertForMaskedLM(BertConfig(**{key: value for key, value in settings.items() if key in known}))
    weights = tensors_of(PACKAGE, f"{FOLDER}/pytorch_model.bin", install=INSTALL)
    network.load_state_dict({name: one for name, one in weights.items() if not name.startswith(OTHER_HEADS)})
    return network.eval()
