"""Training in two stages, as the DALR paper has them: on the source (code), then fine-tuned on the target (prose).

Everything random comes from ``seed`` inside a forked generator. The test side of the split is never loaded here, and
training never stops early: the last epoch is the result.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from bert_data import TokenBatches, source, target_train

WEIGHT_DECAY = 0.01
"""AdamW's own default."""


def train(  # noqa: PLR0913 - each is an option of the run file
    model: nn.Module,
    *,
    seed: int,
    report: Callable[[str], None],
    source_samples: int = 3000,
    source_epochs: int = 3,
    target_samples: int = 1500,
    target_epochs: int = 6,
    learning_rate: float = 1e-3,
) -> None:
    """Train ``model`` (of `bert_network.build`) in place; it is left in evaluation mode.

    ``seed`` decides the texts, their order and dropout; ``report`` takes a line after each epoch. Give `target_train`
    in the run file the same ``target_samples``: those are the sentences that statistics are taken on.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stages = {
            "source": (source(seed=seed, samples=source_samples), source_epochs),
            "target": (target_train(seed=seed, samples=target_samples), target_epochs),
        }
        for domain, (texts, epochs) in stages.items():
            _descend(model, texts, epochs, learning_rate, lambda line, domain=domain: report(f"{domain} {line}"))
    model.eval()


def _descend(
    model: nn.Module, texts: TokenBatches, epochs: int, learning_rate: float, report: Callable[[str], None]
) -> None:
    """AdamW, texts in a new random order each epoch, the learning rate falling to 0 along half a cosine."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=max(len(texts) * epochs, 1))
    model.train()
    for epoch in range(1, epochs + 1):
        total, right = 0.0, 0
        for rows in torch.randperm(len(texts.tokens)).split(texts.batch_size):
            inputs, labels = texts.batch(rows.tolist())
            scores = model(**inputs).logits
            loss = functional.cross_entropy(scores, labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            falling.step()
            total += loss.item() * len(rows)
            right += int((scores.argmax(dim=1) == labels).sum())
        samples = len(texts.tokens)
        report(f"epoch {epoch}/{epochs}: loss {total / samples:.4f}, accuracy on these texts {right / samples:.4f}")
