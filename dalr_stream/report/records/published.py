"""A table of a paper beside what a run found: part of the record, filled by the workflow and shown by `published`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PublishedColumn:
    """One column of a published table."""

    title: str
    share: bool = True
    """Whether its values are shares in 0..1, shown in per cent; counts otherwise."""


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One row as a paper printed it, as this run found it, or both."""

    label: str
    published: tuple[float, ...] | None
    """None for a row of this run alone."""
    ours: tuple[float | None, ...] | None
    """None where this run has no such row; None in it for what this run did not try."""


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """A table of a paper, with this run's numbers beside it."""

    title: str
    """Paper and number of the table, and what it shows."""
    corner: str
    columns: tuple[PublishedColumn, ...]
    rows: tuple[PublishedRow, ...]

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> PublishedTable:
        """Make one of what `dataclasses.asdict` gave and JSON brought back."""
        columns = tuple(PublishedColumn(**column) for column in plain["columns"])
        rows = tuple(
            PublishedRow(row["label"], _values(row["published"]), _values(row["ours"])) for row in plain["rows"]
        )
        return cls(plain["title"], plain["corner"], columns, rows)


def _values(plain: Sequence[Any] | None) -> tuple[Any, ...] | None:
    return None if plain is None else tuple(plain)
