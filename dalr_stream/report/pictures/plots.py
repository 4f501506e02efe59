"""The figures of a layer: each function takes the record and gives one matplotlib Figure.

Nothing is smoothed, thinned or averaged: a line holds the numbers of the record, and an axis that cuts some of them
off says so in its figure's caption (`figures`). Functions are to be called inside `style.drawing()`. Asked for a figure
whose numbers the record does not have, they raise; `figures.layer_figures` knows which ones a layer has, and why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.methods import Family
from dalr_stream.report.cells import TIMES, percent_text
from dalr_stream.report.claims import compared
from dalr_stream.report.pictures import axes as frame
from dalr_stream.report.records.results import LayerResults, Results, ScoreCurve, ScorePoint
from dalr_stream.report.style import BAND, BASELINE, MUTED, SERIES, TEXT, method_named
from dalr_stream.report.tables.series import cumulative_energy

ERROR_FLOOR = 1e-4
"""Errors below this share of the largest are off the logarithmic axis, where they would flatten all others."""
CLOSE_LOOK = 5.0
"""The upper panel of a figure of scores shows this many times the allowed loss."""
LEAST_ROOM = 0.2
"""Percentage points that count as the loss allowed where less is."""
SPECTRUM_FLOOR = 1e-6
"""Singular values below a millionth of the largest are off the axis: float32 activations carry nothing there."""
RETENTION_CEILING = 1e-4
"""The axis of retention ends at 99.99 %."""


def activation_rates(layer: LayerResults) -> Figure:
    """Draw the share of samples in which each input fires, by domain, features in descending order (DALR, Fig. 2)."""
    if not layer.activity:
        raise InvalidInputError(f"layer {layer.name!r}: activation rates need one domain at least, got none")
    figure, (axes,) = frame.canvas(3.2)
    entries: list[frame.Entry] = []
    for index, domain in enumerate(layer.activity):
        color = SERIES[index % len(SERIES)].light
        count = len(domain.active_rate)
        rates = [100 * rate for rate in domain.active_rate]
        (line,) = axes.plot(range(1, count + 1), rates, color=color, linewidth=1.8, label=domain.domain)
        half = domain.half_share * count
        axes.axvline(half, color=color, linewidth=1.0, linestyle=(0, (4, 3)), label=f"{domain.domain} half")
        note = Line2D([], [], color=color, linewidth=1.0, linestyle=(0, (4, 3)))
        note.set_label(f"50 % of activity lies in\nthe first {percent_text(domain.half_share, 1)} % of inputs")
        line.set_label(
            f"{domain.domain} ({domain.rows:,} samples)".lstrip("_")
        )  # matplotlib hides labels with a leading _
        entries += [line, note]
    axes.set_xlim(0, max(len(domain.active_rate) for domain in layer.activity))
    axes.set_ylim(0, 102)
    frame.counts(axes.xaxis)
    frame.per_cent(axes.yaxis)
    axes.set_xlabel("inputs, most active first")
    axes.set_ylabel("samples with a non-zero response")
    frame.legend(figure, entries)
    return figure


def reconstruction_errors(layer: LayerResults) -> Figure:
    """Draw the reconstruction error at every rank from 1, training dashed, held-out solid (DALR, Eq. 13, Fig. 3)."""
    if not layer.error_curves:
        raise InvalidInputError(f"layer {layer.name!r}: reconstruction errors need one method at least, got none")
    figure, (axes,) = frame.canvas(4.4)
    drawn: list[float] = []
    for curve in layer.error_curves:
        method = method_named(curve.method, layer.name)
        for kind, values in (("training", curve.training), ("held-out", curve.heldout)):
            if values is None:
                continue
            tail = values[1:]
            line = frame.curve(axes, range(1, len(values)), tail, method, label=f"{method.label} {kind}")
            if kind == "training":
                line.set(linestyle=(0, (4, 2)), alpha=0.75)
                if curve.heldout is not None:
                    line.set(marker="none", linewidth=0.8 * line.get_linewidth())
            drawn += tail
    longest = max(len(curve.training) for curve in layer.error_curves)
    frame.count_x(axes, longest - 1)
    _error_axis(axes, drawn)
    axes.set_xlabel("rank k")
    axes.set_ylabel("error, relative to the output's norm")
    entries = frame.method_entries(method_named(curve.method, layer.name) for curve in layer.error_curves)
    if any(curve.heldout is not None for curve in layer.error_curves):
        entries += ["rows", Line2D([], [], color=MUTED.light, linewidth=1.5, label="held out")]
    else:
        entries.append("rows")
    entries.append(Line2D([], [], color=MUTED.light, linewidth=1.2, linestyle=(0, (4, 2)), label="training"))
    frame.legend(figure, entries)
    return figure


def _error_axis(axes: Axes, drawn: Sequence[float]) -> None:
    top = max(drawn, default=0.0) or 1.0
    if frame.spans_decades(drawn):
        frame.log_y(axes, _lowest_shown(drawn), 1.2 * top)
    else:
        axes.set_ylim(0, 1.04 * top)


def _lowest_shown(drawn: Sequence[float]) -> float:
    return max(0.85 * min(value for value in drawn if value > 0), ERROR_FLOOR * max(drawn))


def errors_below_axis(layer: LayerResults) -> float | None:
    """Return where the logarithmic axis of the errors ends, if some errors lie below; else None."""
    drawn = [value for c in layer.error_curves for curve in (c.training, c.heldout or ()) for value in curve[1:]]
    if not frame.spans_decades(drawn):
        return None
    lowest = _lowest_shown(drawn)
    return lowest if min(drawn) < lowest else None


def score_against_pair(results: Results, layer: LayerResults) -> Figure:
    """Draw the score against the parameters left in this layer and the next one, all methods (Tables 3-8)."""
    if not layer.score_curves:
        raise InvalidInputError(f"layer {layer.name!r}: scores need one evaluated method at least, got none")
    shares = [
        [100 * point.pair_parameters / layer.pair_parameters for point in curve.points] for curve in layer.score_curves
    ]
    following = f" and {layer.next_layer}" if layer.next_layer else ""
    return _score(results, layer, layer.score_curves, shares, f"parameters left in {layer.name}{following}")


def score_against_layer(results: Results, layer: LayerResults) -> Figure:
    """Draw the score against the parameters left in this layer alone, low-rank methods only (Tables 3-8).

    A bracket spans the sizes the headline compares: the default DALR's and plain SVD's.
    """
    curves = [c for c in layer.score_curves if method_named(c.method, layer.name).family is Family.LOW_RANK]
    if not curves:
        raise InvalidInputError(f"layer {layer.name!r}: this figure needs one evaluated low-rank method, got none")
    shares = [[100 * _own_parameters(point, layer) / layer.layer_parameters for point in c.points] for c in curves]
    figure = _score(results, layer, curves, shares, f"parameters left in {layer.name}")
    if bracketed(layer):
        _bracket(figure.axes[0], layer)  # the lower panel, which was made first
    return figure


def _own_parameters(point: ScorePoint, layer: LayerResults) -> int:
    if point.layer_parameters is None:
        raise InvalidInputError(f"layer {layer.name!r}: a factor pair has layer_parameters, got None at {point.size}")
    return point.layer_parameters


def bracketed(layer: LayerResults) -> bool:
    """Say whether the headline compares two sizes, the speaker's below plain SVD's."""
    ends = _bracket_ends(layer)
    return bool(ends) and ends[0] < ends[1]


def _bracket_ends(layer: LayerResults) -> tuple[int, ...]:
    pair = compared(layer)
    rows = () if pair is None else (pair.other, pair.svd)
    return tuple(row.layer_parameters for row in rows if row.layer_parameters is not None)


def _bracket(axes: Axes, layer: LayerResults) -> None:
    low, high = (100 * parameters / layer.layer_parameters for parameters in _bracket_ends(layer))
    across = axes.get_xaxis_transform()
    for end in (low, high):
        axes.axvline(end, ymin=0.035, ymax=0.105, color=TEXT.light, linewidth=1.0, label="headline")
    arrow = {"arrowstyle": "-|>", "color": TEXT.light, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (low, 0.07), (high, 0.07), xycoords=across, textcoords=across, arrowprops=arrow)
    text = f"{high / low:.1f}{TIMES} fewer"
    axes.text(math.sqrt(low * high), 0.09, text, transform=across, ha="center", va="bottom")


def _score(
    results: Results,
    layer: LayerResults,
    curves: Sequence[ScoreCurve],
    shares: Sequence[Sequence[float]],
    xlabel: str,
) -> Figure:
    figure, upper, lower = frame.stacked(5.4)
    scale = results.scale
    baseline = scale.factor * results.baseline_score
    worst = scale.factor * scale.worst(results.baseline_score, layer.drop)
    for axes in (upper, lower):
        axes.axhspan(*sorted((worst, baseline)), color=BAND.light, linewidth=0, zorder=0)
        axes.axhline(baseline, color=BASELINE.light, linewidth=1.2, zorder=2, label="uncompressed")
        for curve, share in zip(curves, shares, strict=True):
            method = method_named(curve.method, layer.name)
            values = [scale.factor * point.score for point in curve.points]
            frame.curve(axes, share, values, method, label=method.label)
        if scale.is_share:
            frame.per_cent(axes.yaxis)
        axes.set_ylabel(results.metric)
    drawn = [value for share in shares for value in share if value > 0]
    frame.log_x(lower, 0.9 * min(drawn, default=1), 1.12 * max(drawn, default=100), suffix=" %")
    values = [baseline, *(scale.factor * point.score for curve in curves for point in curve.points)]
    room = (worst - baseline) if abs(worst - baseline) > LEAST_ROOM or not scale.is_share else -LEAST_ROOM
    best = max(values, key=scale.goodness)
    upper.set_ylim(*sorted((baseline + CLOSE_LOOK * room, best - 0.25 * room)))
    lower.set_xlabel(xlabel)
    base = Line2D(
        [], [], color=BASELINE.light, linewidth=1.2, label=f"uncompressed, {scale.text(results.baseline_score)}"
    )
    band = Patch(color=BAND.light, linewidth=0, label=f"within {scale.drop_text(layer.drop)} of it")
    methods = frame.method_entries(method_named(curve.method, layer.name) for curve in curves)
    frame.legend(figure, [*methods, "reference", base, band])
    return figure


def spectra(layer: LayerResults) -> Figure:
    """Draw singular values relative to the largest, and the share of their squares' sum, of weight and outputs."""
    named = {"weight W": layer.spectra.weight, "outputs Z": layer.spectra.outputs}
    named = {name: values for name, values in named.items() if any(value > 0 for value in values)}
    if not named:
        raise InvalidInputError(f"layer {layer.name!r}: spectra need one singular value above 0, got none")
    figure, (left, right) = frame.canvas(3.3, panels=2)
    entries: list[frame.Entry] = []
    for index, (name, values) in enumerate(named.items()):
        count = range(1, len(values) + 1)
        energy = cumulative_energy(values)
        color = SERIES[_SPECTRA_INK + index].light
        left.plot(count, [value / values[0] for value in values], color=color, linewidth=1.8, label=name)
        (line,) = right.plot(count, [100 * share for share in energy], color=color, linewidth=1.8, label=name)
        entries += [
            line,
            *(_note(f"{100 * share:g} % of energy in the first {first_reaching(energy, share):,}") for share in _MARKS),
        ]
    longest = max(len(values) for values in named.values())
    relative = [value / values[0] for values in named.values() for value in values if value > 0]
    for axes in (left, right):
        frame.count_x(axes, longest)
        axes.set_xlabel("component")
    frame.log_y(left, max(0.8 * min(relative), SPECTRUM_FLOOR), 1.3)
    left.set_ylabel("singular value / largest")
    right.set_ylim(0, 102)
    frame.per_cent(right.yaxis)
    right.set_ylabel("cumulative energy")
    frame.legend(figure, entries)
    return figure


