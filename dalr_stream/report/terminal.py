"""The headline on a terminal, at the end of a run: the same rows as on the page."""

from __future__ import annotations

from itertools import compress

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from dalr_stream.numerics.latency import NetworkProfile
from dalr_stream.report.cells import Cell, Row, RowKind, Table
from dalr_stream.report.claims import claim
from dalr_stream.report.records.results import Results
from dalr_stream.report.tables.overview import many_layers, overview_table
from dalr_stream.report.tables.scores import NOT_REACHED, NOT_REACHED_REMEDY, headline_table
from dalr_stream.report.tables.sizes import size_table
from dalr_stream.report.tables.speed import latency_table

_UNBOUNDED = 1000
"""Columns: wider than any table here, to learn how wide it would like to be."""


def print_headline(results: Results, console: Console) -> None:
    """Print each layer's headline table and sentence, or one table of many layers, then the sizes before and after.

    Names from the record are printed as they are: square brackets in them are not markup.
    """
    if many_layers(results) and any(layer.headline for layer in results.layers):
        print_table(overview_table(results), console)
    for layer in () if many_layers(results) else results.layers:
        print_table(headline_table(results, layer), console)
        console.print(Text(claim(layer, results.metric, results.scale).sentence))
        console.print()
    if len(results.sizes) > 1:
        print_table(size_table(results), console)


def print_profile(profile: NetworkProfile, console: Console) -> None:
    """Print what was measured, and what is slower than what it replaces, with the remedies."""
    print_table(latency_table(profile), console)
    for line in profile.words:
        console.print(Text(line))


def print_table(table: Table, console: Console) -> None:
    """Print a table, without its spare columns where it would be too wide."""
    whole = terminal_table(table)
    fits = console.measure(whole, options=console.options.update(width=_UNBOUNDED)).maximum <= console.width
    console.print(whole if fits else terminal_table(table, narrow=True))


def terminal_table(table: Table, *, narrow: bool = False) -> Grid:
    """Return a table for rich, without its spare columns if `narrow`.

    The best of a family is bold and starred, so that it shows without colours too.
    """
    grid = Grid(title=Text(table.caption), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    grid.caption, grid.caption_justify = _legend(table), "left"
    shown = [not (narrow and column.spare) for column in table.columns]
    grid.add_column(Text(table.corner.title), overflow="fold")
    for column in compress(table.columns, shown):
        grid.add_column(Text(column.title), justify="right", no_wrap=True)
    for row in table.rows:
        if row.kind is RowKind.GROUP:
            grid.add_section()
        else:
            grid.add_row(Text(row.label), *compress(_cells(row), shown))
    return grid


def _legend(table: Table) -> Text | None:
    """Return what the star means and what the groups of rows are, each group's head in words."""
    said = [f"{row.label}." for row in table.rows if row.kind is RowKind.GROUP]
    if any(cell.best for row in table.rows for cell in row.cells):
        said.insert(0, "* best ratio of its family.")
    if any(cell.text == NOT_REACHED for row in table.rows for cell in row.cells):
        said.append(NOT_REACHED_REMEDY)
    return Text("\n".join(said)) if said else None


def _cells(row: Row) -> list[Text]:
    cells: list[Text] = []
    for cell in row.cells:
        cells += [_text(cell), *[Text("")] * (cell.span - 1)]
    return cells


def _text(cell: Cell) -> Text:
    if cell.best:
        return Text(f"* {cell.text}", style="bold green")
    note = "" if cell.note is None else f" ({cell.note:,})"
    return Text(cell.text + note, style="dim" if cell.value is None else "")
