"""Sizes chosen among several sets of solutions of the same layers: plain ones, and those weighted by gradients.

What a solution loses of a layer's outputs and what of the loss are not the same, and neither says which of two sets is
better in a network that is compressed whole. So candidates are made of each, and the best is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from dalr_stream.engine.sizes.choice import Measure, SizeChoice, Sizes, best_of, choose_sizes
from dalr_stream.engine.sizes.forms import SolvedLayer, forms_of
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.surgery.compress import Replacement
from dalr_stream.numerics.methods import Family
from dalr_stream.numerics.sizes.families import Forms
from dalr_stream.progress import Progress

Build = Callable[[dict[str, Replacement]], nn.Module]
Cut = Callable[[str, Family, int], Replacement]
"""Gives what takes a layer's place: by its name, as a form of some size."""


@dataclass(frozen=True, slots=True, eq=False)
class Menu:
    """One solution of each family for each layer: what each loses at every size, and where it is cut at one."""

    forms: Sequence[Forms]
    at_size: Cut
    words: str = ""
    """Added to the names of plans; empty for the first of several."""

    @classmethod
    def of(
        cls,
        solved: Mapping[str, SolvedLayer],
        structure: Structure | None,
        *,
        at_size: Cut,
        multiple_of: int = 1,
        words: str = "",
    ) -> Menu:
        """Measure the losses, at multiples of some number alone."""
        return cls([layer.multiples_of(multiple_of) for layer in forms_of(solved, structure)], at_size, words)

    def replacements(self, sizes: Sizes) -> dict[str, Replacement]:
        """Return what takes the place of each layer."""
        return {name: self.at_size(name, family, size) for name, (family, size) in sizes.items()}


def choose_from(  # the menus, and what they are judged by
    menus: Sequence[Menu],
    share: float,
    build: Build,
    distance: Measure,
    *,
    score: Measure | None = None,
    higher: bool = True,
    progress: Progress | None = None,
) -> tuple[Menu, SizeChoice]:
    """Return the candidates of all menus, the best first, and the menu that it is from; see `choose_sizes`."""

    def choice_of(menu: Menu) -> SizeChoice:
        def networks(sizes: Sizes) -> nn.Module:
            return build(menu.replacements(sizes))

        choice = choose_sizes(menu.forms, share, networks, distance, score=score, higher=higher, progress=progress)
        return SizeChoice(tuple(replace(one, plan=one.plan + menu.words) for one in choice.candidates))

    choices = [choice_of(menu) for menu in menus]
    best = best_of(choices, higher=higher)
    home = next(
        menu
        for menu, choice in zip(menus, choices, strict=True)
        if any(one is best.chosen for one in choice.candidates)
    )
    return home, best
