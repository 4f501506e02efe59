"""Fills the report's record from a store's moments and solutions and from what evaluation found."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from dalr_stream.engine.layer_moments import OnDemand
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.numerics.statistics.grouped import moments_of
from dalr_stream.report.records.results import (
    LayerResults,
    Results,
)
from dalr_stream.storage.schema import HELDOUT
from dalr_stream.workflow.results.published_file import Published
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps import compress, evaluate, finetune, solve
from dalr_stream.workflow.steps.blocks.sweep import swept_results
from dalr_stream.workflow.steps.evaluate import Evaluation
from dalr_stream.workflow.steps.finetune import FineTuned
from dalr_stream.workflow.steps.profile import profile_problem, read_profile
from dalr_stream.workflow.steps.provenance import provenance
from dalr_stream.workflow.steps.sizes.compression import Compression
from dalr_stream.workflow.steps.solving.findings import (
    LayerFindings,
    RowCounts,
    decisions,
    layer_results,
    readers_in_words,
)
from dalr_stream.workflow.steps.solving.stability import read_stability

NO_PROFILE = "no timings are shown: their record is damaged, run profile again"


def results(project: Project) -> Results:
    """Return everything a run found out, as the report shows it.

    Raises FingerprintMismatchError where a record was made by other settings than the project's.
    """
    section, store = project.evaluate_section, StoreView.open(project.store)
    evaluation = Evaluation.read(project.evaluation, evaluate.made_from(project))
    saved: tuple[str, ...] = ()
    if project.config.compress.wanted:
        saved = Compression.read(project.compression, compress.made_from(project)).said
    tuned: tuple[str, ...] = ()
    if project.config.finetune is not None:
        tuned = (str(FineTuned.read(project.finetuning, finetune.made_from(project))),)
    untimed = (NO_PROFILE,) if profile_problem(project) else ()
    layers, decided = list[LayerResults](), list[str]()
    for layer, words in _swept(project) if project.config.sweeps else _solved(project, store, evaluation):
        layers.append(layer)
        decided += words
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


def _solved(project: Project, store: StoreView, evaluation: Evaluation) -> Iterator[tuple[LayerResults, list[str]]]:
    """Yield what the report shows of each layer, and what was decided: one at a time, as findings hold moments."""
    section, stability = project.evaluate_section, read_stability(project.stability, solve.made_from(project))
    for layer in project.layers:
        findings = dataclasses.replace(_findings(project, store, layer, evaluation), stability=stability[layer])
        shown = layer_results(findings, evaluation.baseline, section.drop, section.scale)
        yield shown, list(decisions([findings]))


def _swept(project: Project) -> Iterator[tuple[LayerResults, list[str]]]:
    """Yield the same where no moments were kept."""
    return swept_results(project, compress.made_from(project))


def _findings(project: Project, store: StoreView, layer: str, evaluation: Evaluation) -> LayerFindings:
    section, methods = project.config.solve, project.methods(store, layer)
    return LayerFindings(
        name=layer,
        shape=store.shape(layer),
        next_layer=readers_in_words(store.readers(layer)),
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
