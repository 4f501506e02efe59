"""What shards say about a run's solutions: error bars, and whether there are calibration samples enough.

One low-rank method speaks for a layer, the first of `report.claims.SPEAKERS` that the run has, and one selection, the
first of `SELECTIONS`: each is solved again without every shard, which for all methods would cost more than the run.
Where a ridge was chosen it is the one that was chosen with all shards.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalr_stream.engine.solve import select_by, solve_again
from dalr_stream.engine.store_view import StoreView
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.lowrank.grouped import Factors
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.resampling.jackknife import SelectionJackknife, jackknife_low_rank, jackknife_selection
from dalr_stream.numerics.resampling.sufficiency import RULE, sufficiency
from dalr_stream.numerics.selection.nodes import ChannelSelection
from dalr_stream.numerics.statistics.grouped import InputMoments
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.report.claims import SPEAKERS
from dalr_stream.report.record import SelectionStability, Stability
from dalr_stream.storage.durable import write_file
from dalr_stream.storage.records import Solution
from dalr_stream.workflow.runfile.sections import SolveSection
from dalr_stream.workflow.steps.solve import ridge_of

SELECTIONS = (Method.MOMASP_NODE, Method.SPECTRAL, Method.MOMASP_SUBSET)


def layer_stability(
    store: StoreView,
    section: SolveSection,
    layer: str,
    problem: Layer,
    solutions: dict[Method, Solution],
) -> Stability | None:
    """Return what leaving out shards says of one layer; None without shards, or without a low-rank method."""
    shards = store.inputs_shards(section.target, layer)
    speaker = next((method for method in SPEAKERS if method in solutions), None)
    if sum(shard.count > 0 for shard in shards) < 2 or speaker is None:
        return None
    ridge = ridge_of(section, solutions[speaker])

    def solve(moments: InputMoments) -> Factors:
        return solve_again(problem, speaker, moments, ridge)

    found = jackknife_low_rank(shards, solve, store.inputs_heldout(section.target, section.heldout, layer))
    judged = sufficiency(found, max(store.shape(layer).break_even_rank, 1))
    return Stability(
        shards=found.counts.size,
        method=speaker.value,
        enough=judged.enough,
        answer=judged.words,
        rule=RULE,
        training_error=_plain(found.training_error),
        unseen=_plain(found.unseen),
        unseen_error=_plain(found.unseen_error),
        heldout_error=None if found.heldout_error is None else _plain(found.heldout_error),
        turn=_plain(found.turn),
        selection=_selection(store, section, layer, problem, solutions),
    )


def _selection(
    store: StoreView,
    section: SolveSection,
    layer: str,
    problem: Layer,
    solutions: dict[Method, Solution],
) -> SelectionStability | None:
    method = next((method for method in SELECTIONS if method in solutions), None)
    if method is None:
        return None

    def solve(moments: Moments) -> ChannelSelection:
        return select_by(method, moments, problem.source_nodes, section.strength)

    found = jackknife_selection(store.channel_shards(section.target, layer), solve)
    return SelectionStability(
        method=method.value,
        answer=_in_words(found),
        common=_plain(found.common),
        jaccard=_plain(found.jaccard),
        retention_error=_plain(found.retention_error),
    )


def _in_words(found: SelectionJackknife) -> str:
    size = max(found.common.size // 2, 1)
    nodes = f"of the first {size:,} nodes" if size > 1 else "of the first node"
    return (
        f"Half of the layer kept: {found.common[size - 1]:.0%} {nodes} are chosen whichever shard is left out; the two "
        f"selections share {found.jaccard[size - 1]:.0%} of their nodes on average (Jaccard)."
    )


def write_stability(path: Path, found: dict[str, Stability | None]) -> None:
    """Keep what was found of each layer."""
    plain = {layer: None if one is None else dataclasses.asdict(one) for layer, one in found.items()}
    write_file(path, (json.dumps(plain, indent=1, allow_nan=False) + "\n").encode())


def read_stability(path: Path) -> dict[str, Stability | None]:
    """Read what `write_stability` wrote."""
    plain: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {layer: None if one is None else Stability.of(one) for layer, one in plain.items()}


def _plain(values: NDArray[np.float64] | Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
