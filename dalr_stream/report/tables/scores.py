"""The tables of a layer in a report: the headline, and scores against size.

The table of scores has the layout of DALR's Tables 3-8: a column for each rank, a row for each method.

Selections have no rank. They stand in the column of the factor pairs they match in size: of the sizes that were
evaluated, the largest whose two layers together weigh at most k(m + d) + m C, the weight of the factor pair and the
untouched next layer, C being the next layer's outputs. Their own number of kept nodes is set small beside the score.
So do heads, by what is left of the output layer of their attention: the others have the same share left.
"""

from __future__ import annotations

from collections.abc import Sequence

from dalr_stream.numerics.methods import Family, Method
from dalr_stream.report.cells import (
    BLANK,
    Cell,
    Column,
    Row,
    RowKind,
    Table,
    count_text,
    percent_text,
    ratio_text,
)
from dalr_stream.report.records.results import HeadlineRow, LayerResults, Results, ScoreCurve, ScorePoint
from dalr_stream.report.records.scale import Scale, key_of
from dalr_stream.report.style import method_named

NOT_REACHED = "not reached"
NOT_REACHED_REMEDY = "Not reached: no size tried loses that little. Try larger evaluate.ranks, or allow a larger drop."
FINETUNED = "fine-tuned"
"""Follows the method where its networks were fine-tuned after compression."""


SIZES = {Family.SELECTION: "nodes kept", Family.HEADS: "dimensions a head"}
"""What sizes are that are no ranks."""


def matched_point(curve: ScoreCurve, layer: LayerResults, rank: int) -> ScorePoint | None:
    """Return the point of a selection, or of heads, that weighs as much as factors of that rank, or just less.

    None if none does.

    `pair_parameters <= k(m + d) + m C`, `m` and `d` the layer's outputs and inputs, `C` the next layer's outputs.
    """
    budget = rank * layer.weights_a_rank + layer.outputs * layer.next_outputs
    within = [point for point in curve.points if point.pair_parameters <= budget]
    return max(within, key=lambda point: (point.pair_parameters, point.size), default=None)


def ranks_tried(layer: LayerResults) -> tuple[int, ...]:
    """Return every rank at which a factor pair was evaluated, ascending."""
    curves = _of_family(layer, Family.LOW_RANK)
    return tuple(sorted({point.size for curve in curves for point in curve.points}))


def sizes_tried(layer: LayerResults, family: Family = Family.SELECTION) -> tuple[int, ...]:
    """Return every number of kept nodes at which a selection was evaluated, ascending; or sizes of another family."""
    curves = _of_family(layer, family)
    return tuple(sorted({point.size for curve in curves for point in curve.points}))


def score_table(results: Results, layer: LayerResults) -> Table:
    """Return the score at every size, in the layout of DALR's Tables 3-8.

    Columns are the ranks tried. Where only selections were tried, columns are their own sizes.
    """
    ranks, nodes = ranks_tried(layer), sizes_tried(layer)
    sizes = ranks or nodes or sizes_tried(layer, Family.HEADS)
    word = "dim kept" if ranks else SIZES[Family.SELECTION if nodes else Family.HEADS]
    rows = [*_scales(layer, sizes, by_rank=bool(ranks))]
    drafts = [
        (method, tuned, _cells(curve, layer, sizes, by_rank=bool(ranks), scale=results.scale))
        for method, tuned, curve in _with_finetuned(layer)
    ]
    for index in range(len(sizes)):
        _mark_best([cells for *_, cells in drafts], index, results.scale)
    for method, tuned, cells in drafts:
        noted = SIZES.get(method.family, "") if any(cell.note is not None for cell in cells) else ""
        if tuned:  # no curve of the plots is its own
            label, key = f"{method.label}, {FINETUNED}", f"{method.value}_finetuned"
            rows.append(Row(label, key, tuple(cells), note_label=noted))
        else:
            rows.append(Row(method.label, method.value, tuple(cells), note_label=noted, method=method))
    scale = results.scale
    baseline = Cell(scale.number(results.baseline_score), results.baseline_score)
    rows.append(Row("uncompressed", "uncompressed", (baseline,) * len(sizes), RowKind.REFERENCE))
    return Table(
        name="scores",
        caption=f"{layer.name}: {results.metric}{' in per cent' if scale.is_share else ''}",
        corner=Column(word, word.replace(" ", "_")),
        columns=tuple(Column(str(size), str(size)) for size in sizes),
        rows=tuple(rows),
        footnote=_score_footnote(layer),
    )


