"""Communities that the network itself writes, and how well another network predicts them: its perplexity.

The package ships no communities, so the original is asked for some, one genus after another, each drawn from what it
thinks likely. Factories: `target` for statistics, `unseen` for scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.nn import functional

import microbiome_network

START, PADDING = 2, 0
LENGTH = 64


@dataclass(frozen=True, slots=True)
class Communities:
    """Batches of token numbers, (N, 64)."""

    tokens: torch.Tensor
    batch_size: int

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for part in self.tokens.split(self.batch_size):
            yield {"input_ids": part, "attention_mask": (part != PADDING).long()}

    def __len__(self) -> int:
        return math.ceil(len(self.tokens) / self.batch_size)


def target(*, seed: int, samples: int = 160, batch_size: int = 20) -> Communities:
    """Return communities for statistics."""
    return Communities(written(2 * seed, samples), batch_size)


def unseen(*, seed: int, samples: int = 80, batch_size: int = 20) -> Communities:
    """Return others."""
    return Communities(written(2 * seed + 1, samples), batch_size)


@cache
def written(seed: int, samples: int) -> torch.Tensor:
    """(n, 64): communities that the original writes; torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        network = microbiome_network.build()
    tokens = torch.full((samples, 1), START)
    generator, past, ended = torch.Generator().manual_seed(seed), None, torch.zeros(samples, dtype=torch.bool)
    with torch.inference_mode():
        for _ in range(LENGTH - 1):
            every = torch.ones_like(tokens)
            given = network(input_ids=tokens[:, -1:], attention_mask=every, past_key_values=past, use_cache=True)
            past = given.past_key_values
            chances = given.logits[:, -1].softmax(-1)
            drawn = torch.multinomial(chances, 1, generator=generator).masked_fill(ended[:, None], PADDING)
            ended |= drawn[:, 0] <= START + 1  # the end, or a token that stands for none
            tokens = torch.cat([tokens, drawn], 1)
    return tokens.clone()


def perplexity(model: nn.Module, batches: Iterable[Mapping[str, torch.Tensor]]) -> float:
    """Return exp of the mean -log probability of each token after the first."""
    lost, total = 0.0, 0
    with torch.inference_mode():
        for batch in batches:
            scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
            real = batch["attention_mask"][:, 1:].bool()
            lost += float(functional.cross_entropy(scores[real], batch["input_ids"][:, 1:][real], reduction="sum"))
            total += int(real.sum())
    return math.exp(lost / total)