_MARKS = (0.9, 0.99)
_SPECTRA_INK = 3


def _note(text: str) -> Line2D:
    return Line2D([], [], linestyle="none", label=text)


def first_reaching(rising: Sequence[float], level: float) -> int:
    """Return how many components it takes for a rising curve to reach a level; all of them where it never does."""
    return next((count for count, value in enumerate(rising, 1) if value >= level), len(rising))


def retention(layer: LayerResults) -> Figure:
    """Draw information retention against nodes kept (MoMaSP, Eq. 2), on an axis stretched towards 100 %."""
    if not layer.retention_curves:
        raise InvalidInputError(f"layer {layer.name!r}: retention needs one selection at least, got none")
    figure, (axes,) = frame.canvas(3.6)
    for curve in layer.retention_curves:
        method = method_named(curve.method, layer.name)
        shares = [100 * value for value in curve.retention]
        frame.curve(axes, range(1, len(shares) + 1), shares, method, label=method.label)
    frame.count_x(axes, max(len(curve.retention) for curve in layer.retention_curves))
    frame.nines(axes, RETENTION_CEILING)
    axes.set_xlabel("nodes kept")
    axes.set_ylabel("information retained")
    frame.legend(figure, frame.method_entries(method_named(c.method, layer.name) for c in layer.retention_curves))
    return figure
