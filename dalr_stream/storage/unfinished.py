"""How far a fold came: its state on disk, so that a killed accumulation goes on where it stopped, to the same bits.

    unfinished/<domain>/<layer>/<lane>/          of a fold over a store's tiles
    unfinished/<domain>/@direct-<group>/         of a direct run: every layer of a pass, at the same batch

A state belongs to rows, rule and network; one that was made from others is not used, and neither is a damaged one: the
rows can be folded again, which costs time and nothing else. Each is replaced whole, so a kill leaves the one before.
All of them are dropped once the moments are in the store.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dalr_stream.errors import StoreDamagedError
from dalr_stream.numerics.folding import FoldState, LaneState
from dalr_stream.storage import schema
from dalr_stream.storage.archive import Arrays, load_record, origin_of, save_record

FOLDER = "unfinished"


@dataclass(frozen=True, slots=True)
class SavedFold:
    """Lanes at the same point, and what else is needed to go on from there."""

    lanes: Sequence[LaneState] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    pending: Arrays = field(default_factory=dict)
    """Rows that fill no tile yet."""


class Unfinished:
    """The unfinished folds of one layer, or of one direct run, on one domain."""

    def __init__(self, root: Path, domain: str, layer: str, made_from: Mapping[str, Any]) -> None:
        """`made_from` is what the moments that will come of it are made from."""
        self._folder = root / FOLDER / domain / layer
        self._made_from = dict(made_from)

    def save(self, name: str, fold: SavedFold) -> None:
        """Keep one state, replacing the one before."""
        arrays = dict(fold.pending)
        counts: list[dict[str, list[int]]] = []
        for number, lane in enumerate(fold.lanes):
            parts = {part: state for part in ("training", "heldout") if (state := getattr(lane, part)) is not None}
            counts.append({part: [state.count, state.samples] for part, state in parts.items()})
            for part, state in parts.items():
                arrays |= {_name(number, part, spec.name): getattr(state, spec.name) for spec in schema.FOLD}
        values = {"values": dict(fold.values), "counts": counts}
        save_record(self._folder / name, _specs(len(counts)), arrays, values, self._made_from)

    def load(self, name: str) -> SavedFold | None:
        """Return one state; None where there is none, or it is damaged, or was made from something else."""
        path = self._folder / name
        if self.origin(name) != self._made_from:
            return None
        try:
            values: dict[str, Any] = load_record(path, [])[1]
            arrays, _ = load_record(path, _specs(len(values["counts"])))
        except StoreDamagedError:
            return None
        lanes = [_lane(number, counts, arrays) for number, counts in enumerate(values["counts"])]
        pending = {spec.name: arrays[spec.name] for spec in schema.PENDING if spec.name in arrays}
        return SavedFold(lanes, values["values"], pending)

    def origin(self, name: str) -> dict[str, Any] | None:
        """Return what a state was made from; None where there is none, or it is damaged."""
        return origin_of(self._folder / name)

    def drop(self) -> None:
        """Remove them all."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _lane(number: int, counts: Mapping[str, Sequence[int]], arrays: Arrays) -> LaneState:
    parts: dict[str, FoldState] = {}
    for part, (count, samples) in counts.items():
        sums: dict[str, Any] = {spec.name: arrays[_name(number, part, spec.name)] for spec in schema.FOLD}
        parts[part] = FoldState(count=count, samples=samples, **sums)
    return LaneState(parts["training"], parts.get("heldout"))


def _specs(lanes: int) -> list[schema.ArraySpec]:
    parts = [(lane, part) for lane in range(lanes) for part in ("training", "heldout")]
    of_lanes = [
        dataclasses.replace(spec, name=_name(lane, part, spec.name)) for lane, part in parts for spec in schema.FOLD
    ]
    return [*schema.PENDING, *of_lanes]


def _name(lane: int, part: str, array: str) -> str:
    return f"lane_{lane}_{part}_{array}"