def _with_finetuned(layer: LayerResults) -> list[tuple[Method, bool, ScoreCurve]]:
    """Return the curves in order, each with its method and followed by that of the same networks fine-tuned."""
    tuned = {curve.method: curve for curve in layer.finetuned_curves}
    found = []
    for curve in _in_order(layer):
        method = method_named(curve.method, layer.name)
        found.append((method, False, curve))
        if curve.method in tuned:
            found.append((method, True, tuned[curve.method]))
    return found


def _score_footnote(layer: LayerResults) -> str:
    said = ["Bold: best of its column."]
    if ranks_tried(layer) and sizes_tried(layer):
        said.append(
            "Selections stand in the column of the factor pair they match in size, at or just below it, this layer and "
            f"{layer.next_layer} counted together."
        )
    if ranks_tried(layer) and sizes_tried(layer, Family.HEADS):
        said.append("Heads stand by what they leave of this layer; their queries, keys and values have as much left.")
    if layer.finetuned_curves:
        said.append("Fine-tuned: each network by itself, after its compression.")
    return " ".join(said)


def _family(method: str, layer: LayerResults) -> Family:
    return method_named(method, layer.name).family


def _in_order(layer: LayerResults) -> list[ScoreCurve]:
    order = list(Method)
    return sorted(layer.score_curves, key=lambda curve: order.index(method_named(curve.method, layer.name)))


def _of_family(layer: LayerResults, family: Family) -> list[ScoreCurve]:
    return [curve for curve in _in_order(layer) if _family(curve.method, layer) is family]


def _scales(layer: LayerResults, sizes: Sequence[int], *, by_rank: bool) -> list[Row]:
    m, d, C = layer.outputs, layer.inputs, layer.next_outputs
    each = layer.weights_a_rank
    scales: list[tuple[str, str, list[float]]] = []
    if by_rank:
        scales.append(("params, %", "params", [k * each / (m * d) for k in sizes]))
    if sizes_tried(layer):
        both = [k * each + m * C if by_rank else k * (d + C) for k in sizes]
        scales.append(("params of both, %", "params_both", [weight / layer.pair_parameters for weight in both]))
    return [
        Row(label, key, tuple(Cell(percent_text(share), share) for share in shares), RowKind.SCALE)
        for label, key, shares in scales
    ]


def _cells(curve: ScoreCurve, layer: LayerResults, sizes: Sequence[int], *, by_rank: bool, scale: Scale) -> list[Cell]:
    matched = by_rank and _family(curve.method, layer) is not Family.LOW_RANK
    own = {point.size: point for point in curve.points}
    cells: list[Cell] = []
    for size in sizes:
        point = matched_point(curve, layer, size) if matched else own.get(size)
        if point is None:
            cells.append(Cell(BLANK))
        else:
            cells.append(Cell(scale.number(point.score), point.score, point.size if matched else None))
    return cells


def _mark_best(rows: list[list[Cell]], index: int, scale: Scale) -> None:
    values = [row[index].value for row in rows if isinstance(row[index].value, float)]
    if not values:
        return
    best = max((value for value in values if isinstance(value, float)), key=scale.goodness)
    for row in rows:
        cell = row[index]
        if cell.value == best:
            row[index] = Cell(cell.text, cell.value, cell.note, best=True)


