"""Pieces of a network with something else in the places of their layers, each proved to be as before between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from dalr_stream.network.blocks.alone import Alone, AlonePieces
from dalr_stream.network.blocks.passes import BlockPasses
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.surgery.compress import Replacement, compress, compressed
from dalr_stream.numerics.heads.narrowed import NarrowedHeads
from dalr_stream.numerics.lowrank.factors import LowRankLayer
from dalr_stream.numerics.lowrank.grouped import GroupedPair


@dataclass(slots=True)
class ChangedPieces:
    """Makes them while a piece is in memory. What is found of a piece is known as long as its pass lasts."""

    alone: AlonePieces
    passes: BlockPasses
    _here: dict[str, tuple[Alone, Structure | None]] = field(default_factory=dict)

    def piece(self, name: str, given: Mapping[str, Replacement]) -> nn.Module:
        """Return a piece in which each named layer is replaced; what stays as it is shares its numbers.

        Raises as `compress` does.
        """
        one, structure = self._known(name, given)
        return changed(one, given, structure).get_submodule(name)

    def _known(self, name: str, given: Mapping[str, Replacement]) -> tuple[Alone, Structure | None]:
        """Return a piece alone and, where some of `given` need it, which of its channels are coupled."""
        together = {name} | {other for pieces in self.passes.pieces if name in pieces for other in pieces}
        self._here = {other: known for other, known in self._here.items() if other in together}
        if name not in self._here:
            self._here[name] = self.alone.here(name), None
        one, structure = self._here[name]
        if structure is None and not all(isinstance(record, LowRankLayer | GroupedPair) for record in given.values()):
            structure = Structure.of(one.network, one.example, piece=name)
            self._here[name] = one, structure
        return one, structure


def changed(one: Alone, given: Mapping[str, Replacement], structure: Structure | None) -> nn.Module:
    """Return a piece alone with layers replaced, as `compress` does; it is copied where heads get narrower."""
    example = one.example if structure is None else structure
    others = {layer: record for layer, record in given.items() if not isinstance(record, NarrowedHeads)}
    if len(others) < len(given):
        return compress(one.network, given, example=example)
    return compressed(one.network, others, example, shared=True)
