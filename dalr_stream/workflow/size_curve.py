"""The whole network at several budgets, each compressed as [compress] would, measured, and scored where asked for.

Each budget has a folder of its own in the run's output, so the same command resumes after the last that is whole, and
each network can be loaded:

    sizes/params-30/network           as `compress` saves it
    sizes/params-30/compression.json
    sizes/scores.json                 what was scored, by what the network was made from
    sizes/sizes.csv|json|png          all of them, see `report.size_curve`
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence

from torch import nn

from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.network.capture.batches import call, samples_in
from dalr_stream.network.capture.loaders import length_of
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.saved import checkpoint
from dalr_stream.network.surgery.compress import parameter_bytes, parameter_count
from dalr_stream.progress import seconds_in_words
from dalr_stream.report.records.scale import ACCURACY
from dalr_stream.report.size_curve import STEM, SizeCurve, SizedNetwork
from dalr_stream.storage.json_record import digest_of
from dalr_stream.workflow.runfile.compress_section import Order
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps import compress, solve
from dalr_stream.workflow.steps.fingerprints import labelled_print
from dalr_stream.workflow.steps.scores.scoring import KeptScores, score_on
from dalr_stream.workflow.steps.session import Session
from dalr_stream.workflow.steps.sizes.budget import networks_at_most, turned_at_most
from dalr_stream.workflow.steps.sizes.compression import UNITS, Compression
from dalr_stream.workflow.steps.unseen import Unseen, output_distance

FOLDER = "sizes"
FILES = frozenset({"network", "scores.json", *(f"{STEM}.{kind}" for kind in ("csv", "json", "png"))})
"""What is written there beside what a run leaves in its own folder."""


def at_share(project: Project, rule: str, share: str) -> Project:
    """Return the same project with another rule in [compress]; what that leaves goes to a folder of its own."""
    other = copy.copy(project)
    other.config = project.config.with_sizes({rule: share})
    folder = project.output / FOLDER / f"{rule}-{100 * other.config.compress.share:g}"
    other.compressed, other.compression = folder / "network", folder / "compression.json"
    other.sequence, other.pass_moments = folder / "sequence", project.output / FOLDER / "passes"
    other.measuring = folder / "measuring"
    return other


def size_curve(session: Session, rule: str, shares: Sequence[str], *, evaluate: bool) -> SizeCurve:
    """Compress to each budget, measure and score the networks, write the record and return it.

    Without shares it is about the one network that [compress] describes, which was saved already.
    """
    project = session.project
    _ = project.network, project.structure, project.code.first_batch  # once for all budgets
    by_share = {one.config.compress.share: one for one in (at_share(project, rule, share) for share in shares)}
    sized = [by_share[share] for share in sorted(by_share)] or [project]
    session.progress.note(_plan(project, sized, evaluate=evaluate))
    measured = _Measured(project, evaluate=evaluate)
    networks = [measured("uncompressed", project.network, fingerprint=solve.made_from(project))]
    with session.progress.track("compress: budgets", len(sized), "budgets") as advance:
        for one in sized:
            own = Session(one, session.progress, fresh=session.fresh)
            networks.append(_at(own, measured, saved=one is project))
            advance(1)
    section = project.config.compress
    curve = SizeCurve(
        project.config.run.name,
        networks[0],
        tuple(networks[1:]),
        UNITS[section.distance],
        measured.distance.samples,
        measured.measured_on,
        project.evaluate_section.metric_words if evaluate else None,
        project.evaluate_section.scale if evaluate else ACCURACY,
    )
    curve.write(project.output / FOLDER)
    return curve


class _Measured:
    """Measures networks: called with one, what it weighs, how close it is to the original, and its score."""

    def __init__(self, project: Project, *, evaluate: bool) -> None:
        code = project.code
        with code.importing():
            self.distance, self.measured_on = output_distance(project)
            self._score = score_on(project, "evaluate", project.evaluate_section) if evaluate else None
        self._code, self._scores = code, KeptScores(project.output / FOLDER / "scores.json")
        self._labelled = [labelled_print(project, project.config.evaluate), project.config.run.seed]

    def __call__(
        self, label: str, network: nn.Module, *, fingerprint: str, sizes: str = "", folder: str = ""
    ) -> SizedNetwork:
        with self._code.importing():
            score = self._score
            scored = None if score is None else self._once(fingerprint, lambda: score(network))
            distance = self.distance(network)
        return SizedNetwork(label, parameter_count(network), parameter_bytes(network), distance, scored, sizes, folder)

    def _once(self, fingerprint: str, score: Callable[[], float]) -> float:
        return self._scores.once(digest_of([fingerprint, self._labelled]), score)


def _at(session: Session, measured: _Measured, *, saved: bool) -> SizedNetwork:
    """Return one network, compressed and saved unless a whole one of these settings is there."""
    project = session.project
    (step,) = compress.steps(session)
    fingerprint = step.made_from()
    if not saved and (session.fresh or any(step.problems(fingerprint))):
        step.do(fingerprint)
    compression = Compression.read(project.compression, fingerprint)
    network = checkpoint.load(project.compressed, project.code.placed)
    return measured(
        compression.rule, network, fingerprint=fingerprint, sizes=str(compression), folder=str(project.compressed)
    )


def _plan(project: Project, sized: Sequence[Project], *, evaluate: bool) -> str:
    """Say how many networks and passes it will be, and about how long, before anything long."""
    store, parts = StoreView.open(project.store), []
    first, budgets = sized[0], len(sized)
    section, anew = first.config.compress, first is not project
    passes = float((1 + budgets) * section.samples)
    if section.within_budget and anew:
        tried = networks_at_most(first, store)
        passes += budgets * tried * section.samples
        measured_on = f"{section.samples:,} {Unseen.deciding(first.config)}"
        parts.append(f"each the best of at most {tried:,} networks, measured on {measured_on}")
    if section.order is Order.SEQUENTIAL and anew:
        turned = 1 + turned_at_most(first, store)
        networks = f"{turned} networks each, " if turned > 1 else ""
        parts.append(f"layer after layer: {networks}up to {len(project.layers)} passes over the data for each")
    if evaluate:
        passes += (1 + budgets) * _samples_to_score(project)
        parts.append(f"{1 + budgets} networks scored on the batches of [evaluate]")
    seconds = passes * _seconds_a_sample(project)
    parts.append(f"about {seconds_in_words(seconds)} of forward passes")
    return f"compress: {budgets} {'network' if budgets == 1 else 'networks'} to compare: {'; '.join(parts)}"


def _samples_to_score(project: Project) -> int:
    """Return about how many samples [evaluate] has: as many a batch as the first batch of the target."""
    with project.code.importing():
        batches = project.code.loader("evaluate", project.evaluate_section)
    return (length_of(batches) or 0) * samples_in(project.code.first_batch)


def _seconds_a_sample(project: Project) -> float:
    """Return what a forward pass of the uncompressed network takes, on the first batch; the second of two counts."""
    batch, seconds = project.code.first_batch, 0.0
    for _ in range(2):
        begun = time.perf_counter()
        with without_gradients():
            call(project.network, batch)
        seconds = time.perf_counter() - begun
    return seconds / max(samples_in(batch), 1)
