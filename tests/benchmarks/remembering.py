"""Peak memory in fresh processes, beside what the plan said before anything ran."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "streaming"))
from peak_memory import increment_of, projected, tall_store
from peak_run import STEPS, step_peak, write_deep
from peak_sequential import in_turn_peaks
from peak_solving import measured_of, solved_layer, solved_store, solving_increment

from dalr_stream.errors import MemoryLimitError
from dalr_stream.numerics.methods import Method
from dalr_stream.streaming.solving_cost import solving_cost
from dalr_stream.streaming.solving_plan import SolvingPlan

METHODS = ("svd", "dalr_anchored_affine", "dalr_published", "dalr_optimal_affine", "spectral", "momasp_node")
"""One of each route."""


@dataclass(frozen=True)
class Held:
    """A line of the table; MiB beyond what the process held before."""

    features: int
    tiles: int
    held_out: float
    measured: float
    planned: float


def peaks(widths: Sequence[int], tiles: Sequence[int]) -> list[Held]:
    """Fold stores of so many tiles; the last number of tiles at every width but the widest."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tall_store(root / "warm", 64, 2)
        for d in widths:
            for count in tiles[:1] if d > 8192 else tiles:
                store = tall_store(root / f"{d}-{count}", d, count)
                for share in (0.0,) if d > 8192 else (0.0, 0.1):
                    measured, planned = increment_of(store, share=share), projected(d, share=share)
                    found.append(Held(d, count, share, measured / 2**20, planned / 2**20))
    return found


@dataclass(frozen=True)
class Planned:
    """A line of the tables of whole steps; MiB beyond what the process held before."""

    what: str
    measured: float
    planned: float


def in_turn(width: int, blocks: int, digits: Path | None) -> list[Planned]:
    """Compress a transformer's feed-forward layers, without a limit and within one, and a run file's layers."""
    shape = f"{2 * blocks} layers of a transformer {width} wide, random weights, 20,000 rows"
    found = []
    whole = in_turn_peaks(width, blocks, 1000, 20, 0)
    limit = int(0.9 * whole[1] / 2**20)
    for what, peaks in (
        (shape, whole),
        (f"the same within {limit:,} MiB", in_turn_peaks(width, blocks, 1000, 20, limit)),
    ):
        found.append(Planned(what, *(value / 2**20 for value in peaks)))
    if digits is not None:
        with tempfile.TemporaryDirectory() as folder:
            settings = f"run.output={json.dumps(folder)}", "compress.order='sequential'"
            peak = step_peak(digits, "compress", *settings)
        found.append(Planned("the digits run", *(value / 2**20 for value in peak)))
    return found


def steps(width: int, layers: int, verbs: Sequence[str] = STEPS) -> list[Planned]:
    """Take each step of a run of a deep network in a process of its own, with sizes chosen within a budget."""
    with tempfile.TemporaryDirectory() as folder:
        file = write_deep(Path(folder) / "deep", width, layers)
        return [Planned(verb, *(value / 2**20 for value in step_peak(file, verb))) for verb in verbs]


@dataclass(frozen=True)
class Solved:
    """A line of the table of solving; MiB beyond what the process held before."""

    method: str
    kept: bool
    route: str
    solving: float
    curves: float
    planned: float
    refused: str = ""
    """What a limit says where the method does not fit; nothing is measured then."""


def solving(outputs: int, inputs: int, rows: int, limit: int) -> list[Solved]:
    """Solve a layer by one method of each route from a store with its rows, and say what is refused without them."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        solved_store(root / "warm-solve", 16, 64, 300)
        store = solved_store(root / "solved", outputs, inputs, rows, memory_limit_bytes=limit)
        for kept in (True, False):
            for method in map(Method, METHODS):
                layer = solved_layer(outputs, inputs, rows, kept=kept)
                cost, refused = solving_cost(layer, method), ""
                try:
                    SolvingPlan.of([(layer, [method])], limit).require()
                except MemoryLimitError as error:
                    refused = str(error).partition(": solving")[2]
                measured = dict.fromkeys(("solve", "curves"), 0.0)
                if kept and not refused:
                    measured |= {what: solving_increment(store, method.value, what) for what in measured_of(method)}
                mib = (value / 2**20 for value in (*measured.values(), cost.peak_bytes))
                found.append(Solved(method.value, kept, cost.route.value, *mib, refused))
    return found
