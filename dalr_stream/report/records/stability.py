"""How far the solutions of a layer depend on the samples, as a run found it: a part of the run's record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class SelectionStability:
    """How far one selection holds when a shard of the training samples is left out; curves of sizes 1..m."""

    method: str
    answer: str
    """In words."""
    common: tuple[float, ...]
    """Share of the first k nodes that are chosen whichever shard is left out."""
    jaccard: tuple[float, ...]
    retention_error: tuple[float, ...]
    """Standard error of the retention."""


@dataclass(frozen=True, slots=True)
class Stability:
    """What leaving out shards of the training samples says of one low-rank method; curves of ranks 0..K."""

    shards: int
    method: str
    enough: bool
    """Whether the calibration set is large enough."""
    answer: str
    """In words, with numbers."""
    rule: str
    """By which it was judged."""
    training_error: tuple[float, ...]
    """Standard error of the error on training rows."""
    unseen: tuple[float, ...]
    """Error on the shards left out."""
    unseen_error: tuple[float, ...]
    heldout_error: tuple[float, ...] | None
    """Standard error of the error on held-out rows, as far as it comes of the training samples."""
    turn: tuple[float, ...]
    """Standard error of the subspace: root mean square sine of the principal angles."""
    selection: SelectionStability | None = None

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Stability:
        """Make one of what `dataclasses.asdict` gave and JSON brought back."""
        selection = plain["selection"]
        return cls(
            **{
                **_with_tuples(plain),
                "selection": None if selection is None else SelectionStability(**_with_tuples(selection)),
            }
        )


def _with_tuples(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
