"""Pieces of a network with something else in the places of their layers, each proved to be as before between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from dalr_stream.network.blocks.alone import Alone, AlonePieces
from dalr_stream.network.blocks.passes import BlockPasses
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.surgery.compress import Replacement, compress, compressed
from dalr_stream.numerics.heads.narrowed import NarrowedHeads
from dalr_stream.numerics.lowrank.factors import LowRankLayer
from dalr_stream.numerics.lowrank.grouped import GroupedPair
from dalr_stream.numerics.methods import Family
from dalr_stream.numerics.selection.nodes import SelectedNodes


@dataclass(frozen=True, slots=True)
class Cut:
    """What takes a layer's place, made when it is asked for."""

    family: Family
    made: Callable[[], Replacement]


@dataclass(slots=True)
class ChangedPieces:
    """Makes them while a piece is in memory. What is found of a piece is known as long as its pass lasts."""

    alone: AlonePieces
    passes: BlockPasses
    _here: dict[str, tuple[Alone, Structure | None]] = field(default_factory=dict)

    def piece(self, name: str, cuts: Mapping[str, Cut]) -> nn.Module:
        """Return a piece in which each named layer is replaced; what stays as it is shares its numbers.

        Raises as `compress` does. Memory: one pair at a time, all selections and heads of the piece.
        """
        families = {one.family for one in cuts.values()}
        one, structure = self._known(name, coupled=families != {Family.LOW_RANK})
        if Family.HEADS in families:
            return changed(one, {layer: cut.made() for layer, cut in cuts.items()}, structure).get_submodule(name)
        example = one.example if structure is None else structure
        return compressed(one.network, _Made(cuts), example, shared=True).get_submodule(name)

    def _known(self, name: str, *, coupled: bool) -> tuple[Alone, Structure | None]:
        """Return a piece alone and, where that is needed, which of its channels are coupled."""
        together = {name} | {other for pieces in self.passes.pieces if name in pieces for other in pieces}
        self._here = {other: known for other, known in self._here.items() if other in together}
        if name not in self._here:
            self._here[name] = self.alone.here(name), None
        one, structure = self._here[name]
        if coupled and structure is None:
            structure = Structure.of(one.network, one.example, piece=name)
            self._here[name] = one, structure
        return one, structure if coupled else None


class _Made(Mapping[str, LowRankLayer | GroupedPair | SelectedNodes]):
    """Pairs and selections, each made when it is asked for."""

    def __init__(self, cuts: Mapping[str, Cut]) -> None:
        self._cuts = cuts

    def __getitem__(self, layer: str) -> LowRankLayer | GroupedPair | SelectedNodes:
        made = self._cuts[layer].made()
        assert not isinstance(made, NarrowedHeads)  # noqa: S101  # for the type checker: by its family it is none
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self._cuts)

    def __len__(self) -> int:
        return len(self._cuts)


def changed(one: Alone, given: Mapping[str, Replacement], structure: Structure | None) -> nn.Module:
    """Return a piece alone with layers replaced, as `compress` does; it is copied where heads get narrower."""
    example = one.example if structure is None else structure
    others = {layer: record for layer, record in given.items() if not isinstance(record, NarrowedHeads)}
    if len(others) < len(given):
        return compress(one.network, given, example=example)
    return compressed(one.network, others, example, shared=True)
