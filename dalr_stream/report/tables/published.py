"""Tables of papers beside what the run found: a row as it was printed, and under it ours.

Both are shown with the decimals of our tables, and neither is marked as the better one: networks, data sets and
training differ from those of the paper, and the report does not pretend otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dalr_stream.report.cells import BLANK, Cell, Column, Row, RowKind, Table, count_text, percent_text
from dalr_stream.report.records.published import PublishedColumn, PublishedRow, PublishedTable
from dalr_stream.report.records.results import Results

_FOOTNOTE = "As printed in the paper; under a row stands what this run found, and a dash for what it did not try."


def published_tables(results: Results) -> tuple[Table, ...]:
    """Return one table for each published one, named `published-1` and so on."""
    return tuple(_table(number, published) for number, published in enumerate(results.published, start=1))


def _table(number: int, published: PublishedTable) -> Table:
    return Table(
        name=f"published-{number}",
        caption=published.title,
        corner=Column(published.corner, published.corner.replace(" ", "_")),
        columns=tuple(Column(column.title, column.title) for column in published.columns),
        rows=tuple(row for entry in published.rows for row in _rows(entry, published.columns)),
        footnote=_FOOTNOTE,
    )


def _rows(entry: PublishedRow, columns: tuple[PublishedColumn, ...]) -> Iterator[Row]:
    if entry.published is not None:
        yield Row(entry.label, entry.label, _cells(entry.published, columns), RowKind.REFERENCE)
    if entry.ours is not None:
        label = "this run" if entry.published else f"this run: {entry.label}"
        yield Row(label, f"this run: {entry.label}", _cells(entry.ours, columns))


def _cells(values: Sequence[float | None], columns: tuple[PublishedColumn, ...]) -> tuple[Cell, ...]:
    return tuple(_cell(value, column) for value, column in zip(values, columns, strict=True))


def _cell(value: float | None, column: PublishedColumn) -> Cell:
    if value is None:
        return Cell(BLANK)
    return Cell(percent_text(value) if column.share else count_text(round(value)), value)
