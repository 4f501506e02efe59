"""Solutions of a store for those who come back to them, network after network: the first that fit are kept in memory.

The others are read again each time. Whoever goes through layers once takes them from the store, one at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.numerics.heads.factors import HeadFactors
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.selection.nodes import ChannelSelection
from dalr_stream.storage.records.solutions import Solution


class KeptSolutions:
    """Called with a layer and a method: the solution, as the store has it."""

    def __init__(self, store: StoreView, room_bytes: int) -> None:
        self._store = store
        self._room = room_bytes
        self._kept: dict[tuple[str, Method], Solution] = {}

    def __call__(self, layer: str, method: Method) -> Solution:
        """Return a solution; it is kept where there is room."""
        if (layer, method) in self._kept:
            return self._kept[layer, method]
        solution = self._store.solutions(layer, [method])[method]
        size = nbytes(solution)
        if size <= self._room:
            self._room -= size
            self._kept[layer, method] = solution
        return solution


def nbytes(solution: Solution) -> int:
    """Return the bytes of a solution's arrays."""
    parts: Sequence[Any] = (solution,)
    if isinstance(solution, HeadFactors):
        parts = (solution, *solution.scores, *solution.mixed, *((solution.pairs,) if solution.pairs else ()))
    elif not isinstance(solution, ChannelSelection):
        parts = solution.parts
    arrays = (getattr(part, field.name) for part in parts for field in dataclasses.fields(part))
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
