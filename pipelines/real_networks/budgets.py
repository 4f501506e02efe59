"""CREPE's tiny model and MGM at several budgets, by every rule that shares them out: all at once, and in turn.

    python pipelines/real_networks/budgets.py [crepe] [microbiome]

Networks, layers and batches are those of `crepe.toml` and `microbiome.toml`, with statistics of more samples. Nothing
is fine-tuned and no label is used. Each rule is one candidate of `ds.sizes` with factor pairs alone, plain and weighted
by gradients; the last line is what it chooses, of factor pairs and selections together, by the networks' outputs.
Scores are of samples that nothing else has seen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import dalr_stream as ds

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "shared")]

METHODS = (ds.Method.DALR_ANCHORED_AFFINE, ds.Method.DALR_WEIGHTED_AFFINE)
RULES = (
    "the same share of each",
    "the same energy of each",
    "shares of energy",
    "what the outputs lose",
    "nats by gradients",
)
EVERY = ds.Folding(ds.HoldoutRule(0.0))
SEED = 0


@dataclass(frozen=True, slots=True)
class Case:
    """One network, what its statistics are of, and how it is measured."""

    title: str
    network: nn.Module
    layers: Sequence[str]
    batches: Iterable[Any]
    unseen: Iterable[Any]
    score: Callable[[nn.Module, Iterable[Any]], float]
    shown: str
    """How a score is printed."""
    budgets: Sequence[float]
    rows: ds.RowRule
    """With gradients of every layer."""
    distance: str

    def distances(self) -> ds.OutputDistance:
        """Return the distance by which candidates are chosen, on samples of the target."""
        rows = ds.RowRule(mask=self.rows.mask)
        return ds.OutputDistance(self.network, self.batches, rows=rows, distance=self.distance)

    def said(self, small: nn.Module, batches: Iterable[Any] | None = None) -> str:
        """Score a network, on what nothing has seen if no batches are named."""
        return self.shown.format(self.score(small, self.unseen if batches is None else batches))


def crepe() -> Case:
    """CREPE's tiny model: the pitch of synthesised tones."""
    import crepe_data
    import crepe_network

    return Case(
        "CREPE tiny: pitch within 50 cents",
        crepe_network.build(),
        ["conv1", "conv3", "conv4", "conv5", "conv6", "classifier"],
        crepe_data.target(seed=SEED, samples=1200),
        crepe_data.unseen(seed=SEED, samples=1200),
        crepe_data.pitch_accuracy,
        "{:.1%}",
        (0.6, 0.45, 0.3),
        ds.RowRule(gradients=ds.GradientRule(metric="values")),
        "energy",
    )


def microbiome(samples: int = 480) -> Case:
    """MGM: communities that it writes itself."""
    import microbiome_data
    import microbiome_network

    return Case(
        "MGM, feed-forward layers: perplexity",
        microbiome_network.build(),
        [r"re:transformer\.h\.\d+\.mlp\.c_(fc|proj)"],
        microbiome_data.target(seed=SEED, samples=samples),
        microbiome_data.unseen(seed=SEED, samples=160),
        microbiome_data.perplexity,
        "{:.2f}",
        (0.5, 0.3, 0.2),
        ds.RowRule(mask="attention_mask", gradients=ds.GradientRule(outputs="logits")),
        "kl",
    )


CASES = {"crepe": crepe, "microbiome": microbiome}


@dataclass(frozen=True, slots=True)
class Ways:
    """How a case is compressed at some sizes."""

    case: Case
    layers: Any
    statistics: ds.Statistics

    @classmethod
    def of(cls, case: Case) -> Ways:
        """Take the statistics."""
        first = next(iter(case.batches))
        layers = ds.watch(case.network, case.layers, example=first, gradients=case.layers)
        return cls(case, layers, ds.accumulate(case.network, case.batches, layers, rows=case.rows, folding=EVERY))

    def at_once(self, choices: Mapping[str, ds.LayerChoice]) -> nn.Module:
        """Compress every layer from the original's statistics."""
        replaced = {}
        for name, choice in choices.items():
            solution = ds.solve(self.statistics[name], choice.by)
            low_rank = choice.by.family is ds.numerics.Family.LOW_RANK
            size = int(choice.size)
            replaced[name] = solution.at_rank(size) if low_rank else solution.at_size(size, ridge=1e-3)
        return ds.compress(self.case.network, replaced, example=self.layers.structure)

    def in_turn(self, choices: Mapping[str, ds.LayerChoice]) -> nn.Module:
        """Compress each layer in the network as compressed so far."""
        rows = ds.RowRule(mask=self.case.rows.mask)
        return ds.compress_sequentially(self.case.network, self.case.batches, choices, rows=rows, folding=EVERY).network

    def cells(self, plan: Any, rule: str, method: ds.Method) -> list[str]:
        """Return the scores of the candidate by one rule: all at once, and in turn."""
        known = self.statistics if method.weighted else {}
        (sizes,) = [one.sizes for one in plan.choice.candidates if one.rule == rule] or [{}]
        choices = {name: ds.LayerChoice(method, size, layer=known.get(name)) for name, (_, size) in sizes.items()}
        return [self.case.said(way(choices)) if choices else "" for way in (self.at_once, self.in_turn)]


def table(case: Case) -> Iterator[str]:
    """Yield the lines of one network's table in Markdown."""
    ways, distance = Ways.of(case), case.distances()
    structure = ways.layers.structure
    heads = [f"{share:.0%}, {way}" for share in case.budgets for way in ("at once", "in turn")]
    yield f"| {case.title}, {case.said(case.network)} uncompressed | {' | '.join(heads)} |"
    yield "|---|" + "---:|" * len(heads)
    for method in METHODS:
        plans = ds.sizes(case.network, ways.statistics, distance, case.budgets, methods=[method])
        for rule in RULES:
            cells = [cell for plan in plans for cell in ways.cells(plan, rule, method)]
            yield f"| {method.label}, {rule} | {' | '.join(cells)} |"
    chosen = []
    for share in case.budgets:
        for way, build in ((ways.at_once, None), (ways.in_turn, ways.in_turn)):
            plan = ds.sizes(case.network, ways.statistics, distance, share, structure=structure, in_turn=build)
            chosen.append(f"{case.said(way(plan.choices))}")
    yield f"| what `ds.sizes` chooses, of both families, plain and weighted | {' | '.join(chosen)} |"


def main(names: Sequence[str]) -> None:
    """Print a table for each network."""
    for name in names:
        for line in table(CASES[name]()):
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main(sys.argv[1:] or list(CASES))
