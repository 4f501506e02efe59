"""The compress step where no moments are kept: each block is accumulated, solved, compressed and written in one sweep.

    for each block    every batch goes through it, its layers' moments are kept
        each layer    is solved by every method, what the report shows of it is kept, and what takes its place is cut
        the block     is written; its moments are removed when the next one is asked for

So there is no accumulate and no solve step, and the store is empty in the end. What is kept of a layer are its curves,
at every rank and size; another size is another sweep.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dalr_stream._version import __version__
from dalr_stream.engine.blocks.accumulate import disk_of
from dalr_stream.engine.blocks.by_block import statistics_by_block
from dalr_stream.engine.layer_moments import OnDemand
from dalr_stream.engine.solve import solve_low_rank, solve_selection
from dalr_stream.engine.statistics import Statistics
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import ConfigError, FingerprintMismatchError, StoreDamagedError, StoreNotFoundError
from dalr_stream.network.blocks.compress_into import Given, compress_into
from dalr_stream.network.saved import checkpoint
from dalr_stream.network.saved.shard_writer import working_folder
from dalr_stream.network.surgery.compress import parameter_count
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.lowrank.grouped import Factors
from dalr_stream.numerics.lowrank.ridge import DEFAULT_RIDGE, Ridge
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.selection.nodes import ChannelSelection
from dalr_stream.report.records.results import LayerResults, layer_of_plain
from dalr_stream.storage.durable import remove_folder
from dalr_stream.storage.json_record import RecordKind, digest_of
from dalr_stream.storage.records.solutions import Solution
from dalr_stream.storage.removal import forget_domain, forget_moments
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps import accumulate, capture
from dalr_stream.workflow.steps.compress_by_blocks import cut, size_of
from dalr_stream.workflow.steps.findings import LayerFindings, RowCounts, decisions, layer_results, readers_in_words
from dalr_stream.workflow.steps.named_sizes import named_layers, require_solved
from dalr_stream.workflow.steps.provenance import saved_provenance
from dalr_stream.workflow.steps.session import Session
from dalr_stream.workflow.steps.sizes.compression import Compression, LayerSize
from dalr_stream.workflow.steps.sizes.sizing import size_by_rule
from dalr_stream.workflow.steps.step import read_stamped, saved_network, write_stamped

SWEPT = RecordKind("swept layers", 1, "run compress")
_BEGUN = RecordKind("sweep that was begun", 1, "run compress")
_LAYER = RecordKind("swept layer", 1, "run compress")
Solved = Factors | ChannelSelection
_ABSENT = (StoreNotFoundError, StoreDamagedError, FingerprintMismatchError)


def made_from(project: Project) -> str:
    """Return the fingerprint of what a sweep leaves: the rows, how they become moments, and what is made of these."""
    config = project.config
    settings = [config.solve.model_dump(mode="json"), config.plain()["compress"], __version__]
    return digest_of([accumulate.made_from(project, config.solve.target), *settings])


def swept_layers(project: Project, fingerprint: str) -> Iterator[tuple[LayerResults, list[str]]]:
    """Yield what the report shows of each layer, and what was decided; raises where another sweep left it."""
    drop = project.evaluate_section.drop
    for plain in read_stamped(project.swept, SWEPT, fingerprint):
        yield dataclasses.replace(layer_of_plain(plain["results"]), drop=drop), plain["decisions"]


def sweep(session: Session, fingerprint: str) -> None:
    """Go from the weights to the compressed network; killed, the same command goes on in that block."""
    project = session.project
    capture.require_own_store(session)
    disk_of(project.store, session.ranks)
    swept = _Sweep(project, project.prospect(project.recorded), fingerprint)
    for layer in swept.layers:
        swept.method(layer)
    _require_nothing_kept(session)
    _begin(session, fingerprint)
    if not swept.written:
        _write(session, swept)
    _finish(session, swept)


def _require_nothing_kept(session: Session) -> None:
    """Raise ConfigError where the store has moments of the domain that were to be kept; --fresh removes them."""
    project, target = session.project, session.project.config.solve.target
    try:
        domains = StoreView.open(project.store).manifest.domains
    except StoreNotFoundError:
        return
    if target in domains and not session.fresh:
        raise ConfigError(
            f"accumulate.keep_moments: is false, and '{project.store}' has moments of '{target}' that were to be kept: "
            "compress from them, --set accumulate.keep_moments=true, pass --fresh to remove them, or choose another "
            "run.output"
        )


def _begin(session: Session, fingerprint: str) -> None:
    """Remove what a sweep of other settings left where it was stopped; that of these settings goes on."""
    project, target = session.project, session.project.config.solve.target
    begun = project.unfinished / "sweep.json"
    try:
        read_stamped(begun, _BEGUN, fingerprint)
    except _ABSENT:
        stopped = False
    else:
        stopped = not session.fresh
    if not stopped:
        remove_folder(project.unfinished)  # first: until the new sweep has begun, there is none to go on with
        remove_folder(working_folder(project.compressed))
        forget_domain(project.store, target)
        forget_moments(project.store, target)
        write_stamped(begun, _BEGUN, fingerprint, {})


def _write(session: Session, swept: _Sweep) -> None:
    project, target = session.project, session.project.config.solve.target
    with project.code.importing(), capture.naming_fresh():
        opened = statistics_by_block(
            project.recorded,
            project.code.batches(target),
            project.watched,
            store=project.store,
            domain=target,
            blocks=project.config.network.blocks or True,
            rows=project.code.rows,
            folding=project.folding(target),
            progress=session.progress,
        )
        with opened as statistics:
            checkpoint.remove_remnant(project.compressed)
            compress_into(
                project.recorded,
                {layer: partial(swept.replacement, statistics, layer) for layer in swept.layers},
                project.compressed,
                example=project.code.first_batch,
                provenance=lambda: swept.provenance,
                made_from=swept.fingerprint,
                progress=session.progress,
            )


def _finish(session: Session, swept: _Sweep) -> None:
    """Keep what was found of the layers, and how the network is compressed; what the sweep worked with goes last."""
    project, note, compression = session.project, session.progress.note, swept.compression
    write_stamped(project.swept, SWEPT, swept.fingerprint, [swept.kept(layer) for layer in swept.layers])
    compression.write(project.compression, swept.fingerprint)
    forget_moments(project.store, project.config.solve.target)
    remove_folder(working_folder(project.compressed))
    remove_folder(project.unfinished)
    before, after = parameter_count(project.recorded), checkpoint.parameters(project.compressed)
    note(f"compress: {compression.rule}: {compression}")
    for warning in compression.notes:
        note(f"warning: {warning}")
    note(f"compress: {before:,} -> {after:,} parameters ({after / before:.1%}), in '{project.compressed}'")


@dataclass(frozen=True, slots=True)
class _Sweep:
    """The layers of one sweep; what is known of each is on disk before its replacement is given."""

    project: Project
    view: StoreView
    """The layers and their shapes; it has no moments."""
    fingerprint: str

    @property
    def layers(self) -> tuple[str, ...]:
        """To compress."""
        return self.project.layers_in(self.view)

    @property
    def written(self) -> bool:
        """Whether the network is in its place, and all is known of its layers: what is left is to keep that."""
        try:
            for layer in self.layers:
                self.kept(layer)
        except _ABSENT:
            return False
        return saved_network(self.project.compressed).problem(self.fingerprint) is None

    @property
    def provenance(self) -> dict[str, Any]:
        """Of the saved network, once all layers are known."""
        return saved_provenance(self.project.config, self.view, self.compression, self.fingerprint)

    @property
    def compression(self) -> Compression:
        """How the network is compressed, once all layers are known."""
        section, sizes, notes = self.project.config.compress, dict[str, LayerSize](), list[str]()
        for layer in self.layers:
            known = self.kept(layer)
            notes += known["warned"]
            if known["size"] is not None:
                sizes[layer] = LayerSize(Method(known["method"]), known["size"])
        rule = "as named" if section.rule is None else section.in_words
        return Compression(rule, sizes, tuple(dict.fromkeys(notes)), asked=len(self.layers))

    def kept(self, layer: str) -> Any:
        """Return what is known of a layer."""
        return read_stamped(self._path(layer), _LAYER, self.fingerprint)

    def method(self, layer: str) -> Method | None:
        """Return by which method a layer is compressed, None where it stays as it is; raises ConfigError."""
        config = self.project.config
        if config.compress.rule is not None:
            chosen = config.compress_method
        else:
            named = named_layers(self.project, self.layers)
            if layer not in named:
                return None
            chosen = named[layer].method
        require_solved(self.project, self.view, layer, chosen)
        return chosen

    def replacement(self, statistics: Statistics, layer: str) -> Given | None:
        """Solve a layer, keep what the report shows of it, and return what takes its place; None for itself."""
        problem, chosen = statistics[layer], self.method(layer)
        solutions: dict[Method, Solved] = {}
        notes: dict[Method, tuple[str, ...]] = {}

        def solved(method: Method) -> Solution:
            solution = self._solved(problem, method)
            parts = (solution,) if isinstance(solution, ChannelSelection) else solution.parts
            notes[method] = tuple(dict.fromkeys(note for part in parts for note in part.diagnostics.notes))
            if method is chosen:
                solutions[method] = solution
            return solution

        findings = self._findings(layer, problem, OnDemand(self.project.methods(self.view, layer), solved))
        shown = layer_results(findings, 0.0, 0.0)  # the report has the drop that is allowed by then
        record, warned = (None, []) if chosen is None else self._cut(layer, solutions[chosen], problem)
        known = {
            "results": dataclasses.asdict(shown),
            "decisions": list(decisions([dataclasses.replace(findings, notes=notes)])),
            "method": None if record is None or chosen is None else chosen.value,
            "size": None if record is None else size_of(record),
            "warned": warned,
        }
        write_stamped(self._path(layer), _LAYER, self.fingerprint, known)
        return record

    def _solved(self, problem: Layer, method: Method) -> Solved:
        section = self.project.config.solve
        if method.family is Family.SELECTION:
            return solve_selection(problem, method, section.strength)
        rule = section.ridge_for(method)
        return solve_low_rank(problem, method, rule if isinstance(rule, Ridge) else DEFAULT_RIDGE, DEFAULT_RIDGE)

    def _cut(self, layer: str, solution: Solved, problem: Layer) -> tuple[Given | None, list[str]]:
        """Return what takes a layer's place, None where the rule leaves it, and what was warned of on the way."""
        config = self.project.config
        size: float | None
        if config.compress.rule is None:
            choice = named_layers(self.project, self.layers)[layer]
            size = choice.size if choice.size is not None else float(choice.retention or 1.0)
        else:
            size = size_by_rule(config.compress, layer, solution, self.view.shape(layer), problem)
        return (None, []) if size is None else cut(layer, solution, size, config.solve.restore_ridge)

    def _findings(self, layer: str, problem: Layer, solutions: OnDemand[Method, Solution]) -> LayerFindings:
        training, heldout = problem.known_inputs, problem.heldout
        parts = [training] if heldout is None else [training, heldout]
        counts = RowCounts(sum(part.count for part in parts), np.sum([part.nonzero for part in parts], axis=0))
        return LayerFindings(
            name=layer,
            shape=self.view.shape(layer),
            next_layer=readers_in_words(self.view.readers(layer)),
            unprunable=self.view.record(layer).unprunable,
            domains={self.project.config.solve.target: counts},
            training=training,
            heldout=heldout,
            solutions=solutions,
            notes={},
            curves=(),
        )

    def _path(self, layer: str) -> Path:
        return self.project.unfinished / "layers" / f"{layer}.json"
