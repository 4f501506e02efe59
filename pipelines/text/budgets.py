"""The whole network at several budgets, by every method, from the target's statistics and from the source's.

    python pipelines/text/budgets.py

Does what is not done yet of `run.toml` up to the moments, then solves, sizes and scores from there: the tables of
`docs/text.md`. Within each budget the sizes of all layers are shared out by what each layer loses on the rows that its
method was solved from. Plain SVD's are too, so it learns here where ranks are needed, which it would not by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from dalr_stream.cli.console import for_console
from dalr_stream.engine.solve import solve_low_rank, solve_selection
from dalr_stream.engine.store_view import StoreView
from dalr_stream.network.surgery.compress import Replacement, compress
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.sizes.allocation import (
    SizedLayer,
    Source,
    as_they_are,
    cost,
    factor_layer,
    selection_layer,
    within_budget,
)
from dalr_stream.numerics.sizes.shape import LayerShape
from dalr_stream.storage.records import Solution
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.named_sizes import at_size
from dalr_stream.workflow.steps.scoring import score_on

RUN_FILE = Path(__file__).with_name("run.toml")
BUDGETS = (0.6, 0.4, 0.3, 0.2, 0.1)
"""Shares of the weights of the layers of a table."""


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

    project: Project
    store: StoreView

    def solve(self, recipe: Recipe) -> tuple[dict[str, Solution], list[SizedLayer]]:
        """Return what is solved for each layer, and every layer with what it loses at each size."""
        solutions: dict[str, Solution] = {}
        sized: list[SizedLayer] = []
        selecting = recipe.feed.family is Family.SELECTION
        for name in self.project.layers:
            feeds = name.endswith(("fc1", "fc2"))
            method = recipe.feed if feeds else recipe.attention
            if method is None:
                continue
            if feeds and selecting:
                sized.append(self._nodes(name, method, recipe.domain, solutions))
            else:
                problem = self.store.problem(name, recipe.domain, None)
                factors = solve_low_rank(problem, method)
                solutions[name] = factors
                sized.append(factor_layer(name, factors, problem.known_inputs))
        return solutions, sized

    def _nodes(self, name: str, method: Method, domain: str, solutions: dict[str, Solution]) -> SizedLayer:
        """Return `fc1` at every number of nodes, and solve it; or `fc2`, which gets as narrow as `fc1` leaves it."""
        if name.endswith("fc1"):
            selection = solve_selection(self.store.problem(name, domain, "source"), method)
            solutions[name] = selection
            return selection_layer(name, selection, self.store.shape(name))
        shape = self.store.shape(name)
        alone = LayerShape(shape.outputs, shape.inputs)
        reads = Source(name.removesuffix("fc2") + "fc1")
        return SizedLayer(name, alone, Family.LOW_RANK, np.array([alone.max_rank]), np.zeros(1), reads)

    def scores(self, recipe: Recipe) -> Iterator[str]:
        """Yield the score of the network in per cent at every budget."""
        score = score_on(self.project, "evaluate", self.project.evaluate_section)
        solutions, sized = self.solve(recipe)
        whole = as_they_are(sized)
        for share in BUDGETS:
            sizes = within_budget(sized, share * float(cost(sized, whole)))
            smaller: dict[str, Replacement] = {
                name: at_size(solution, sizes[name], name, self.project.config.solve.restore_ridge)
                for name, solution in solutions.items()
                if sizes[name] != whole[name]
            }
            small = compress(self.project.network, smaller, example=self.project.structure)
            yield f"{score(small):.1%}"


def table(bench: Bench, recipes: Sequence[Recipe]) -> Iterator[str]:
    """Yield the lines of a table in Markdown, each as soon as it is known."""
    yield "| weights left | " + " | ".join(f"{share:.0%}" for share in BUDGETS) + " |"
    yield "|---|" + "---:|" * len(BUDGETS)
    for recipe in recipes:
        yield f"| {recipe} | " + " | ".join(bench.scores(recipe)) + " |"


def main() -> None:
    """Print the tables."""
    project = Project(load_config(RUN_FILE), RUN_FILE.parent)
    run = Run(project, progress=for_console(Console(stderr=True)))
    run.train()
    run.accumulate()
    bench = Bench(project, StoreView.open(project.store))
    whole = score_on(project, "evaluate", project.evaluate_section)(project.network)
    print(f"uncompressed: {project.evaluate_section.metric_words} {whole:.1%}")
    for title, recipes in (("All layers of the blocks", WHOLE), ("fc1 and fc2 alone", FEED)):
        print(f"\n{title}\n", flush=True)
        for line in table(bench, recipes):
            print(line, flush=True)


if __name__ == "__main__":
    main()
