"""Whether layers of a network that goes block by block can be replaced, tried on one piece after the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from dalr_stream.network.blocks.alone import alone
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.surgery.rehearsal import require_replaceable_by_pairs
from dalr_stream.numerics.rows.streams import module_name


def require_replaceable_in_pieces(model: nn.Module, layers: Iterable[str], example: Any) -> None:
    """Raise UnsupportedLayerError for the first of `layers` in whose place its piece would not take a factor pair.

    Cost: a forward pass of two samples, and two of each piece; weights are read twice.
    """
    pieces = Pieces.of(model)
    by_piece: dict[str, list[str]] = {}
    for layer in layers:
        by_piece.setdefault(pieces.holding(module_name(layer)) or "", []).append(layer)
    for piece, one in alone(model, example, pieces, by_piece):
        require_replaceable_by_pairs(one.network, by_piece[piece], one.example)
