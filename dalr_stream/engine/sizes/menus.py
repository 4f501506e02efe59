"""Sizes chosen among several sets of solutions of the same layers: plain ones, and those weighted by gradients.

What a solution loses of a layer's outputs and what of the loss are not the same, and neither says which of two sets is
better in a network that is compressed whole. So candidates are made of each, and the best is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import nn

from dalr_stream.engine.sizes.choice import Candidate, SizeChoice, choose_sizes, finalists, ranked
from dalr_stream.engine.sizes.forms import SolvedLayer, forms_of
from dalr_stream.engine.sizes.measuring import Measure, MeasureAll, Measured, OneByOne, Sizes, measured
from dalr_stream.errors import RankError, UnsupportedLayerError
from dalr_stream.network.structure.recorded import Groups
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
        structure: Groups | None,
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


class Bench(Protocol):
    """Where networks are measured, in memory or by blocks."""

    @property
    def higher(self) -> bool:
        """Whether more of the score is better."""

    def at_once(self, menu: Menu) -> MeasureAll:
        """Return what measures networks of a menu, all of whose layers are compressed at once."""

    def in_turn(self, network: nn.Module | None, words: str) -> Measured:
        """Return what a network is measured at that is compressed layer after layer; None is the network as it is.

        `words` name it.
        """


@dataclass(frozen=True, slots=True)
class InMemory:
    """Builds each network whole: a `Bench`."""

    build: Build
    distance: Measure
    score: Measure | None = None
    higher: bool = True
    progress: Progress = field(default_factory=Silent)

    def at_once(self, menu: Menu) -> MeasureAll:
        """Return what builds and measures one network after the other."""

        def networks(sizes: Sizes) -> nn.Module:
            return self.build(menu.replacements(sizes))

        return OneByOne(networks, self.distance, self.score, self.progress)

    def in_turn(self, network: nn.Module | None, words: str) -> Measured:
        """Measure a network whole."""
        return measured(self.build({}) if network is None else network, words, self.distance, self.score)


def choose_from(
    menus: Sequence[Menu],
    share: float,
    bench: Bench,
    *,
    in_turn: InTurn | None = None,
    progress: Progress | None = None,
) -> tuple[Menu, SizeChoice]:
    """Return the candidates of all menus, the best first, and the menu that it is from; see `choose_sizes`.

    With `in_turn` the finalists alone are candidates, and are measured as it builds them.
    """
    watch, at_once = progress or Silent(), in_turn is None
    found = [(menu, one) for menu in menus for one in _measured(menu, share, bench, watch, scored=at_once)]
    homes = {(one.plan, one.rule): menu for menu, one in found}
    candidates = ranked((one for _, one in found), higher=bench.higher)
    choice = SizeChoice(candidates)
    if in_turn is not None:
        choice = SizeChoice(_again(finalists(candidates), homes, in_turn, bench, watch), at_once=candidates)
    return homes[choice.chosen.plan, choice.chosen.rule], choice


def _again(
    candidates: Sequence[Candidate],
    homes: Mapping[tuple[str, str], Menu],
    in_turn: InTurn,
    bench: Bench,
    watch: Progress,
) -> tuple[Candidate, ...]:
    """Return candidates as they are where layers are compressed one after the other, the best first.

    Those that cannot be are left out, and said with the reason: where a selection leaves a layer fewer inputs than its
    rank, or where none of the layers that get smaller writes into the stream that is the target. Raises where all are.
    """
    found, refused = [], None
    with watch.track("compress: candidates, layer after layer", len(candidates), "networks") as advance:
        for one in candidates:
            try:
                small = in_turn(homes[one.plan, one.rule], one.sizes) if one.sizes else None
                found.append(one.measured(bench.in_turn(small, one.network.words)))
            except (RankError, UnsupportedLayerError) as error:
                watch.note(f"compress: {one.plan} by {one.rule} cannot be compressed layer after layer: {error}")
                refused = error
            advance(1)
    if refused is not None and not found:
        raise refused
    return ranked(found, higher=bench.higher)


def _measured(menu: Menu, share: float, bench: Bench, progress: Progress, *, scored: bool) -> Iterator[Candidate]:
    """Yield the candidates of one menu, all of whose layers are compressed at once."""
    measure = bench.at_once(menu)
    choice = choose_sizes(menu.forms, share, measure, scored=scored, higher=bench.higher, progress=progress)
    for one in choice.candidates:
        yield replace(one, plan=one.plan + menu.words)
