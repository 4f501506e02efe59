"""What was found out about one layer, and what the report shows of it: curves, spectra, activity and decisions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dalr_stream.numerics.heads.factors import HeadFactors
from dalr_stream.numerics.linalg.psd import symmetric_eigen, thin_svd
from dalr_stream.numerics.lowrank.grouped import Factors
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.selection.nodes import ChannelSelection
from dalr_stream.numerics.sizes.losses import relative_errors
from dalr_stream.numerics.sizes.shape import LayerShape
from dalr_stream.numerics.statistics.channels import ChannelReader
from dalr_stream.numerics.statistics.grouped import InputMoments
from dalr_stream.numerics.types import Counts, Vector
from dalr_stream.report.records.results import (
    DomainActivity,
    ErrorCurve,
    HeadlineRow,
    LayerResults,
    RetentionCurve,
    ScoreCurve,
    ScorePoint,
    Spectra,
)
from dalr_stream.report.records.scale import ACCURACY, Scale
from dalr_stream.report.records.stability import Stability
from dalr_stream.storage.records.solutions import Solution


@dataclass(frozen=True, slots=True)
class RowCounts:
    """How many rows there are, and in how many of them each input is not zero, (d,), group after group."""

    rows: int
    nonzero: Counts


@dataclass(frozen=True, slots=True)
class LayerFindings:
    """What the steps found out about one layer."""

    name: str
    shape: LayerShape
    next_layer: str | None
    unprunable: str
    """Why no selection of its nodes was solved; empty where some were."""
    domains: Mapping[str, RowCounts]
    """Every row of each domain, for the activity; in the order they are shown."""
    training: InputMoments
    heldout: InputMoments | None
    solutions: Mapping[Method, Solution]
    """Each read when it is asked for: those of a wide layer are gigabytes together."""
    notes: Mapping[Method, tuple[str, ...]]
    """What was decided on the way to each."""
    curves: tuple[ScoreCurve, ...]
    stability: Stability | None = None
    finetuned: tuple[ScoreCurve, ...] = ()


def layer_results(findings: LayerFindings, baseline: float, drop: float, scale: Scale = ACCURACY) -> LayerResults:
    """Return the layer's part of the report; `baseline` is the uncompressed score, `drop` the loss allowed."""
    curves: list[ErrorCurve] = []
    retention: list[RetentionCurve] = []
    spectra: list[Spectra] = []

    def read(solution: Solution) -> None:
        if isinstance(solution, HeadFactors):  # whose losses are of two kinds: `inspect` has them
            return
        if isinstance(solution, ChannelSelection):
            retention.append(RetentionCurve(solution.method.value, _plain(solution.retention)))
            return
        if not spectra:
            spectra.append(_spectra(solution, findings.training))
        curves.append(error_curve(solution, findings.training, findings.heldout))

    for method in findings.solutions:
        read(findings.solutions[method])  # let go of before the next one is read
    return LayerResults(
        name=findings.name,
        outputs=findings.shape.outputs,
        inputs=findings.shape.inputs,
        groups=findings.shape.groups,
        next_layer=findings.next_layer,
        next_outputs=findings.shape.next_outputs,
        drop=drop,
        activity=tuple(activity(domain, counts) for domain, counts in findings.domains.items()),
        error_curves=tuple(curves),
        score_curves=findings.curves,
        retention_curves=tuple(retention),
        spectra=spectra[0] if spectra else Spectra((), ()),
        headline=headline(findings.curves, scale.worst(baseline, drop), scale),
        stability=findings.stability,
        finetuned_curves=findings.finetuned,
    )


def decisions(layers: Sequence[LayerFindings]) -> Iterator[str]:
    """Yield, in words, what was decided on the way to the solutions."""
    for layer in layers:
        if layer.unprunable:
            yield f"no selections were solved: {layer.unprunable}"
        for domain, counts in layer.domains.items():
            dead = int((counts.nonzero == 0).sum())
            if dead:
                yield f"layer '{layer.name}': {dead} of {counts.nonzero.size} inputs never fire on '{domain}'"
        notes: dict[str, list[str]] = {}
        for method, own in layer.notes.items():
            for note in own:
                notes.setdefault(note, []).append(method.label)
        for note, labels in notes.items():
            yield f"layer '{layer.name}', {'; '.join(labels)}: {note}"


def activity(domain: str, counts: RowCounts) -> DomainActivity:
    """Return the activation rates in descending order, and the share of features that carries half of them."""
    rates = np.sort(counts.nonzero / counts.rows)[::-1]
    total = np.cumsum(rates)
    needed = int(np.searchsorted(total, 0.5 * total[-1])) + 1 if total[-1] > 0 else rates.size
    return DomainActivity(domain, counts.rows, _plain(rates), needed / rates.size)


def error_curve(factors: Factors, training: InputMoments, heldout: InputMoments | None) -> ErrorCurve:
    """Return ||Y - Yhat|| / ||Y - b|| at every rank, on the training rows and on the held-out ones."""
    on_heldout = None if heldout is None else _plain(relative_errors(factors, heldout))
    return ErrorCurve(factors.method.value, _plain(relative_errors(factors, training)), on_heldout)


def headline(curves: Sequence[ScoreCurve], needed: float, scale: Scale = ACCURACY) -> tuple[HeadlineRow, ...]:
    """Return, per method, the smallest tried size whose score is as good as `needed`."""
    smallest = {curve.method: _smallest(curve.points, needed, scale) for curve in curves}
    svd = smallest.get(Method.SVD.value)
    return tuple(_headline_row(method, point, svd) for method, point in smallest.items())


def readers_in_words(readers: Sequence[ChannelReader]) -> str | None:
    """Name the layers that read the channels; None for none."""
    names = [reader.span.layer for reader in readers]
    if len(names) <= 2:
        return " and ".join(names) or None
    others = "1 other" if len(names) == 3 else f"{len(names) - 2} others"
    return f"{names[0]}, {names[1]} and {others}"


def _headline_row(method: str, point: ScorePoint | None, svd: ScorePoint | None) -> HeadlineRow:
    if point is None:
        return HeadlineRow(method, None, None, None, None, None)
    ratio = None
    if svd is not None and Method(method).family is not Family.HEADS:  # of four layers, of which SVD had one
        if Method(method).family is Family.LOW_RANK and svd.layer_parameters and point.layer_parameters:
            ratio = svd.layer_parameters / point.layer_parameters
        else:
            ratio = svd.pair_parameters / point.pair_parameters
    return HeadlineRow(method, point.size, point.layer_parameters, point.pair_parameters, point.score, ratio)


def _smallest(points: Sequence[ScorePoint], needed: float, scale: Scale) -> ScorePoint | None:
    return next((point for point in points if scale.reaches(point.score, needed)), None)


def _spectra(factors: Factors, training: InputMoments) -> Spectra:
    weights = [part.weight for part in factors.parts]
    zero = np.zeros(factors.inputs)
    pairs = zip(weights, training.parts, strict=True)
    grams = [seen.products.congruence(weight, zero) for weight, seen in pairs]
    singular = np.concatenate([thin_svd(weight).values for weight in weights])
    outputs = np.concatenate([symmetric_eigen(gram).values for gram in grams])
    return Spectra(_plain(np.sort(singular)[::-1]), _plain(np.sqrt(np.maximum(np.sort(outputs)[::-1], 0.0))))


def _plain(values: Vector) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