def headline_table(results: Results, layer: LayerResults) -> Table:
    """Return the smallest network of each method within the allowed loss, and its size against plain SVD's.

    Rows stand by family, because the ratio counts another thing in each: the layer's own parameters for factor
    pairs, this layer's and the next one's together for selections; heads have none. The best ratio of a family is
    marked.
    """
    groups = {
        Family.LOW_RANK: "Low rank: the ratio counts this layer alone",
        Family.SELECTION: "Selections: the ratio counts this layer and the next one together",
        Family.HEADS: "Heads: all four layers of the attention have the same share left",
    }
    columns = _headline_columns(results, layer)
    members = {family: [row for row in layer.headline if _family(row.method, layer) is family] for family in groups}
    rows: list[Row] = []
    for family, label in groups.items():
        if members[family] and sum(map(bool, members.values())) > 1:
            rows.append(Row(label, family.value, kind=RowKind.GROUP))
        rows += _headline_rows(layer, members[family], len(columns), results.scale)
    allowed = results.scale.text(results.scale.worst(results.baseline_score, layer.drop))
    return Table(
        name="headline",
        caption=f"{layer.name}: smallest size with {results.metric} of {results.scale.at_least} {allowed}",
        corner=Column("method", "method"),
        columns=columns,
        rows=tuple(rows),
        footnote=_headline_footnote(layer),
    )


def _headline_columns(results: Results, layer: LayerResults) -> tuple[Column, ...]:
    both = (Column("both layers", "pair_parameters", spare=True), Column("% of both", "pair_share"))
    return (
        Column("size", "size"),
        Column("layer", "layer_parameters", spare=True),
        Column("% of layer", "layer_share"),
        *(both if layer.next_layer else ()),
        Column(results.scale.head(results.metric), key_of(results.metric)),
        Column("vs SVD", "svd_ratio"),
    )


def _headline_footnote(layer: LayerResults) -> str:
    tried = {
        "Ranks": ranks_tried(layer),
        "Numbers of kept nodes": sizes_tried(layer),
        "Dimensions of each head": sizes_tried(layer, Family.HEADS),
    }
    said = [f"{what} tried: {_listing(sizes)}." for what, sizes in tried.items() if sizes]
    if any(row.size is None for row in layer.headline):
        said.append(NOT_REACHED_REMEDY)
    return " ".join(["Bold: best ratio of its family.", *said])


def _listing(sizes: Sequence[int]) -> str:
    if len(sizes) > 16:
        return f"{len(sizes)} from {sizes[0]:,} to {sizes[-1]:,}"
    return ", ".join(f"{size:,}" for size in sizes)


def _headline_rows(layer: LayerResults, members: Sequence[HeadlineRow], width: int, scale: Scale) -> list[Row]:
    order = list(Method)
    ratios = [row.svd_ratio for row in members if row.svd_ratio is not None and row.method != Method.SVD]
    best = max(ratios, default=None)
    rows: list[Row] = []
    for row in sorted(members, key=lambda row: order.index(method_named(row.method, layer.name))):
        method = method_named(row.method, layer.name)
        if row.size is None:
            cells: tuple[Cell, ...] = (Cell(NOT_REACHED, span=width),)
        else:
            cells = _reached(layer, row, row.size, method, best, scale)
        rows.append(Row(method.label, method.value, cells, method=method))
    return rows


def _reached(  # what a row is of, and how it is printed
    layer: LayerResults, row: HeadlineRow, size: int, method: Method, best: float | None, scale: Scale
) -> tuple[Cell, ...]:
    word = {Family.LOW_RANK: "rank", Family.SELECTION: "nodes", Family.HEADS: "heads of"}[method.family]
    ratio = (
        Cell(BLANK)
        if row.svd_ratio is None
        else Cell(ratio_text(row.svd_ratio), row.svd_ratio, best=method is not Method.SVD and row.svd_ratio == best)
    )
    return (
        Cell(f"{word} {size:,}", size),
        *_weight(row.layer_parameters, layer.layer_parameters),
        *(_weight(row.pair_parameters, layer.pair_parameters) if layer.next_layer else ()),
        Cell(BLANK) if row.score is None else Cell(scale.number(row.score), row.score),
        ratio,
    )


def _weight(parameters: int | None, whole: int) -> tuple[Cell, Cell]:
    if parameters is None:
        return Cell(BLANK), Cell(BLANK)
    share = parameters / whole
    return Cell(count_text(parameters), parameters), Cell(percent_text(share), share)
