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

from dalr_stream._version import __version__
from dalr_stream.engine.blocks.by_block import statistics_by_block
from dalr_stream.engine.layer_moments import OnDemand
from dalr_stream.engine.solve import solve_low_rank, solve_selection
from dalr_stream.engine.statistics import Statistics
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.network.blocks.compress_into import Given, compress_into
from dalr_stream.network.saved import checkpoint
from dalr_stream.network.saved.shard_writer import working_folder
from dalr_stream.network.surgery.compress import Replacement, parameter_count
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.lowrank.ridge import DEFAULT_RIDGE, Ridge
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.selection.nodes import SelectedNodes
from dalr_stream.report.records.results import LayerResults, layer_of_plain
from dalr_stream.storage.durable import remove_folder
from dalr_stream.storage.json_record import RecordKind, digest_of
from dalr_stream.storage.records.solutions import Solution
from dalr_stream.storage.removal import forget_domain, forget_moments
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps import accumulate, capture
from dalr_stream.workflow.steps.findings import LayerFindings, RowCounts, decisions, layer_results, readers_in_words
from dalr_stream.workflow.steps.named_sizes import named_layers, replacements
from dalr_stream.workflow.steps.provenance import saved_provenance
from dalr_stream.workflow.steps.session import Session
from dalr_stream.workflow.steps.sizes.compression import Compression, LayerSize
from dalr_stream.workflow.steps.sizes.sizing import size_by_rule
from dalr_stream.workflow.steps.step import read_stamped, write_stamped

SWEPT = RecordKind("swept layers", 1, "run compress")
FILE = "layers.json"
_LAYER = RecordKind("swept layer", 1, "run compress")


def made_from(project: Project) -> str:
    """Return the fingerprint of what a sweep leaves: the rows, how they become moments, and what is made of these."""
    config = project.config
    settings = [config.solve.model_dump(mode="json"), config.plain()["compress"], __version__]
    return digest_of([accumulate.made_from(project, config.solve.target), *settings])


def swept_layers(project: Project, fingerprint: str) -> Iterator[tuple[LayerResults, list[str]]]:
    """Yield what the report shows of each layer, and what was decided; raises where another sweep left it."""
    for plain in read_stamped(project.output / FILE, SWEPT, fingerprint):
        yield layer_of_plain(plain["results"]), plain["decisions"]


def sweep(session: Session, fingerprint: str) -> None:
    """Go from the weights to the compressed network; killed, the same command goes on in that block."""
    project, progress, target = session.project, session.progress, session.project.config.solve.target
    capture.require_own_store(session)
    if session.fresh:
        forget_domain(project.store, target)
        forget_moments(project.store, target)
        remove_folder(working_folder(project.compressed))
    view = project.prospect(project.recorded)
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
            progress=progress,
        )
        with opened as statistics:
            swept = _Sweep(project, view, statistics, fingerprint)
            checkpoint.remove_remnant(project.compressed)
            compress_into(
                project.recorded,
                {layer: partial(swept.replacement, layer) for layer in swept.layers},
                project.compressed,
                example=project.code.first_batch,
                provenance=lambda: swept.provenance,
                made_from=fingerprint,
                progress=progress,
            )
            _finish(session, swept)


def _finish(session: Session, swept: _Sweep) -> None:
    """Keep what was found of the layers, and how the network is compressed."""
    project, note = session.project, session.progress.note
    write_stamped(project.output / FILE, SWEPT, swept.fingerprint, [swept.kept(layer) for layer in swept.layers])
    compression = swept.compression
    for warning in compression.notes:
        note(f"warning: {warning}")
    compression.write(project.compression, swept.fingerprint)
    remove_folder(project.unfinished)
    before, after = parameter_count(project.recorded), checkpoint.parameters(project.compressed)
    note(f"compress: {compression.rule}: {compression}")
    note(f"compress: {before:,} -> {after:,} parameters ({after / before:.1%}), in '{project.compressed}'")


@dataclass
class _Sweep:
    """The layers of one sweep; what is known of each is on disk before its replacement is given."""

    project: Project
    view: StoreView
    """The layers and their shapes; it has no moments."""
    statistics: Statistics
    fingerprint: str

    @property
    def provenance(self) -> dict[str, Any]:
        """Of the saved network, once all layers are known."""
        return saved_provenance(self.project.config, self.view, self.compression, self.fingerprint)

    @property
    def layers(self) -> tuple[str, ...]:
        """To compress."""
        return self.project.layers_in(self.view)

    @property
    def compression(self) -> Compression:
        """How the network is compressed: of the layers that are known."""
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

    def replacement(self, layer: str) -> Given | None:
        """Solve a layer, keep what the report shows of it, and return what takes its place; None for itself."""
        problem, chosen, solutions, notes = self.statistics[layer], self._method(layer), {}, {}

        def solved(method: Method) -> Solution:
            solution = self._solved(problem, method)
            notes[method] = tuple(dict.fromkeys(note for part in solution.parts for note in part.diagnostics.notes))
            if method is chosen:
                solutions[method] = solution
            return solution

        findings = self._findings(layer, problem, OnDemand(self.project.methods(self.view, layer), solved))
        section = self.project.config.evaluate
        shown = layer_results(findings, 0.0, 0.01 if section is None else section.drop)
        record, warned = (None, []) if chosen is None else self._cut(layer, solutions[chosen], problem)
        findings = dataclasses.replace(findings, notes=notes)
        known = {
            "results": dataclasses.asdict(shown),
            "decisions": list(decisions([findings])),
            "method": None if record is None or chosen is None else chosen.value,
            "size": None if record is None else _size_of(record),
            "warned": warned,
        }
        write_stamped(self._path(layer), _LAYER, self.fingerprint, known)
        return record

    def _method(self, layer: str) -> Method | None:
        """Return by which method a layer is compressed; None where it stays as it is."""
        config = self.project.config
        if config.compress.rule is not None:
            return config.compress_method
        named = named_layers(self.project, self.layers)
        return named[layer].method if layer in named else None

    def _solved(self, problem: Layer, method: Method) -> Solution:
        section = self.project.config.solve
        if method.family is Family.SELECTION:
            return solve_selection(problem, method, section.strength)
        rule = section.ridge_for(method)
        return solve_low_rank(problem, method, rule if isinstance(rule, Ridge) else DEFAULT_RIDGE, DEFAULT_RIDGE)

    def _cut(self, layer: str, solution: Solution, problem: Layer) -> tuple[Replacement | None, list[str]]:
        """Return what takes a layer's place, None where the rule leaves it, and what was warned of on the way."""
        config = self.project.config
        if config.compress.rule is None:
            choice = named_layers(self.project, self.layers)[layer]
            size: float | None = choice.size if choice.size is not None else float(choice.retention or 1.0)
        else:
            size = size_by_rule(config.compress, layer, solution, self.view.shape(layer), problem)
        if size is None:
            return None, []
        replaced, warned = replacements({layer: solution}, {layer: size}, config.solve.restore_ridge)
        return replaced[layer], warned

    def _findings(self, layer: str, problem: Layer, solutions: OnDemand[Method, Solution]) -> LayerFindings:
        training, heldout = problem.known_inputs, problem.heldout
        parts = [training] if heldout is None else [training, heldout]
        counts = RowCounts(sum(part.count for part in parts), sum(part.nonzero for part in parts))
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


def _size_of(record: Replacement) -> int:
    return record.size if isinstance(record, SelectedNodes) else record.rank
