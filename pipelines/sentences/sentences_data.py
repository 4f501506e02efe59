"""Sentences of Python's own documentation, as batches for the encoder: what `help()` prints on the language.

Factories: `target` for statistics, `unseen` for scores; no sentence is in both. Which sentences there are depends on
the Python that runs, their order on the seed.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pydoc_data import topics

import torch

from sentences_network import model_folder

LONGEST = 64
"""Tokens of a sentence; what is longer is cut."""
_END = re.compile(r"(?<=[.!?]) ")


@dataclass(frozen=True, slots=True)
class Batches:
    """Sentences in a fixed order, each batch padded to its longest."""

    sentences: tuple[str, ...]
    batch_size: int

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        from transformers import AutoTokenizer

        tokens = AutoTokenizer.from_pretrained(model_folder())
        for start in range(0, len(self.sentences), self.batch_size):
            part = list(self.sentences[start : start + self.batch_size])
            encoded = tokens(part, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
            yield {key: encoded[key] for key in ("input_ids", "attention_mask")}

    def __len__(self) -> int:
        return math.ceil(len(self.sentences) / self.batch_size)

    @property
    def samples(self) -> int:
        """How many sentences there are."""
        return len(self.sentences)


def sentences(seed: int) -> tuple[str, ...]:
    """Return every sentence of 40 to 300 characters, once, in an order that the seed decides."""
    text = " ".join(" ".join(topics.topics[key] for key in sorted(topics.topics)).split())
    found = list(dict.fromkeys(part for part in _END.split(text) if 40 <= len(part) <= 300))
    random.Random(seed).shuffle(found)  # noqa: S311  # an order, not a secret
    return tuple(found)


def target(*, seed: int, samples: int = 400, batch_size: int = 20) -> Batches:
    """Return the sentences that statistics are taken of."""
    return Batches(sentences(seed)[:samples], batch_size)


def unseen(*, seed: int, samples: int = 400, batch_size: int = 20) -> Batches:
    """Return the last sentences: scores are of these."""
    return Batches(sentences(seed)[-samples:], batch_size)
