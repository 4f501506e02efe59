"""A table as a plain record, and how numbers are put into words.

A cell holds both the text a reader sees and the exact value a program wants. So no renderer formats a number: the
page, the CSV file and the terminal walk the same rows and cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from dalr_stream.numerics.methods import Method

TIMES = "\N{MULTIPLICATION SIGN}"
MINUS = "\N{MINUS SIGN}"
BLANK = "\N{EN DASH}"
"""Stands in a cell that has no value."""

Value = int | float | str | None


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: what is read, and what is meant."""

    text: str
    value: Value = None
    """The exact value; None where there is none."""
    note: int | None = None
    """Set small beside the text: the number of nodes a selection keeps."""
    best: bool = False
    span: int = 1
    """How many columns the cell runs across."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its head on the page, and its head in a CSV file."""

    title: str
    key: str
    spare: bool = False
    """May be left out where there is no room: what it says follows from its neighbours."""


class RowKind(StrEnum):
    """What a row is, and so how it is set."""

    BODY = "body"
    SCALE = "scale"
    """Another scale of the header, such as the share of parameters under the ranks."""
    REFERENCE = "reference"
    """What the other rows are to be compared with."""
    GROUP = "group"
    """The head of the rows below it; not part of a CSV file."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its label on the page, its key in a CSV file, its cells."""

    label: str
    key: str
    cells: tuple[Cell, ...] = ()
    kind: RowKind = RowKind.BODY
    note_label: str = ""
    """What the notes of its cells count."""
    method: Method | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A caption, a corner, a header and rows."""

    name: str
    """Ends the file name."""
    caption: str
    corner: Column
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    footnote: str = ""

    def records(self) -> list[list[Value]]:
        """Return the table as rows of exact values, header first: what a CSV file holds.

        A row with notes is followed by a row of them, keyed `key:note_label`.
        """
        lines: list[list[Value]] = [[self.corner.key, *(column.key for column in self.columns)]]
        for row in self.rows:
            if row.kind is RowKind.GROUP:
                continue
            lines.append([row.key, *_spread((cell.value, cell.span) for cell in row.cells)])
            if any(cell.note is not None for cell in row.cells):
                lines.append([f"{row.key}:{row.note_label}", *_spread((cell.note, cell.span) for cell in row.cells)])
        return lines


def _spread(cells: Iterable[tuple[Value, int]]) -> list[Value]:
    line: list[Value] = []
    for value, span in cells:
        line += [value, *[None] * (span - 1)]
    return line


def count_text(value: int) -> str:
    """Return an integer with thousands set apart."""
    return f"{value:,}"


def percent_text(share: float, decimals: int = 2) -> str:
    """Return a share in 0..1 as per cent, without the sign."""
    return f"{100 * share:.{decimals}f}"


def ratio_text(ratio: float) -> str:
    """Return a ratio with its sign of times: 4.00x."""
    return f"{ratio:.2f}{TIMES}"


def bytes_text(count: int) -> str:
    """Return a number of bytes in the largest decimal unit that leaves it at 1 or more."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{count} bytes" if unit == "bytes" else f"{size:.2f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


def signed_points(change: float) -> str:
    """Return a change of a share in percentage points, with its sign."""
    text = f"{100 * change:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", MINUS)
