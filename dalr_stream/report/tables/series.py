"""Every number behind the figures of a layer, as tables for CSV files.

What a figure draws is rounded by pixels and cut by axes; these tables are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dalr_stream.report.cells import BLANK, Cell, Column, Row, Table, Value
from dalr_stream.report.records.results import LayerResults
from dalr_stream.report.records.scale import key_of
from dalr_stream.report.records.stability import SelectionStability, Stability


def cumulative_energy(singular_values: Sequence[float]) -> tuple[float, ...]:
    """Return the share of the sum of squares that the first 1, 2, ... singular values carry; empty where all are zero.

    The sum runs in the given, descending order; its last value is 1 exactly.
    """
    total = 0.0
    sums = [total := total + value * value for value in singular_values]
    return tuple(partial / total for partial in sums) if total > 0 else ()


def layer_series(layer: LayerResults, metric: str = "accuracy") -> Iterator[Table]:
    """Yield scores, error curves, activation rates, spectra and retention curves; empty ones are left out."""
    if layer.score_curves:
        yield _score_points(layer, metric)
    errors: dict[str, Sequence[float] | None] = {}
    for curve in layer.error_curves:
        errors[f"{curve.method}_training"] = curve.training
        errors[f"{curve.method}_heldout"] = curve.heldout
    activity = {row.domain: row.active_rate for row in layer.activity}
    spectra = {
        "weight": layer.spectra.weight,
        "weight_energy": cumulative_energy(layer.spectra.weight),
        "outputs": layer.spectra.outputs,
        "outputs_energy": cumulative_energy(layer.spectra.outputs),
    }
    retention = {curve.method: curve.retention for curve in layer.retention_curves}
    if activity:
        yield _domains(layer)
    for table in (
        _curves("errors", "rank", 0, errors),
        _curves("activity", "feature", 1, activity),
        _curves("spectra", "component", 1, spectra),
        _curves("retention", "nodes", 1, retention),
        *_stability(layer),
    ):
        if table.columns:
            yield table


def _curves(name: str, index: str, first: int, columns: Mapping[str, Sequence[float] | None]) -> Table:
    """Curves side by side, a row an index; where a curve is shorter than the longest its cells are blank."""
    curves = {key: values for key, values in columns.items() if values}
    length = max((len(values) for values in curves.values()), default=0)
    rows = [
        [first + position, *(values[position] if position < len(values) else None for values in curves.values())]
        for position in range(length)
    ]
    return _plain(name, [index, *curves], rows)


def _stability(layer: LayerResults) -> Iterator[Table]:
    stability = layer.stability
    if stability is None:
        return
    yield _curves("stability", "rank", 0, _columns(stability, "training_error unseen unseen_error heldout_error turn"))
    if stability.selection is not None:
        columns = _columns(stability.selection, "common jaccard retention_error")
        yield _curves("selection-stability", "nodes", 1, columns)


def _columns(stability: Stability | SelectionStability, names: str) -> dict[str, Sequence[float] | None]:
    return {f"{stability.method}_{name}": getattr(stability, name) for name in names.split()}


def _score_points(layer: LayerResults, metric: str) -> Table:
    rows: list[list[Value]] = [
        [curve.method, point.size, point.layer_parameters, point.pair_parameters, point.score]
        for curve in layer.score_curves
        for point in curve.points
    ]
    return _plain("points", ["method", "size", "layer_parameters", "pair_parameters", key_of(metric)], rows)


def _domains(layer: LayerResults) -> Table:
    rows: list[list[Value]] = [[row.domain, row.rows, row.half_share] for row in layer.activity]
    return _plain("domains", ["domain", "rows", "half_share"], rows)


def _plain(name: str, header: Sequence[str], rows: Sequence[Sequence[Value]]) -> Table:
    corner, *keys = (Column(key, key) for key in header)
    return Table(name, name, corner, tuple(keys), tuple(_plain_row(row) for row in rows))


def _plain_row(row: Sequence[Value]) -> Row:
    label, *values = row
    return Row(str(label), str(label), tuple(Cell(BLANK if v is None else str(v), v) for v in values))
