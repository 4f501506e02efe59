"""The encoder's feed-forward layers from more text, towards the stream, then trained towards the original's outputs.

    python pipelines/sentences/sentences_recovered.py

No labels. The same share of each layer's nodes goes, those that the loss feels least (`spectral_weighted`), and what
reads them is solved towards the residual stream, as in `sentences_in_turn.py`, from all sentences that are not kept
for the scores instead of 400. For the last line the layers that lost nodes are then trained on the same sentences
towards the hidden states of the original. Scores are on the 400 sentences of `sentences_budgets.py`, which nothing else
has seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

import dalr_stream as ds
import sentences_data
import sentences_network
from sentences_budgets import BUDGETS, FELT, LAYERS, ROWS, SEED, Scores, head
from sentences_in_turn import EVERY, choices

METHOD = ds.Method.SPECTRAL_WEIGHTED
UNSEEN = 400
EPOCHS, RATE = 4, 1e-4
"""The rate is the default; three epochs, tried first at 20 %, had raised the score each time."""


def towards_stream(model: nn.Module, batches: Iterable[Any], budgets: Iterable[float]) -> Iterator[nn.Module]:
    """Yield the network at each budget."""
    layers = ds.watch(model, LAYERS, example=next(iter(batches)), gradients=LAYERS)
    statistics = ds.accumulate(model, batches, layers, rows=FELT, folding=EVERY)
    for share in budgets:
        sized = choices(statistics, METHOD, share)
        options: dict[str, Any] = {"target": "stream", "rows": ROWS, "folding": EVERY}
        yield ds.compress_sequentially(model, batches, sized, **options).network


def recovered(model: nn.Module, small: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Return a compressed network whose feed-forward layers were trained towards the original's hidden states."""
    loss = ds.OutputLoss(model, rows=ROWS)
    return ds.finetune(small, batches, ds.FineTuning(epochs=EPOCHS, rate=RATE, layers=tuple(LAYERS), loss=loss))


def rows(model: nn.Module, many: Any, scores: Scores) -> Iterator[str]:
    """Yield the lines of the table in Markdown, each as soon as it is known."""

    def line(words: str, networks: Iterable[nn.Module]) -> str:
        cells = [f"{cosine:.3f}, {same:.0%}" for cosine, same in map(scores, networks)]
        return f"| {words} | {' | '.join(cells)} |"

    yield from head("the feed-forward layers' weights", BUDGETS)
    found = list(towards_stream(model, many, BUDGETS))
    yield line(f"{METHOD.label}, towards the stream, {many.samples:,} sentences", found)
    tuned = (recovered(model, small, many) for small in found)
    yield line(f"and trained towards the original's outputs, {EPOCHS} epochs", tuned)


def main() -> None:
    """Print the table."""
    model = sentences_network.build(pooler=False)  # embeddings do without it, and what is trained should too
    scores = Scores.of(model, sentences_data.unseen(seed=SEED, samples=UNSEEN))
    many = sentences_data.target(seed=SEED, samples=len(sentences_data.sentences(SEED)) - UNSEEN)
    for line in rows(model, many, scores):
        print(line, flush=True)


if __name__ == "__main__":
    main()
