"""Solutions on disk: factors of every rank, selections of every size."""

from __future__ import annotations

import dataclasses

import numpy as np

from dalr_stream.numerics.diagnostics import Diagnostics
from dalr_stream.numerics.lowrank.factors import LowRankFactors
from dalr_stream.numerics.lowrank.grouped import Factors, GroupedFactors
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.rows.streams import group_name
from dalr_stream.numerics.selection.nodes import ChannelSelection
from dalr_stream.storage import schema
from dalr_stream.storage.places.place import Place
from dalr_stream.storage.records.record import (
    Arrays,
    Provenance,
    attributes,
    holding,
    load_record,
    save_record,
)
from dalr_stream.storage.records.weights import load_layer_weights

Solution = Factors | ChannelSelection


def solution_path(root: Place, layer: str, method: Method) -> Place:
    """Return the folder of one solution."""
    return root / "solutions" / layer / method.value


def save_solution(root: Place, layer: str, solution: Solution, provenance: Provenance) -> None:
    """Write one solution, every rank of it, replacing the one that was there.

    The weight that low-rank factors approximate is not written again: it is the store's (`save_layer_weights`).
    Those of a convolution's groups are a record each, as their weights are.
    """
    if isinstance(solution, GroupedFactors):
        for number, part in enumerate(solution.parts):
            save_solution(root, group_name(layer, number), part, provenance)
        return
    specs = schema.LOW_RANK if isinstance(solution, LowRankFactors) else schema.SELECTION
    arrays = {spec.name: array for spec in specs if (array := getattr(solution, spec.name)) is not None}
    values = {"method": solution.method.value, "diagnostics": dataclasses.asdict(solution.diagnostics)}
    save_record(solution_path(root, layer, solution.method), specs, arrays, values, provenance, names=2)


def load_diagnostics(root: Place, layer: str, method: Method) -> Diagnostics:
    """Read how a solution came about, without its arrays."""
    path = solution_path(root, layer, method)
    with holding(path, "solution"):
        return Diagnostics(**attributes(path)["diagnostics"])


def load_solution(root: Place, layer: str, method: Method) -> LowRankFactors | ChannelSelection:
    """Read a solution back, bit for bit."""
    path = solution_path(root, layer, method)
    arrays, diagnostics = _load(path, method)
    with holding(path, "solution"):
        if method.family is Family.SELECTION:
            factor = arrays.pop("factor", None)
            return ChannelSelection(method=method, diagnostics=diagnostics, factor=factor, **arrays)
        weight, _ = load_layer_weights(root, layer)
        return LowRankFactors(method=method, weight=weight.astype(np.float64), diagnostics=diagnostics, **arrays)


def check_solution(path: Place) -> None:
    """Read everything that a solution's record holds, and nothing else; raises StoreDamagedError."""
    with holding(path, "solution"):
        _load(path, Method(path.name))


def _load(path: Place, method: Method) -> tuple[Arrays, Diagnostics]:
    specs = schema.LOW_RANK if method.family is Family.LOW_RANK else schema.SELECTION
    arrays, values = load_record(path, specs)
    with holding(path, "solution"):
        missing = {spec.name for spec in specs} - arrays.keys() - {"factor"}
        if missing:
            raise LookupError(f"without {', '.join(sorted(missing))}")
        return arrays, Diagnostics(**values["diagnostics"])
