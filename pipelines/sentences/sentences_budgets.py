"""The encoder's feed-forward layers at several budgets: plain rules, one family, and what `ds.sizes` finds.

    python pipelines/sentences/sentences_budgets.py

No labels and no fine-tuning. Scores are of sentences that nothing else has seen: the mean cosine of the embeddings with
the original's, and how often a sentence's nearest neighbour among the others is the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import dalr_stream as ds
import sentences_data
import sentences_network
from dalr_stream.network import Replacement

LAYERS = [r"re:encoder\.layer\.\d+\.(intermediate|output)\.dense"]
ROWS = ds.RowRule(mask="attention_mask")
FELT = ds.RowRule(mask="attention_mask", gradients=ds.GradientRule(metric="values", outputs="last_hidden_state"))
"""With what the encoder's hidden states feel of each layer: one random vector a sentence, no labels."""
UNIFORM = (
    ds.Method.SVD,
    ds.Method.DALR_ANCHORED_AFFINE,
    ds.Method.DALR_WEIGHTED_AFFINE,
    ds.Method.SPECTRAL,
    ds.Method.SPECTRAL_WEIGHTED,
)
CHOSEN = {
    "factor pairs alone": ("dalr_anchored_affine",),
    "both families": ("dalr_anchored_affine", "spectral"),
    "both families, plain and weighted": (),
}
BUDGETS = (0.5, 0.3, 0.2)
SEED = 0


@dataclass(frozen=True, slots=True)
class Scores:
    """Embeddings of sentences by the original, and how near another network's are."""

    batches: Iterable[Any]
    expected: torch.Tensor

    @classmethod
    def of(cls, model: nn.Module, batches: Iterable[Any]) -> Scores:
        """Embed the sentences."""
        return cls(batches, embed(model, batches))

    def __call__(self, small: nn.Module) -> tuple[float, float]:
        """Return the mean cosine, and the share of sentences whose nearest neighbour is the same."""
        given = embed(small, self.batches)
        same = nearest(given) == nearest(self.expected)
        return float((given * self.expected).sum(1).mean()), float(same.double().mean())


def embed(model: nn.Module, batches: Iterable[Mapping[str, torch.Tensor]]) -> torch.Tensor:
    """(n, d): every sentence."""
    with torch.inference_mode():
        return torch.cat(
            [sentences_network.embeddings(model(**one).last_hidden_state, one["attention_mask"]) for one in batches]
        )


def nearest(embeddings: torch.Tensor) -> torch.Tensor:
    """(n,): the number of the nearest other sentence."""
    cosines = embeddings @ embeddings.T
    return cosines.fill_diagonal_(-1.0).argmax(1)


def plain(statistics: ds.Statistics, method: ds.Method, share: float) -> dict[str, Replacement]:
    """Return every layer at the same share: of its break-even rank, or of the nodes of those that have some to lose."""
    found: dict[str, Replacement] = {}
    for name, layer in statistics.items():
        m, d = layer.weight.shape
        if method.family is ds.numerics.Family.LOW_RANK:
            found[name] = ds.solve(layer, method).at_rank(int(share * m * d / (m + d)))
        elif layer.nodes is not None:
            found[name] = ds.solve(layer, method).at_size(int(share * m), ridge=1e-3)
    return found


def head(words: str, budgets: Sequence[float]) -> Iterator[str]:
    """Yield the first lines of a table with a column a budget."""
    yield f"| {words} | " + " | ".join(f"{share:.0%}" for share in budgets) + " |"
    yield "|---|" + "---:|" * len(budgets)


def rows(model: nn.Module, batches: Iterable[Any], scores: Scores) -> Iterator[str]:
    """Yield the lines of the table in Markdown, each as soon as it is known."""
    layers = ds.watch(model, LAYERS, example=next(iter(batches)), gradients=LAYERS)
    statistics = ds.accumulate(model, batches, layers, rows=FELT)
    distance = ds.OutputDistance(model, batches, rows=ROWS)

    def cell(replacements: Mapping[str, Replacement]) -> str:
        cosine, same = scores(ds.compress(model, replacements, example=layers.structure))
        return f"{cosine:.3f}, {same:.0%}"

    yield from head("the feed-forward layers' weights", BUDGETS)
    for method in UNIFORM:
        cells = (cell(plain(statistics, method, share)) for share in BUDGETS)
        yield f"| {method.label}, the same share of each layer | " + " | ".join(cells) + " |"
    for words, methods in CHOSEN.items():
        found = ds.sizes(model, statistics, distance, BUDGETS, structure=layers.structure, methods=methods)
        cells = (cell(plan.replacements) for plan in found)
        yield f"| `ds.sizes`, {words} | " + " | ".join(cells) + " |"
        agreed = " | ".join(f"{plan.choice.rank_correlation or 0.0:.2f}" for plan in found)
        yield f"| rank correlation of predicted and measured distances | {agreed} |"


def print_table(rows: Callable[[Any, Iterable[Any], Scores], Iterator[str]]) -> None:
    """Print the lines of the encoder's table, each as soon as it is known; 400 sentences decide, 400 others score."""
    model = sentences_network.build()
    scores = Scores.of(model, sentences_data.unseen(seed=SEED))
    for line in rows(model, sentences_data.target(seed=SEED), scores):
        print(line, flush=True)


if __name__ == "__main__":
    print_table(rows)
