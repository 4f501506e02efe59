"""Which figures a layer has, what their captions say, and why one is missing.

A caption says how to read the figure, quotes what this record shows in it, and names the figure or table of the papers
it corresponds to. A figure whose numbers were not measured is left out, and a sentence says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from matplotlib.figure import Figure

from dalr_stream.numerics.methods import Family
from dalr_stream.report.cells import percent_text
from dalr_stream.report.pictures import plots
from dalr_stream.report.records.results import DomainActivity, LayerResults, Results
from dalr_stream.report.style import method_named


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure with its words. Made inside `style.drawing()`, and to be saved there."""

    name: str
    """Ends the file name; of letters and underscores alone."""
    title: str
    caption: str
    figure: Figure
    table: str
    """Name of the table that holds its numbers."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A figure that could not be drawn."""

    name: str
    title: str
    reason: str


def layer_figures(results: Results, layer: LayerResults) -> Iterator[Drawn | LeftOut]:
    """Yield the figures of a layer in the order of the page."""
    yield _score(results, layer)
    yield _score_both(results, layer)
    yield _errors(layer)
    yield _activity(layer)
    yield _spectra(layer)
    yield _retention(layer)


def _has(layer: LayerResults, family: Family) -> bool:
    return any(method_named(curve.method, layer.name).family is family for curve in layer.score_curves)


def _score(results: Results, layer: LayerResults) -> Drawn | LeftOut:
    title = f"{_begun(results.metric)} against the size of the layer"
    if not _has(layer, Family.LOW_RANK):
        return LeftOut("score", title, f"No low-rank network of {layer.name} was evaluated.")
    bracket = " The arrow spans the two sizes the headline compares." if plots.bracketed(layer) else ""
    caption = (
        f"Low-rank methods only, by the weights left in {layer.name}; further left and "
        f"{'higher' if results.scale.higher else 'lower'} is better. "
        f"The band is the allowed loss of {results.scale.drop_text(layer.drop)}; the upper panel is a close look at it."
        f"{bracket} Corresponds to Tables 3 to 8 of DALR."
    )
    return Drawn("score", title, caption, plots.score_against_layer(results, layer), "points")


def _score_both(results: Results, layer: LayerResults) -> Drawn | LeftOut:
    title = f"{_begun(results.metric)} against the size of both layers"
    if not layer.next_layer:
        reason = f"{layer.name} has no next layer for a selection to shrink, so there is no selection to compare with."
        return LeftOut("score_both", title, reason)
    if not _has(layer, Family.SELECTION):
        return LeftOut("score_both", title, f"No selection of nodes of {layer.name} was evaluated.")
    floor = percent_text(layer.outputs * layer.next_outputs / layer.pair_parameters, 1)
    caption = (
        f"All methods at equal weight: a selection removes nodes of {layer.name} and with them inputs of "
        f"{layer.next_layer}, so both layers are counted. A factor pair leaves {layer.next_layer} whole and cannot go "
        f"below {floor} %. The upper panel is a close look at the allowed loss. Corresponds to Tables 3 to 8 of DALR "
        "and Tables 3 to 5 of MoMaSP."
    )
    return Drawn("score_both", title, caption, plots.score_against_pair(results, layer), "points")


def _begun(metric: str) -> str:
    """Return a metric's name as a title begins with it."""
    return metric[:1].upper() + metric[1:]


def _errors(layer: LayerResults) -> Drawn | LeftOut:
    title = "Reconstruction error against rank"
    if not layer.error_curves:
        return LeftOut("errors", title, f"No low-rank method was solved for {layer.name}.")
    if any(curve.heldout is not None for curve in layer.error_curves):
        rows = (
            "Solid: held-out rows, which the solver never saw; dashed: the rows it was given. The gap between the "
            "two is overfitting."
        )
    else:
        rows = "No rows were held out in this run, so only the error on the solver's own rows (dashed) is known."
    end = plots.errors_below_axis(layer)
    cut = "" if end is None else f" Errors below {end:.1g} are off the axis."
    caption = (
        f"Lower is better. {rows}{cut} Corresponds to Fig. 3 and Eq. 13 of DALR, relative to the norm of the output."
    )
    return Drawn("errors", title, caption, plots.reconstruction_errors(layer), "errors")


def _activity(layer: LayerResults) -> Drawn | LeftOut:
    title = "How often the inputs fire"
    if not layer.activity:
        return LeftOut("activity", title, f"No activation rates were recorded for {layer.name}.")
    shares = "; on ".join(_half(row) for row in layer.activity)
    one = " Only one domain was captured, so there is nothing to compare it with." if len(layer.activity) == 1 else ""
    caption = (
        f"On {shares}.{one} The steeper the fall, the fewer inputs matter on that domain, and the more there is to "
        "gain from compressing for it. Corresponds to Fig. 2 of DALR."
    )
    return Drawn("activity", title, caption, plots.activation_rates(layer), "activity")


def _half(row: DomainActivity) -> str:
    return f"{row.domain}, half of all activity comes from {percent_text(row.half_share, 1)} % of the inputs"


def _spectra(layer: LayerResults) -> Drawn | LeftOut:
    title = "Spectra of weight and outputs"
    if not any(value > 0 for value in (*layer.spectra.weight, *layer.spectra.outputs)):
        return LeftOut("spectra", title, f"No spectra were recorded for {layer.name}.")
    caption = (
        "Left: singular values, each relative to the largest. Right: the share of the sum of their squares that the "
        "first components carry. SVD cuts the weight's spectrum, DALR the outputs': where the outputs' curve rises "
        "faster, a lower rank suffices on this domain (DALR, Eqs. 6 to 11)."
    )
    return Drawn("spectra", title, caption, plots.spectra(layer), "spectra")


def _retention(layer: LayerResults) -> Drawn | LeftOut:
    title = "Information retained by the kept nodes"
    if not layer.retention_curves:
        why = "no selection was solved" if layer.next_layer else "it has no next layer, so no nodes can be selected"
        return LeftOut("retention", title, f"There is no retention curve for {layer.name}: {why}.")
    caption = (
        "The share of the second moment of all nodes that the kept ones explain linearly: r(J) of Eq. 2 of MoMaSP. The "
        "vertical axis is stretched towards 100 %. High retention does not yet mean a good score: compare the figures "
        "above."
    )
    return Drawn("retention", title, caption, plots.retention(layer), "retention")
