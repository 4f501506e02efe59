"""Fills the report's record from a store's moments and solutions and from what evaluation found."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dalr_stream.engine.layer_moments import OnDemand
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.numerics.heads.factors import HeadFactors
from dalr_stream.numerics.linalg.psd import symmetric_eigen, thin_svd
from dalr_stream.numerics.lowrank.grouped import Factors
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.selection.nodes import ChannelSelection
from dalr_stream.numerics.sizes.losses import relative_errors
from dalr_stream.numerics.sizes.shape import LayerShape
from dalr_stream.numerics.statistics.channels import ChannelReader
from dalr_stream.numerics.statistics.grouped import InputMoments, moments_of
from dalr_stream.numerics.types import Counts, Vector
from dalr_stream.report.records.results import (
    DomainActivity,
    ErrorCurve,
    HeadlineRow,
    LayerResults,
    Results,
    RetentionCurve,
    ScoreCurve,
    ScorePoint,
    Spectra,
)
from dalr_stream.report.records.scale import ACCURACY, Scale
from dalr_stream.report.records.stability import Stability
from dalr_stream.storage.records.solutions import Solution
from dalr_stream.storage.schema import HELDOUT
from dalr_stream.workflow.results.published_file import Published
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps import compress, evaluate, finetune, solve
from dalr_stream.workflow.steps.evaluate import Evaluation
from dalr_stream.workflow.steps.finetune import FineTuned
from dalr_stream.workflow.steps.profile import profile_problem, read_profile
from dalr_stream.workflow.steps.provenance import provenance
from dalr_stream.workflow.steps.sizes.compression import Compression
from dalr_stream.workflow.steps.stability import read_stability

NO_PROFILE = "no timings are shown: their record is damaged, run profile again"


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


def results(project: Project) -> Results:
    """Return everything a run found out, as the report shows it.

    Raises FingerprintMismatchError where a record was made by other settings than the project's.
    """
    section, store = project.evaluate_section, StoreView.open(project.store)
    evaluation = Evaluation.read(project.evaluation, evaluate.made_from(project))
    stability = read_stability(project.stability, solve.made_from(project))
    saved: tuple[str, ...] = ()
    if project.config.compress.wanted:
        saved = Compression.read(project.compression, compress.made_from(project)).said
    tuned: tuple[str, ...] = ()
    if project.config.finetune is not None:
        tuned = (str(FineTuned.read(project.finetuning, finetune.made_from(project))),)
    untimed = (NO_PROFILE,) if profile_problem(project) else ()
    layers, decided = list[LayerResults](), list[str]()
    for layer in project.layers:  # one at a time: what was found of a layer holds its moments
        findings = dataclasses.replace(_findings(project, store, layer, evaluation), stability=stability[layer])
        layers.append(layer_results(findings, evaluation.baseline, section.drop, section.scale))
        decided += decisions([findings])
    whole = Results(
        name=project.config.run.name,
        provenance=provenance(project.config, store),
        metric=section.metric_words,
        scale=section.scale,
        baseline_score=evaluation.baseline,
        layers=tuple(layers),
        sizes=evaluation.sizes,
        decisions=(*evaluation.left_out, *decided, *saved, *tuned, *untimed),
        caveats=project.config.run.caveats,
        profile=read_profile(project),
    )
    published = project.config.report.published
    if published is None:
        return whole
    return dataclasses.replace(whole, published=Published.read(project.folder / published).beside(whole))


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


def _findings(project: Project, store: StoreView, layer: str, evaluation: Evaluation) -> LayerFindings:
    section, methods = project.config.solve, project.methods(store, layer)
    return LayerFindings(
        name=layer,
        shape=store.shape(layer),
        next_layer=_in_words(store.readers(layer)),
        unprunable=store.record(layer).unprunable,
        domains={domain: _row_counts(store, domain, layer) for domain in project.config.domains},
        training=store.inputs(section.target, layer),
        heldout=store.inputs_heldout(section.target, section.heldout, layer),
        notes={method: store.notes(layer, method) for method in methods},
        solutions=OnDemand(methods, lambda method: store.solutions(layer, [method])[method]),
        curves=evaluation.curves[layer],
        finetuned=evaluation.finetuned.get(layer, ()),
    )


def _row_counts(store: StoreView, domain: str, layer: str) -> RowCounts:
    """Count training and held-out rows together: no matrix is added up for it."""
    parts = [store.inputs(domain, layer), moments_of([store.moments(domain, p, HELDOUT) for p in store.parts(layer)])]
    return RowCounts(sum(part.count for part in parts), np.sum([part.nonzero for part in parts], axis=0))


def _in_words(readers: Sequence[ChannelReader]) -> str | None:
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
