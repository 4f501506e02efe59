"""The frame around the data: canvases of one width, legends beside them, axes that read in plain numbers.

Every figure is as wide as the page. Axes stand at fixed places and the legend has a column of its own, so figures
that follow each other line up, nothing is laid out by trial, and the same record gives the same bytes. Text is plain
(`10 %`, not mathematical notation): it stays text in an SVG and can be searched.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from matplotlib.transforms import blended_transform_factory
from numpy.typing import NDArray

from dalr_stream.numerics.methods import Family, Method
from dalr_stream.report.style import LOOKS, MUTED, TEXT

FloatArray = NDArray[np.float64]

Entry = Line2D | Patch | str
"""A line or a patch of the legend, with its label; a plain string is a heading."""

WIDTH = 9.0
"""Inches: the width of the page's column."""

_LEFT, _RIGHT, _TOP, _BOTTOM, _LEGEND, _GAP, _STEP = 0.84, 0.14, 0.12, 0.56, 2.3, 0.84, 0.24
_LABEL = 0.62
_INNER = WIDTH - _LEFT - _RIGHT - _LEGEND
"""Inches, all of them: margins, the legend's column, the space between panels; what is left is the axes'."""

_DECADES_FOR_LOG = 2.0
"""A quantity whose largest value is at least 100 times its smallest is drawn on a logarithmic axis."""

_KEY, _KEY_GAP, _ROW, _LINE, _HEADING_GAP = 0.26, 0.09, 0.17, 0.14, 0.1
"""Inches: a legend's key, the space behind it, the pitch of rows and of lines in a row, the space above a heading."""
_DECADES_FOR_STEPS = 2.6
"""A logarithmic axis up to this long has room for ticks at 2 and 5 as well."""

_GROUPS = {Family.LOW_RANK: "low rank", Family.SELECTION: "selections", Family.HEADS: "heads"}


