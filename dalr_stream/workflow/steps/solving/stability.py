"""What shards say about a run's solutions: error bars, and whether there are calibration samples enough.

One low-rank method speaks for a layer, the first of `report.claims.SPEAKERS` that the run has, and one selection, the
first of `SELECTIONS`: each is solved again without every shard, which for all methods would cost more than the run.
Where a ridge was chosen it is the one that was chosen with all shards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dalr_stream.engine.solve import select_by, solve_again
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.lowrank.grouped import Factors
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.resampling.jackknife import jackknife_low_rank
from dalr_stream.numerics.resampling.selection_jackknife import SelectionJackknife, jackknife_selection
from dalr_stream.numerics.resampling.sufficiency import RULE, sufficiency
from dalr_stream.numerics.selection.nodes import ChannelSelection
from dalr_stream.numerics.statistics.grouped import InputMoments
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.report.claims import SPEAKERS
from dalr_stream.report.records.stability import SelectionStability, Stability
from dalr_stream.storage.json_record import RecordKind
from dalr_stream.workflow.runfile.sections import SolveSection
from dalr_stream.workflow.steps.solving.ridge import ridge_of
from dalr_stream.workflow.steps.step import read_stamped, write_stamped

STABILITY = RecordKind("stability", 1, "run solve")
SELECTIONS = (Method.MOMASP_NODE, Method.SPECTRAL, Method.MOMASP_SUBSET)


def layer_stability(
    store: StoreView,
    section: SolveSection,
    layer: str,
    problem: Layer,
    methods: Sequence[Method],
) -> Stability | None:
    """Return what leaving out shards says of one layer; None without shards, or without a low-rank method."""
    shards = store.inputs_shards(section.target, layer)
    speaker = next((method for method in SPEAKERS if method in methods), None)
    if sum(shard.count > 0 for shard in shards) < 2 or speaker is None:
        return None
    ridge = ridge_of(section, store.solutions(layer, [speaker])[speaker])

    def solve(moments: InputMoments) -> Factors:
        return solve_again(problem, speaker, moments, ridge, section.gradient_ridge_rule)

    jackknife = jackknife_low_rank(shards, solve, store.inputs_heldout(section.target, section.heldout, layer))
    judged = sufficiency(jackknife, max(store.shape(layer).break_even_rank, 1))
    return Stability(
        shards=jackknife.counts.size,
        method=speaker.value,
        enough=judged.enough,
        answer=judged.words,
        rule=RULE,
        training_error=_plain(jackknife.training_error),
        unseen=_plain(jackknife.unseen),
        unseen_error=_plain(jackknife.unseen_error),
        heldout_error=None if jackknife.heldout_error is None else _plain(jackknife.heldout_error),
        turn=_plain(jackknife.turn),
        selection=_selection(store, section, layer, problem, methods),
    )


def _selection(
    store: StoreView,
    section: SolveSection,
    layer: str,
    problem: Layer,
    methods: Sequence[Method],
) -> SelectionStability | None:
    method = next((method for method in SELECTIONS if method in methods), None)
    if method is None:
        return None

    def solve(moments: Moments) -> ChannelSelection:
        return select_by(method, moments, problem.source_nodes, section.strength)

    jackknife = jackknife_selection(store.channel_shards(section.target, layer), solve)
    return SelectionStability(
        method=method.value,
        answer=_in_words(jackknife),
        common=_plain(jackknife.common),
        jaccard=_plain(jackknife.jaccard),
        retention_error=_plain(jackknife.retention_error),
    )


def _in_words(jackknife: SelectionJackknife) -> str:
    size = max(jackknife.common.size // 2, 1)
    nodes = f"of the first {size:,} nodes" if size > 1 else "of the first node"
    return (
        f"Half of the layer kept: {jackknife.common[size - 1]:.0%} {nodes} are chosen whichever shard is left out; the "
        f"two selections share {jackknife.jaccard[size - 1]:.0%} of their nodes on average (Jaccard)."
    )


def write_stability(path: Path, fingerprint: str, stability: dict[str, Stability | None]) -> None:
    """Keep what leaving out shards says of each layer."""
    plain = {layer: None if answer is None else dataclasses.asdict(answer) for layer, answer in stability.items()}
    write_stamped(path, STABILITY, fingerprint, plain)


def read_stability(path: Path, fingerprint: str | None = None) -> dict[str, Stability | None]:
    """Read what `write_stability` wrote."""
    plain = read_stamped(path, STABILITY, fingerprint)
    return {layer: None if answer is None else Stability.of(answer) for layer, answer in plain.items()}


def _plain(values: NDArray[np.float64] | Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
