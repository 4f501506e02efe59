"""The evaluate step: the saved networks, other methods beside them, and each layer by itself, on the test split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.network.measure.macs import watched_calls
from dalr_stream.network.surgery.compress import parameter_bytes, parameter_count
from dalr_stream.numerics.methods import Method
from dalr_stream.report.records.results import COMPARED, NetworkSize, ScoreCurve, ScorePoint
from dalr_stream.storage.durable import remove_folder
from dalr_stream.storage.json_record import RecordKind, digest_of
from dalr_stream.workflow.runfile.labelled_sections import EvaluateSection
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps import compress, finetune, solve
from dalr_stream.workflow.steps.blocks.networks import loaded, scored, scores_by_blocks
from dalr_stream.workflow.steps.blocks.score_by_blocks import score_by_blocks
from dalr_stream.workflow.steps.capture import require_same_network
from dalr_stream.workflow.steps.fingerprints import labelled_print
from dalr_stream.workflow.steps.scores.finetuned_scores import FinetunedScores
from dalr_stream.workflow.steps.scores.scoring import Curves, Evaluator, KeptScores, Score, Scoring, score_on
from dalr_stream.workflow.steps.session import Session
from dalr_stream.workflow.steps.sizes.by_method import by_method
from dalr_stream.workflow.steps.sizes.compression import Compression
from dalr_stream.workflow.steps.step import Step, json_record, read_stamped, write_stamped

NAME = "evaluate"
EVALUATION = RecordKind("evaluation", 2, "run evaluate")


def steps(session: Session) -> Iterator[Step]:
    """Yield the step."""
    project = session.project
    saved = {compress.NAME: project.config.compress.wanted, finetune.NAME: project.config.finetune is not None}
    needs = () if project.config.sweeps else (solve.NAME,)
    yield Step(
        NAME,
        NAME,
        (*needs, *(name for name, wanted in saved.items() if wanted)),
        lambda: made_from(project),
        lambda: [json_record(project.evaluation, EVALUATION)],
        lambda stamp: _evaluate(session, stamp),
        lambda: _check(project),
    )


def made_from(project: Project) -> str:
    """Return the fingerprint of all scores."""
    labelled = labelled_print(project, project.config.evaluate)
    return digest_of([finetune.made_from(project), labelled, project.config.run.seed])


def measure(label: str, model: nn.Module, score: Score) -> NetworkSize:
    """Return what a network weighs, how well it does, and what its layers computed for that, a sample."""
    with watched_calls(model) as calls:
        value = score(model)
    macs = {name: count / calls.samples for name, count in calls.macs.items() if calls.samples}
    return NetworkSize(label, parameter_count(model), parameter_bytes(model), value, macs)


def _measured(session: Session, label: str, model: nn.Module, score: Scoring, fingerprint: str) -> NetworkSize:
    """Return the same, block by block where the network runs so and the metric lets it."""
    by_blocks = scores_by_blocks(session.project)
    found = score_by_blocks(session, label, model, score, fingerprint) if by_blocks else None
    if found is None:
        return measure(label, model, score)
    return NetworkSize(label, parameter_count(model), parameter_bytes(model), found.value, found.macs)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What evaluation found out, as it is kept between the steps."""

    metric: str
    baseline: float
    """Score of the uncompressed network."""
    curves: Curves
    sizes: tuple[NetworkSize, ...]
    """The uncompressed network, those the run saves (the compressed one, and the same fine-tuned), those compared."""
    left_out: tuple[str, ...] = ()
    """Which layers that were asked for cannot be compressed, and why."""
    finetuned: Curves = field(default_factory=dict)
    """The same curves once each network was fine-tuned; empty where none was."""

    def write(self, path: Path, fingerprint: str) -> None:
        """Write the record."""
        write_stamped(path, EVALUATION, fingerprint, asdict(self))

    @classmethod
    def read(cls, path: Path, fingerprint: str | None = None) -> Evaluation:
        """Read what `write` wrote; raises FingerprintMismatchError where it was made from something else."""
        plain = read_stamped(path, EVALUATION, fingerprint)
        curves, finetuned = (
            {
                layer: tuple(ScoreCurve(c["method"], tuple(ScorePoint(**p) for p in c["points"])) for c in layers)
                for layer, layers in plain[key].items()
            }
            for key in ("curves", "finetuned")
        )
        sizes = tuple(NetworkSize(**size) for size in plain["sizes"])
        return cls(plain["metric"], plain["baseline"], curves, sizes, tuple(plain["left_out"]), finetuned)


