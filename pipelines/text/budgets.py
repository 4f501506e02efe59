"""The whole network at several budgets, by every method, from the target's statistics and from the source's.

    python pipelines/text/budgets.py

Does what is not done yet of `run.toml` up to the moments, then solves, sizes and scores from there: the tables of
`docs/results/text.md`. Within each budget the sizes of all layers are shared out by what each layer loses on the rows
that its method was solved from. Plain SVD's are too, so it learns here where ranks are needed, which it would not by
itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import dalr_stream as ds
from dalr_stream.network import Replacement
from dalr_stream.numerics import (
    Family,
    LayerShape,
    SizedLayer,
    Source,
    as_they_are,
    cost,
    factor_layer,
    selection_layer,
    unchanged_layer,
    within_budget,
)

Method = ds.Method
Solution = ds.LowRankFactors | ds.ChannelSelection
RUN_FILE = Path(__file__).with_name("run.toml")
BUDGETS = (0.6, 0.4, 0.3, 0.2, 0.1)
"""Shares of the weights of the layers of a table."""
RESTORE_RIDGE = 1e-3
"""As in run files."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A row of a table: by which method the attention's layers and the feed-forward ones are compressed."""

    attention: Method | None
    """None where a table leaves the attention as it is."""
    feed: Method
    domain: str = "target"
    """Whose statistics decide."""

    def __str__(self) -> str:
        both = dict.fromkeys(method.label for method in (self.attention, self.feed) if method is not None)
        return " and ".join(both) + (", from the source" if self.domain == "source" else "")


WHOLE = (
    *(Recipe(method, method) for method in (Method.SVD, Method.SVD_BC, Method.DALR_PUBLISHED, Method.DALR_OPTIMAL)),
    Recipe(Method.DALR_ANCHORED_AFFINE, Method.DALR_ANCHORED_AFFINE),
    Recipe(Method.DALR_ANCHORED_AFFINE, Method.DALR_ANCHORED_AFFINE, "source"),
    Recipe(Method.DALR_ANCHORED_AFFINE, Method.SPECTRAL),
)
FEED = (
    *(Recipe(None, method) for method in (Method.SVD, Method.DALR_ANCHORED_AFFINE)),
    Recipe(None, Method.DALR_ANCHORED_AFFINE, "source"),
    *(Recipe(None, method) for method in (Method.SPECTRAL, Method.MOMASP_NODE, Method.MOMASP_SUBSET)),
    Recipe(None, Method.SPECTRAL, "source"),
)


@dataclass(frozen=True, slots=True)
class Bench:
    """The trained network and what is known of its layers."""

    run: ds.Run

    def solve(self, recipe: Recipe) -> tuple[dict[str, Solution], list[SizedLayer]]:
        """Return what is solved for each layer, and every layer with what it loses at each size."""
        solutions: dict[str, Solution] = {}
        sized: list[SizedLayer] = []
        selecting = recipe.feed.family is Family.SELECTION
        for name in self.run.layers:
            feeds = name.endswith(("fc1", "fc2"))
            method = recipe.feed if feeds else recipe.attention
            if method is None:
                continue
            if feeds and selecting:
                sized.append(self._nodes(name, method, recipe.domain, solutions))
            else:
                layer = self.run.store.layer(name, target=recipe.domain)
                solutions[name] = factors = ds.solve(layer, method)
                sized.append(factor_layer(name, factors, layer.inputs))
        return solutions, sized

    def _nodes(self, name: str, method: Method, domain: str, solutions: dict[str, Solution]) -> SizedLayer:
        """Return `fc1` at every number of nodes, and solve it; or `fc2`, which gets as narrow as `fc1` leaves it."""
        if name.endswith("fc1"):
            layer = self.run.store.layer(name, target=domain, source="source")
            solutions[name] = selection = ds.solve(layer, method)
            return selection_layer(name, selection, self.run.store.shape(name))
        shape = self.run.store.shape(name)
        alone = LayerShape(shape.outputs, shape.inputs)
        return unchanged_layer(name, alone, reads=[Source(name.removesuffix("fc2") + "fc1")])

    def scores(self, recipe: Recipe) -> Iterator[str]:
        """Yield the score of the network in per cent at every budget."""
        solutions, sized = self.solve(recipe)
        whole = as_they_are(sized)
        for share in BUDGETS:
            sizes = within_budget(sized, share * float(cost(sized, whole)))
            smaller: dict[str, Replacement] = {
                name: at_size(solution, sizes[name])
                for name, solution in solutions.items()
                if sizes[name] != whole[name]
            }
            small = ds.compress(self.run.network, smaller, example=self.run.structure)
            yield f"{self.run.score(small):.1%}"


def at_size(solution: Solution, size: int) -> Replacement:
    """Return a solution at one rank, or with one number of nodes."""
    if isinstance(solution, ds.ChannelSelection):
        return solution.at_size(size, ridge=RESTORE_RIDGE)
    return solution.at_rank(size)


def table(bench: Bench, recipes: Sequence[Recipe]) -> Iterator[str]:
    """Yield the lines of a table in Markdown, each as soon as it is known."""
    yield "| weights left | " + " | ".join(f"{share:.0%}" for share in BUDGETS) + " |"
    yield "|---|" + "---:|" * len(BUDGETS)
    for recipe in recipes:
        yield f"| {recipe} | " + " | ".join(bench.scores(recipe)) + " |"


def main() -> None:
    """Print the tables."""
    run = ds.Run.open(RUN_FILE, progress=ds.show_progress())
    run.train()
    run.accumulate()
    bench = Bench(run)
    print(f"uncompressed: next character accuracy {run.score(run.network):.1%}")
    for title, recipes in (("All layers of the blocks", WHOLE), ("fc1 and fc2 alone", FEED)):
        print(f"\n{title}\n", flush=True)
        for line in table(bench, recipes):
            print(line, flush=True)


if __name__ == "__main__":
    main()
