"""The headline in words: how much smaller than plain SVD a layer gets at the same loss of score.

The DALR that speaks for its family is fixed beforehand (the package's default, the anchored affine form, where it was
run), not picked afterwards for the best figure of this run. The figure as published is quoted beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dalr_stream.numerics.methods import Family, Method
from dalr_stream.report.cells import BLANK, TIMES, percent_text
from dalr_stream.report.records.results import COMPARED, HeadlineRow, LayerResults, Results
from dalr_stream.report.records.scale import ACCURACY, Scale
from dalr_stream.report.style import method_named

SPEAKERS: tuple[Method, ...] = (
    Method.DALR_ANCHORED_AFFINE,
    Method.DALR_WEIGHTED_AFFINE,
    Method.DALR_ANCHORED,
    Method.DALR_OPTIMAL_AFFINE,
    Method.DALR_PUBLISHED,
    Method.DALR_OPTIMAL,
    Method.DALR_PUBLISHED_AFFINE,
    Method.DALR_PUBLISHED_BC,
    Method.SVD_BC,
)
"""Who is set against plain SVD: the first of these that the run has."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The two rows the headline sets against each other, both within the allowed loss."""

    svd: HeadlineRow
    other: HeadlineRow


@dataclass(frozen=True, slots=True)
class Claim:
    """The headline of one layer: a figure that can be set large, a sentence, and what else belongs to it."""

    layer: str
    figure: str
    unit: str
    """What the figure counts."""
    sentence: str
    support: tuple[str, ...]


def outcome(results: Results) -> str:
    """Return what the last network that the run saved weighs and scores, in a sentence; empty where there is none.

    The last is the one that was trained on, where one was.
    """
    saved = [
        (size, size.score)
        for size in results.sizes[1:]
        if size.score is not None and not size.label.startswith(COMPARED)
    ]
    if not saved:
        return ""
    size, score = saved[-1]
    share = percent_text(size.parameters / results.sizes[0].parameters, 1)
    return f"The network that was saved: {results.scale.text(score)}, with {share} % of its parameters."


def compared(layer: LayerResults) -> Comparison | None:
    """Return plain SVD's row and the speaker's; None unless both stay within the allowed loss at some size."""
    rows = headline_rows(layer)
    name = speaker(rows)
    svd, other = rows.get(Method.SVD), None if name is None else rows[name]
    if svd is None or other is None or svd.size is None or other.size is None:
        return None
    return Comparison(svd, other)


def claim(layer: LayerResults, metric: str = "accuracy", scale: Scale = ACCURACY) -> Claim:
    """Put the headline of a layer into words, whether or not the allowed loss was kept."""
    rows = headline_rows(layer)
    ratio = _ratio(compared(layer))
    figure, unit = (BLANK, "no comparison") if ratio is None else _large(ratio)
    sentence = f"{layer.name} was not evaluated by itself."
    if rows:
        sentence = f"{scale.allowance(metric, layer.drop)}, {_main_clause(layer, rows)}."
    return Claim(layer.name, figure, unit, sentence, tuple(_support(layer, rows)))


def _large(ratio: float) -> tuple[str, str]:
    """Return a ratio of SVD's parameters to a method's as a number of 1 or more, and what it is a number of."""
    if f"{ratio:.1f}" == "1.0":
        return f"1.0{TIMES}", "the parameters of SVD"
    if ratio > 1:
        return f"{ratio:.1f}{TIMES}", "fewer parameters than SVD"
    return f"{1 / ratio:.1f}{TIMES}", "more parameters than SVD"


def times_text(ratio: float) -> str:
    """Return a ratio of SVD's parameters to a method's in words: 4.0 times fewer parameters than."""
    if f"{ratio:.1f}" == "1.0":
        return "as many parameters as"
    if ratio > 1:
        return f"{ratio:.1f} times fewer parameters than"
    return f"{1 / ratio:.1f} times more parameters than"


def headline_rows(layer: LayerResults) -> Mapping[Method, HeadlineRow]:
    """Return the rows of a layer's headline, by method."""
    return {method_named(row.method, layer.name): row for row in layer.headline}


def speaker(rows: Mapping[Method, HeadlineRow]) -> Method | None:
    """Return the method that is set against plain SVD."""
    return next((method for method in SPEAKERS if method in rows), None)


def _ratio(pair: Comparison | None) -> float | None:
    return None if pair is None else pair.other.svd_ratio


def _main_clause(layer: LayerResults, rows: Mapping[Method, HeadlineRow]) -> str:
    pair, name = compared(layer), speaker(rows)
    ratio = _ratio(pair)
    if pair is not None and name is not None and ratio is not None:
        needs = f"{name.label} needs {times_text(ratio)} SVD in {layer.name}: rank {pair.other.size:,}"
        if pair.other.size == pair.svd.size:
            return f"{needs} too, {_share(pair.svd, layer)} % of the layer"
        return (
            f"{needs} instead of "
            f"{pair.svd.size:,}, {_share(pair.other, layer)} % of the layer instead of {_share(pair.svd, layer)} %"
        )
    clauses = [_standing(layer, method, rows[method]) for method in (name, Method.SVD) if method and method in rows]
    return "; ".join(clauses) if clauses else _selection_clause(layer, rows)


def _standing(layer: LayerResults, method: Method, row: HeadlineRow) -> str:
    if row.size is None:
        return f"{method.label} has no rank among those tried for {layer.name}"
    return f"{method.label} needs rank {row.size:,} in {layer.name}, {_share(row, layer)} % of the layer"


def _share(row: HeadlineRow, layer: LayerResults) -> str:
    return BLANK if row.layer_parameters is None else percent_text(row.layer_parameters / layer.layer_parameters, 1)


def _support(layer: LayerResults, rows: Mapping[Method, HeadlineRow]) -> Iterator[str]:
    if layer.stability is not None:
        yield f"The calibration set is {'large enough' if layer.stability.enough else 'too small'}: see below."
    published = rows.get(Method.DALR_PUBLISHED)
    if published is not None and speaker(rows) is not Method.DALR_PUBLISHED and published.svd_ratio is not None:
        yield f"DALR as published needs {times_text(published.svd_ratio)} SVD: rank {published.size:,}."
    best = smallest_selections(rows)
    if best and best[0].svd_ratio is not None:
        verb = "does" if len(best) == 1 else "do"
        yield (
            f"Of the selections {_labels(best, layer)} {verb} best: counting {layer.name} and {layer.next_layer} "
            f"together that needs {times_text(best[0].svd_ratio)} SVD, and keeps {best[0].size:,} of {layer.outputs:,} "
            "nodes."
        )


def smallest_selections(rows: Mapping[Method, HeadlineRow]) -> list[HeadlineRow]:
    """Return the smallest selections within the allowed loss, in the package's order."""
    reached = [rows[method] for method in Method if method in rows and method.family is Family.SELECTION]
    reached = [row for row in reached if row.size is not None]
    smallest = min((row.size or 0 for row in reached), default=None)
    return [row for row in reached if row.size == smallest]


def _labels(rows: Sequence[HeadlineRow], layer: LayerResults) -> str:
    *most, last = (method_named(row.method, layer.name).label for row in rows)
    return f"{', '.join(most)} and {last}" if most else last


def _selection_clause(layer: LayerResults, rows: Mapping[Method, HeadlineRow]) -> str:
    best = smallest_selections(rows)
    if not best:
        return f"no method that was tried compresses {layer.name}"
    return f"{layer.name} needs {best[0].size:,} of its {layer.outputs:,} nodes with {_labels(best, layer)}"