def canvas(height: float, *, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure of the page's width and its axes, side by side, with the right margin left to the legend.

    `height` is in inches.
    """
    figure = Figure(figsize=(WIDTH, height))
    inner = (_INNER - _GAP * (panels - 1)) / panels
    size = (inner / WIDTH, (height - _TOP - _BOTTOM) / height)
    lefts = [(_LEFT + panel * (inner + _GAP)) / WIDTH for panel in range(panels)]
    return figure, [_panel(figure, (left, _BOTTOM / height, *size)) for left in lefts]


def stacked(height: float) -> tuple[Figure, Axes, Axes]:
    """Return a figure of the page's width with two axes above each other: the upper for a close look, the lower whole.

    They share the x axis, which is labelled below.
    """
    figure = Figure(figsize=(WIDTH, height))
    inner = (height - _TOP - _BOTTOM - _STEP) / 2
    left, width = _LEFT / WIDTH, _INNER / WIDTH
    lower = _panel(figure, (left, _BOTTOM / height, width, inner / height))
    bottom = (_BOTTOM + inner + _STEP) / height
    upper = _panel(figure, (left, bottom, width, inner / height))
    upper.sharex(lower)
    upper.tick_params(labelbottom=False)
    return figure, upper, lower


def _panel(figure: Figure, box: tuple[float, float, float, float]) -> Axes:
    """Return axes whose label stands at a fixed distance, so that the labels of all figures line up."""
    axes = figure.add_axes(box)
    across_page = blended_transform_factory(figure.transFigure, axes.transAxes)
    axes.yaxis.set_label_coords(box[0] - _LABEL / WIDTH, 0.5, transform=across_page)
    return axes


def legend(figure: Figure, entries: Sequence[Entry]) -> None:
    """Set the legend into the right margin, a row an entry, with a gap above each heading but the first."""
    below_top = _TOP
    for index, entry in enumerate(entries):
        if isinstance(entry, str):
            below_top += _HEADING_GAP if index else 0.0
            _write(figure, _LEGEND, below_top, entry, MUTED.light)
            below_top += _ROW
        else:
            label = str(entry.get_label())
            _draw_key(figure, entry, below_top)
            _write(figure, _LEGEND - _KEY - _KEY_GAP, below_top, label, TEXT.light)
            below_top += _ROW + _LINE * label.count("\n")


def _write(figure: Figure, from_right: float, below_top: float, text: str, color: str) -> None:
    width, height = figure.get_size_inches()
    middle = below_top + _LINE * text.count("\n") / 2
    x, y = 1 - from_right / width, 1 - middle / height
    figure.text(x, y, text, color=color, fontsize=8.5, va="center", linespacing=1.15)


def _draw_key(figure: Figure, entry: Line2D | Patch, below_top: float) -> None:
    width, height = figure.get_size_inches()
    left, y, across = 1 - _LEGEND / width, 1 - below_top / height, _KEY / width
    if isinstance(entry, Patch):
        thick = 0.11 / height
        box = Rectangle((left, y - thick / 2), across, thick, transform=figure.transFigure)
        box.set(facecolor=entry.get_facecolor(), linewidth=0)
        figure.add_artist(box)
        return
    line = Line2D([], [])
    line.update_from(entry)  # also takes over where the original is clipped and how it is placed: neither holds here
    line.set_clip_box(None)
    line.set_transform(figure.transFigure)
    line.set_data([left, left + across / 2, left + across], [y, y, y])
    line.set_markevery([1])
    figure.add_artist(line)


def curve(axes: Axes, x: Sequence[float], y: Sequence[float], method: Method, *, label: str) -> Line2D:
    """Draw one curve of a method, in its colour, width and marker; on long curves each marker doubles the count."""
    look = LOOKS[method]
    (line,) = axes.plot(
        x,
        y,
        color=look.ink.light,
        linewidth=look.width,
        marker=look.marker,
        markersize=look.marker_size,
        markerfacecolor=look.marker_face,
        markeredgecolor=look.ink.light,
        markeredgewidth=0.9,
        markevery=_sparse(len(x)),
        zorder=look.layer_order,
        label=label,
    )
    return line


def _sparse(count: int) -> list[int]:
    if count <= 24:
        return list(range(count))
    return [2**power - 1 for power in range(count.bit_length())]


def method_entries(methods: Iterable[Method]) -> list[Entry]:
    """Return legend entries for these methods in the package's order, under a heading a family if there are two."""
    present = set(methods)
    families = [family for family in Family if any(method.family is family for method in present)]
    entries: list[Entry] = []
    for family in families:
        if len(families) > 1:
            entries.append(_GROUPS[family])
        entries += [_key(method) for method in Method if method in present and method.family is family]
    return entries


def _key(method: Method) -> Line2D:
    look = LOOKS[method]
    return Line2D(
        [],
        [],
        color=look.ink.light,
        linewidth=look.width,
        marker=look.marker,
        markersize=look.marker_size,
        markerfacecolor=look.marker_face,
        markeredgecolor=look.ink.light,
        markeredgewidth=0.9,
        label=method.label,
    )


def spans_decades(values: Iterable[float]) -> bool:
    """Say whether the positive values range over two decades or more."""
    positive = [value for value in values if value > 0]
    return bool(positive) and math.log10(max(positive) / min(positive)) >= _DECADES_FOR_LOG


def log_x(axes: Axes, low: float, high: float, *, suffix: str = "") -> None:
    """Make the x axis logarithmic from `low` to `high`, its ticks in plain numbers: 1, 2, 5 or powers of ten."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    _log_ticks(axes.xaxis, math.log10(high / low), suffix)


def log_y(axes: Axes, low: float, high: float) -> None:
    """Make the y axis logarithmic, as `log_x` does the x axis."""
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    _log_ticks(axes.yaxis, math.log10(high / low), "")


def count_x(axes: Axes, longest: int) -> None:
    """Make the x axis count from 1 to `longest`, logarithmically, so that the first few have room."""
    log_x(axes, 0.93, max(1.08 * longest, 2.0))


def _log_ticks(axis: Axis, decades: float, suffix: str) -> None:
    steps = (1.0, 2.0, 5.0) if decades < _DECADES_FOR_STEPS else (1.0,)
    axis.set_major_locator(LogLocator(subs=steps, numticks=20))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{_plain(value)}{suffix}"))
    axis.set_minor_formatter(NullFormatter())


def _plain(value: float) -> str:
    if value >= 1:
        return f"{value:,.0f}"
    return f"{value:.10f}".rstrip("0").rstrip(".")


def nines(axes: Axes, floor: float) -> None:
    """Stretch a y axis of per cents towards 100: 90 to 99 takes the room of 99 to 99.9; `floor` is cut."""

    def stretch(percent: FloatArray) -> FloatArray:
        return np.asarray(-np.log10(np.maximum(1 - np.asarray(percent) / 100, floor)))

    def shrink(height: FloatArray) -> FloatArray:
        return np.asarray(100 * (1 - 10 ** -np.asarray(height)))

    axes.set_yscale("function", functions=(stretch, shrink))
    axes.set_ylim(0, 100 * (1 - floor))
    axes.yaxis.set_major_locator(FixedLocator([0, 50, 90, 99, 99.9, 99.99]))
    axes.yaxis.set_minor_locator(NullLocator())
    per_cent(axes.yaxis)


def counts(axis: Axis) -> None:
    """Label an axis of counts, thousands set apart."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def per_cent(axis: Axis) -> None:
    """Label an axis whose values are already in per cent."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
