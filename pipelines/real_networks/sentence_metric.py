"""How near a sentence encoder's embeddings are to the original's: the mean cosine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

import torch
from torch import nn

import sentences_network


def cosine(model: nn.Module, batches: Iterable[Mapping[str, torch.Tensor]]) -> float:
    """Return the mean cosine of each sentence's embedding with the original's."""
    total, count, original = 0.0, 0, _original()
    with torch.inference_mode():
        for batch in batches:
            ours, theirs = (
                sentences_network.embeddings(network(**batch).last_hidden_state, batch["attention_mask"])
                for network in (model, original)
            )
            total, count = total + float((ours * theirs).sum()), count + len(ours)
    return total / count


@cache
def _original() -> nn.Module:
    return sentences_network.build()