def _check(project: Project) -> None:
    if not project.config.compress.wanted:  # whose own check looks at the same
        compress.require_replaceable(project, project.recorded_stand_in())
    section = project.config.evaluate
    if section is not None and section.metric != "accuracy":
        project.code.metric(NAME, section)


def _evaluate(session: Session, fingerprint: str) -> None:
    project = session.project
    section, store = project.evaluate_section, StoreView.open(project.store)
    require_same_network(project, store)
    score = score_on(project, NAME, section)
    scores = KeptScores(project.unfinished / f"evaluate-{fingerprint[:16]}.json")
    if scores:
        session.progress.note(f"evaluate: resuming after {len(scores)} networks")
    with project.code.importing():
        networks = _networks(project).items()
        sizes = [_measured(session, label, model, score, fingerprint) for label, model in networks]
        sizes += _compared(session, store, section, score, scores)
        curves, finetuned = _curves(session, store, section, score, scores)
    baseline = float(sizes[0].score or 0.0)
    evaluation = Evaluation(section.metric, baseline, curves, tuple(sizes), project.unsupported_layers, finetuned)
    evaluation.write(project.evaluation, fingerprint)
    remove_folder(project.unfinished)


def _networks(project: Project) -> dict[str, nn.Module]:
    """Return the uncompressed network, and those that the run saves, by what they are called in the report."""
    networks = {"uncompressed": scored(project)}
    for label, folder in {"compressed": project.compressed, "fine-tuned": project.finetuned}.items():
        if folder in project.saved:
            compression = Compression.read(project.compression, compress.made_from(project))
            networks[f"{label}: {compression}"] = loaded(project, folder)
    return networks


def _compared(
    session: Session, store: StoreView, section: EvaluateSection, score: Scoring, scores: KeptScores
) -> list[NetworkSize]:
    """Measure the network compressed by each method that is compared; resumes after the last of them."""
    project, found = session.project, list[NetworkSize]()

    def measured(method: Method) -> dict[str, Any]:
        small, compression = by_method(project, store, method, session.progress)
        return asdict(measure(f"{COMPARED}{compression}", small, score))

    if section.compare:
        with session.progress.track("evaluate: methods compared", len(section.compare), "methods") as advance:
            for method in section.compare:
                kept = scores.once(f"compared {method.value}", partial(measured, method))
                found.append(NetworkSize(**kept))
                advance(1)
    return found


def _curves(
    session: Session, store: StoreView, section: EvaluateSection, score: Scoring, scores: KeptScores
) -> tuple[Curves, Curves]:
    """Score every network, and once more fine-tuned where asked for; resumes after the last that was scored."""
    project = session.project
    if scores_by_blocks(project):
        return dict.fromkeys(project.layers, ()), {}
    methods = {layer: project.methods(store, layer) if section.ranks else () for layer in project.layers}
    evaluator = Evaluator.of(project, section, score, session.progress)
    plain = evaluator.curves(store, methods, scores)
    if not section.finetune:
        return plain, {}
    training = project.finetune_section
    batches = project.code.loader("finetune", training)
    finetuned = FinetunedScores(evaluator, batches, finetune.options_of(project, training))
    return plain, evaluator.curves(store, methods, scores, tuned=finetuned.from_layer)
