"""Accumulation checkpoints: a killed run resumes where it stopped, bit for bit.

    unfinished/<domain>/<layer>/<lane>/          of a fold over a store's tiles
    unfinished/<domain>/@direct-<group>/         of a direct run: every layer of a pass, at the same batch

A checkpoint belongs to rows, rule and network. One made from others is not used, and neither is a damaged one: folding
the rows again costs time and nothing else. Each is replaced whole, so a kill leaves the previous one. All are dropped
once the moments are in the store.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalr_stream.errors import StoreDamagedError
from dalr_stream.numerics.statistics.folding import FoldState, LaneState
from dalr_stream.storage import schema
from dalr_stream.storage.layout import UNFINISHED, remove_empty
from dalr_stream.storage.places.place import Place, remove_folder
from dalr_stream.storage.records.record import Arrays, load_record, origin_of, save_record
from dalr_stream.storage.schema import PARTS


@dataclass(frozen=True, slots=True)
class SavedFold:
    """Lanes at the same point, and what else is needed to resume from there."""

    lanes: Sequence[LaneState] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    pending: Arrays = field(default_factory=dict)
    """Rows that fill no tile yet."""


class Checkpoints:
    """The checkpoints of one layer, or of one direct run, on one domain."""

    def __init__(self, root: Place, domain: str, layer: str, made_from: Mapping[str, Any]) -> None:
        """`made_from` is what the moments that will come of it are made from."""
        self._root = root
        self._folder = root / UNFINISHED / domain / layer
        self.made_from = dict(made_from)

    @property
    def exists(self) -> bool:
        """Whether any were left here."""
        return self._folder.is_dir()

    def save(self, name: str, fold: SavedFold) -> None:
        """Write one checkpoint, replacing the previous one."""
        arrays = dict(fold.pending)
        counts: dict[str, list[list[int]]] = {}
        for part in PARTS:
            states = [state for lane in fold.lanes if (state := getattr(lane, part)) is not None]
            if states:
                counts[part] = [[state.count, state.samples] for state in states]
                arrays[f"{part}_vectors"] = np.stack([_vectors(state) for state in states])
                arrays |= {f"{part}_scatter_{number}": state.scatter for number, state in enumerate(states)}
        values = {"values": dict(fold.values), "counts": counts}
        save_record(self._folder / name, _specs(len(fold.lanes)), arrays, values, self.made_from, names=3)

    def load(self, name: str) -> SavedFold | None:
        """Return one checkpoint; None where there is none, or it is damaged, or was made from something else."""
        path = self._folder / name
        if self.origin(name) != self.made_from:
            return None
        try:
            values: dict[str, Any] = load_record(path, [])[1]
            counts = values["counts"]
            arrays, _ = load_record(path, _specs(len(counts.get("training", ()))))
        except StoreDamagedError:
            return None
        parts = {part: _states(part, counts[part], arrays) for part in counts}
        heldout = parts.get("heldout", [None] * len(parts.get("training", ())))
        lanes = [LaneState(*pair) for pair in zip(parts.get("training", ()), heldout, strict=True)]
        pending = {spec.name: arrays[spec.name] for spec in schema.PENDING if spec.name in arrays}
        return SavedFold(lanes, values["values"], pending)

    def origin(self, name: str) -> dict[str, Any] | None:
        """Return what a checkpoint was made from; None where there is none, or it is damaged."""
        return origin_of(self._folder / name)

    def drop(self) -> None:
        """Remove all of them."""
        remove_folder(self._folder)
        remove_empty(self._root)


def _vectors(state: FoldState) -> NDArray[np.float64]:
    """(4, d): the vectors of a state in one array: a file costs more than its bytes. Counts below 2^53 are exact."""
    return np.stack([state.mean, state.maximum, state.minimum, state.nonzero])


def _states(part: str, counts: Sequence[Sequence[int]], arrays: Arrays) -> list[FoldState]:
    states = []
    for number, ((count, samples), vectors) in enumerate(zip(counts, arrays[f"{part}_vectors"], strict=True)):
        mean, maximum, minimum, nonzero = (vector.copy() for vector in vectors)
        scatter = arrays[f"{part}_scatter_{number}"]
        states.append(FoldState(count, samples, mean, scatter, maximum, minimum, nonzero.astype(np.int64)))
    return states


def _specs(lanes: int) -> list[schema.ArraySpec]:
    scatters = [
        dataclasses.replace(schema.FOLD_SCATTER, name=f"{part}_scatter_{number}")
        for part in PARTS
        for number in range(lanes)
    ]
    vectors = [dataclasses.replace(schema.FOLD_VECTORS, name=f"{part}_vectors") for part in PARTS]
    return [*schema.PENDING, *vectors, *scatters]
