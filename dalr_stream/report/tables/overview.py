"""All layers of a run in one table, one row each: what opens the page, and the terminal, where layers are many.

Networks with a few compressed layers are told layer by layer. Beyond `FEW` nobody reads so many tables in a row: the
overview comes first, and each layer's own evidence is folded away until it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dalr_stream.numerics.methods import Family, Method
from dalr_stream.report.cells import BLANK, TIMES, Cell, Column, Row, Table, percent_text, ratio_text
from dalr_stream.report.claims import headline_rows, smallest_selections, speaker
from dalr_stream.report.records.results import HeadlineRow, LayerResults, Results
from dalr_stream.report.tables.scores import NOT_REACHED

RowOfMethod = Mapping[Method, HeadlineRow]
FEW = 4
"""Layers whose tables may stand one below the other."""


_FOOTNOTE = (
    "The percentage is of the layer's weights. A selection's nodes are those of the smallest one of all that were "
    "evaluated. Each layer's own section has every method and the sizes tried."
)


def many_layers(results: Results) -> bool:
    """Tell whether there are more layers than can be shown one after the other."""
    return len(results.layers) > FEW


def evaluated_alone(results: Results) -> bool:
    """Tell whether any layer was: else there is nothing to say of a layer but its size."""
    return any(headline_rows(layer) for layer in results.layers)


def overview_table(results: Results) -> Table:
    """Return each layer's smallest sizes within the allowed loss: by plain SVD, by the DALR of the headline, by nodes.

    What no method of the run could fill has no column.
    """
    rows = [headline_rows(layer) for layer in results.layers]
    compared = {Method.SVD, *map(speaker, rows)}
    low_rank = [method for method in Method if method in compared and any(method in row for row in rows)]
    tried = any(rows)
    selected = any(method.family is Family.SELECTION for row in rows for method in row)
    columns = [Column("weights", "parameters", spare=True)]
    for method in low_rank:
        ratio = [Column("vs SVD", f"{method.value}_svd_ratio")] if method is not Method.SVD else []
        columns += [Column(method.label, method.value), Column("%", f"{method.value}_share", spare=True), *ratio]
    if selected:
        columns += [Column("best selection", "selection", spare=True), Column("nodes", "nodes")]
    return Table(
        name="overview",
        caption=f"All {len(results.layers)} layers"
        + (": smallest size of each alone within the allowed loss" if tried else ""),
        corner=Column("layer", "layer"),
        columns=tuple(columns),
        rows=tuple(
            _line(layer, row, low_rank, selected=selected) for layer, row in zip(results.layers, rows, strict=True)
        ),
        footnote=_FOOTNOTE if tried else "No layer was evaluated alone: evaluate.ranks is empty.",
    )


def _line(layer: LayerResults, by_method: RowOfMethod, low_rank: Sequence[Method], *, selected: bool) -> Row:
    cells = [Cell(f"{layer.outputs:,} {TIMES} {layer.inputs:,}{layer.in_groups}", layer.layer_parameters)]
    for method in low_rank:
        cells += _low_rank_cells(layer, method, by_method.get(method))
    if selected:
        cells += _selection_cells(layer, by_method)
    return Row(layer.name, layer.name, tuple(cells))


def _low_rank_cells(layer: LayerResults, method: Method, row: HeadlineRow | None) -> list[Cell]:
    width = 2 if method is Method.SVD else 3
    if row is None:
        return [Cell(BLANK)] * width
    if row.size is None or row.layer_parameters is None:
        return [Cell(NOT_REACHED), *[Cell(BLANK)] * (width - 1)]
    share = row.layer_parameters / layer.layer_parameters
    ratio = Cell(BLANK) if row.svd_ratio is None else Cell(ratio_text(row.svd_ratio), row.svd_ratio)
    return [Cell(f"rank {row.size:,}", row.size), Cell(percent_text(share, 1), share), ratio][:width]


def _selection_cells(layer: LayerResults, by_method: RowOfMethod) -> list[Cell]:
    best = smallest_selections(by_method)
    if not best or best[0].size is None:
        tried = any(method.family is Family.SELECTION for method in by_method)
        return [Cell(NOT_REACHED if tried else BLANK), Cell(BLANK)]
    first = Method(best[0].method)
    return [Cell(first.label, first.value), Cell(f"{best[0].size:,} of {layer.outputs:,}", best[0].size)]
