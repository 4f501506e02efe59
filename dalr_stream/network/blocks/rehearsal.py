"""Whether layers of a network that goes block by block can be replaced or narrowed, tried piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from dalr_stream.network.blocks.alone import AlonePieces
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.network.structure.attentions import attentions_among, with_heads
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.structure.readers import with_readers
from dalr_stream.network.surgery.rehearsal import require_replaceable_by_pairs, try_heads, try_selections
from dalr_stream.numerics.rows.streams import module_name


def require_replaceable_in_pieces(model: nn.Module, layers: Iterable[str], example: Any) -> None:
    """Raise UnsupportedLayerError for the first of `layers` in whose place its piece would not take a factor pair.

    Cost: a forward pass of two samples, and two of each piece; weights are read twice.
    """
    pieces = Pieces.of(model)
    by_piece: dict[str, list[str]] = {}
    for layer in layers:
        by_piece.setdefault(pieces.holding(module_name(layer)) or "", []).append(layer)
    alone = AlonePieces.of(model, example, pieces, by_piece)
    for piece, within in by_piece.items():
        with alone.piece(piece) as one:
            require_replaceable_by_pairs(one.network, within, one.example)


def coupled_in_pieces(
    model: nn.Module, layers: Sequence[LayerSpec], example: Any, *, selects: bool = True, narrows: bool = False
) -> tuple[LayerSpec, ...]:
    """Return what is to be watched so that selections within pieces can be solved; see `structure.readers`.

    Channels that a piece hands on cannot be pruned, which their layers say. With `narrows` each layer also has the
    attention whose output layer it is, all of it in one piece; `selects` says whether selections are looked for. Cost:
    a forward pass of two samples, and some of each piece; weights are read twice.
    """
    pieces = Pieces.of(model)
    by_piece: dict[str, list[LayerSpec]] = {}
    for layer in layers:
        by_piece.setdefault(pieces.holding(module_name(layer.name)) or "", []).append(layer)
    alone = AlonePieces.of(model, example, pieces, by_piece)
    found: dict[str, LayerSpec] = {}
    for piece, within in by_piece.items():
        with alone.piece(piece) as one:
            structure = Structure.of(one.network, one.example, piece=piece)
            known: Sequence[LayerSpec] = within
            if selects:
                try_selections(structure, [layer.name for layer in within])
                known = with_readers(within, structure)
            if narrows:
                known = with_heads(known, try_heads(structure, attentions_among(known, structure)))
            found |= {layer.stream: layer for layer in known}
    asked = {layer.stream: found.pop(layer.stream) for layer in layers}
    return (*asked.values(), *found.values())
