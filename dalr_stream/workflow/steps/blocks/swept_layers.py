"""The layers of one sweep: each solved, kept as the report shows it, and cut, while its block's moments are there."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dalr_stream.engine.layer_moments import OnDemand
from dalr_stream.engine.solve import solve_low_rank, solve_selection
from dalr_stream.engine.statistics import Statistics
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import FingerprintMismatchError, StoreDamagedError, StoreNotFoundError
from dalr_stream.network.blocks.compress_into import Given
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.lowrank.grouped import Factors
from dalr_stream.numerics.lowrank.ridge import DEFAULT_RIDGE, Ridge
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.selection.nodes import ChannelSelection
from dalr_stream.progress import Progress
from dalr_stream.storage.json_record import RecordKind
from dalr_stream.storage.records.solutions import Solution
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.blocks.decided import cut, size_of
from dalr_stream.workflow.steps.named_sizes import named_layers, require_solved
from dalr_stream.workflow.steps.provenance import saved_provenance
from dalr_stream.workflow.steps.sizes.compression import Compression, LayerSize
from dalr_stream.workflow.steps.sizes.sizing import size_by_rule
from dalr_stream.workflow.steps.solve import warnings_noted
from dalr_stream.workflow.steps.solving.findings import (
    LayerFindings,
    RowCounts,
    decisions,
    layer_results,
    readers_in_words,
)
from dalr_stream.workflow.steps.step import read_stamped, saved_network, write_stamped

_LAYER = RecordKind("swept layer", 1, "run compress")
Solved = Factors | ChannelSelection
ABSENT = (StoreNotFoundError, StoreDamagedError, FingerprintMismatchError)
"""Raised where a record is not there whole, or was made by other settings."""


@dataclass(frozen=True, slots=True)
class SweptLayers:
    """The layers of one sweep; what is known of each is on disk before its replacement is given."""

    project: Project
    view: StoreView
    """The layers and their shapes; it has no moments."""
    fingerprint: str
    progress: Progress

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
        except ABSENT:
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
        with warnings_noted(layer, self.progress):
            record, known = self._solve(statistics, layer)
        write_stamped(self._path(layer), _LAYER, self.fingerprint, known)
        return record

    def _solve(self, statistics: Statistics, layer: str) -> tuple[Given | None, dict[str, Any]]:
        """Return what takes a layer's place, and what is to be known of it."""
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
        return record, known

    def _solved(self, problem: Layer, method: Method) -> Solved:
        section = self.project.config.solve
        if method.family is Family.SELECTION:
            return solve_selection(problem, method, section.strength)
        rule = section.ridge_for(method)
        ridge = rule if isinstance(rule, Ridge) else DEFAULT_RIDGE
        return solve_low_rank(problem, method, ridge, section.gradient_ridge_rule)

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
