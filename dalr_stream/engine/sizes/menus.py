"""Sizes chosen among several sets of solutions of the same layers: plain ones, and those weighted by gradients.

What a solution loses of a layer's outputs and what of the loss are not the same, and neither says which of two sets is
better in a network that is compressed whole. So candidates are made of each, and the best is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import nn

from dalr_stream.engine.sizes.choice import Candidate, Judge, SizeChoice, Sizes, choose_sizes, finalists
from dalr_stream.engine.sizes.forms import SolvedLayer, forms_of
from dalr_stream.errors import RankError, UnsupportedLayerError
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.surgery.compress import Replacement
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.sizes.families import Forms
from dalr_stream.progress import Progress, Silent

Build = Callable[[dict[str, Replacement]], nn.Module]


class Solutions(Protocol):
    """The solutions of a menu, wherever they are: one of each family for each layer."""

    def method(self, layer: str, family: Family) -> Method:
        """Return by which method a layer was solved."""

    def at_size(self, layer: str, family: Family, size: int) -> Replacement:
        """Return what takes a layer's place at some size."""


@dataclass(frozen=True, slots=True, eq=False)
class Menu:
    """One solution of each family for each layer, and what each loses at every size."""

    solutions: Solutions
    forms: Sequence[Forms]
    words: str = ""
    """Added to the names of plans; empty for the first of several."""

    @classmethod
    def of(
        cls,
        solutions: Solutions,
        solved: Mapping[str, SolvedLayer],
        structure: Structure | None,
        multiple_of: int = 1,
        words: str = "",
    ) -> Menu:
        """Measure the losses of `solved`, of which each is asked for once, at multiples of some number alone."""
        return cls(solutions, [layer.multiples_of(multiple_of) for layer in forms_of(solved, structure)], words)

    def replacements(self, sizes: Sizes) -> dict[str, Replacement]:
        """Return what takes the place of each layer."""
        return {name: self.solutions.at_size(name, family, size) for name, (family, size) in sizes.items()}

    def method(self, layer: str, family: Family) -> Method:
        """Return by which method a layer was solved."""
        return self.solutions.method(layer, family)


InTurn = Callable[[Menu, Sizes], nn.Module]
"""Gives the network of some sizes with one layer compressed after the other."""


def choose_from(  # the menus, and what they are judged by
    menus: Sequence[Menu],
    share: float,
    build: Build,
    judge: Judge,
    *,
    in_turn: InTurn | None = None,
    progress: Progress | None = None,
) -> tuple[Menu, SizeChoice]:
    """Return the candidates of all menus, the best first, and the menu that it is from; see `choose_sizes`.

    With `in_turn` the finalists alone are candidates, and are measured as it builds them.
    """
    watch = progress or Silent()
    by_distance = judge if in_turn is None else Judge(judge.distance)
    found = [(menu, one) for menu in menus for one in _measured(menu, share, build, by_distance, watch)]
    homes = {(one.plan, one.rule): menu for menu, one in found}
    candidates = by_distance.ranked(one for _, one in found)
    choice = SizeChoice(candidates)
    if in_turn is not None:
        again = _of_candidates(in_turn, homes, build)
        choice = SizeChoice(_again(finalists(candidates), again, judge, watch), at_once=candidates)
    return homes[choice.chosen.plan, choice.chosen.rule], choice


def _of_candidates(
    in_turn: InTurn, homes: Mapping[tuple[str, str], Menu], build: Build
) -> Callable[[Candidate], nn.Module]:
    """Let what builds networks of a menu build candidates; one that changes no layer is the network as it is."""
    return lambda one: in_turn(homes[one.plan, one.rule], one.sizes) if one.sizes else build({})


def _again(
    candidates: Sequence[Candidate], network: Callable[[Candidate], nn.Module], judge: Judge, watch: Progress
) -> tuple[Candidate, ...]:
    """Return candidates as they are where layers are compressed one after the other, the best first.

    Those that cannot be are left out, and said with the reason: where a selection leaves a layer fewer inputs than its
    rank, or where none of the layers that get smaller writes into the stream that is the target. Raises where all are.
    """
    measured, refused = [], None
    with watch.track("compress: candidates, layer after layer", len(candidates), "networks") as advance:
        for one in candidates:
            try:
                measured.append(judge.measured(one, network(one)))
            except (RankError, UnsupportedLayerError) as error:
                watch.note(f"compress: {one.plan} by {one.rule} cannot be compressed layer after layer: {error}")
                refused = error
            advance(1)
    if refused is not None and not measured:
        raise refused
    return judge.ranked(measured)


def _measured(menu: Menu, share: float, build: Build, judge: Judge, progress: Progress) -> Iterator[Candidate]:
    """Yield the candidates of one menu, all of whose layers are compressed at once."""

    def networks(sizes: Sizes) -> nn.Module:
        return build(menu.replacements(sizes))

    choice = choose_sizes(
        menu.forms, share, networks, judge.distance, score=judge.score, higher=judge.higher, progress=progress
    )
    for one in choice.candidates:
        yield replace(one, plan=one.plan + menu.words)
