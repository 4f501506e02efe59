"""Solutions on disk: factors of every rank, selections and heads of every size."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dalr_stream.numerics.diagnostics import Diagnostics
from dalr_stream.numerics.heads.factors import HeadFactors
from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.heads.pairs import KeptPairs
from dalr_stream.numerics.heads.projection import HeadProjection
from dalr_stream.numerics.lowrank.factors import LowRankFactors
from dalr_stream.numerics.lowrank.grouped import Factors, GroupedFactors
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.rows.streams import group_name
from dalr_stream.numerics.selection.nodes import ChannelSelection
from dalr_stream.numerics.types import Matrix
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

Solution = Factors | ChannelSelection | HeadFactors
_SPECS = {
    Family.LOW_RANK: schema.LOW_RANK,
    Family.SELECTION: schema.SELECTION,
    Family.HEADS: (*schema.HEADS, *schema.ROTARY),
}
_PAIRS, _TURNED_ALL = ("pair_order", "pair_losses"), ("score_up", "score_down")
_ABSENT = {"factor", *_PAIRS}
"""Not every solution has these; nor those of `_TURNED_ALL`, where every dimension of a head is in a rotary pair."""
_PROJECTION = ("up", "down", "losses")


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
    specs = _SPECS[solution.method.family]
    values: dict[str, Any] = {"method": solution.method.value, "diagnostics": dataclasses.asdict(solution.diagnostics)}
    if isinstance(solution, HeadFactors):
        arrays = _arrays_of_heads(solution)
        values |= {"layout": dataclasses.asdict(solution.layout), "ridge": solution.ridge}
    else:
        arrays = {spec.name: array for spec in specs if (array := getattr(solution, spec.name)) is not None}
    save_record(solution_path(root, layer, solution.method), specs, arrays, values, provenance, names=2)


def load_diagnostics(root: Place, layer: str, method: Method) -> Diagnostics:
    """Read how a solution came about, without its arrays."""
    path = solution_path(root, layer, method)
    with holding(path, "solution"):
        return Diagnostics(**attributes(path)["diagnostics"])


def _arrays_of_heads(heads: HeadFactors) -> Arrays:
    arrays: Arrays = {"outputs_moment": heads.outputs_moment, "mean": heads.mean}
    for name, projections in (("score", heads.scores), ("mixed", heads.mixed)):
        arrays |= {f"{name}_{part}": np.array([getattr(one, part) for one in projections]) for part in _PROJECTION}
    if heads.pairs is not None:
        arrays |= {"pair_order": heads.pairs.order, "pair_losses": heads.pairs.losses}
    return {name: array for name, array in arrays.items() if array.size}


def load_solution(root: Place, layer: str, method: Method) -> LowRankFactors | ChannelSelection | HeadFactors:
    """Read a solution back, bit for bit."""
    path = solution_path(root, layer, method)
    arrays, diagnostics = _load(path, method)
    with holding(path, "solution"):
        if method.family is Family.HEADS:
            return _heads(path, arrays, load_layer_weights(root, layer)[0].astype(np.float64), method, diagnostics)
        if method.family is Family.SELECTION:
            factor = arrays.pop("factor", None)
            return ChannelSelection(method=method, diagnostics=diagnostics, factor=factor, **arrays)
        weight, _ = load_layer_weights(root, layer)
        return LowRankFactors(method=method, weight=weight.astype(np.float64), diagnostics=diagnostics, **arrays)


def _heads(path: Place, arrays: Arrays, weight: Matrix, method: Method, diagnostics: Diagnostics) -> HeadFactors:
    values = attributes(path)
    layout, ridge = HeadLayout(**values["layout"]), float(values["ridge"])
    pairs = KeptPairs(*(arrays[name] for name in _PAIRS)) if layout.rotated else None
    if layout.rotated == layout.size:
        arrays |= dict.fromkeys(_TURNED_ALL, np.zeros((layout.groups, 0, 0)))
    scores, mixed = (
        tuple(HeadProjection(*parts) for parts in zip(*(arrays[f"{name}_{part}"] for part in _PROJECTION), strict=True))
        for name in ("score", "mixed")
    )
    moment, mean = arrays["outputs_moment"], arrays["mean"]
    return HeadFactors(layout, scores, mixed, weight, moment, mean, ridge, method, diagnostics, pairs)


def check_solution(path: Place) -> None:
    """Read everything that a solution's record holds, and nothing else; raises StoreDamagedError."""
    with holding(path, "solution"):
        _load(path, Method(path.name))


def _load(path: Place, method: Method) -> tuple[Arrays, Diagnostics]:
    specs = _SPECS[method.family]
    arrays, values = load_record(path, specs)
    with holding(path, "solution"):
        absent = _ABSENT | set(_TURNED_ALL if arrays.keys() >= set(_PAIRS) else ())
        missing = {spec.name for spec in specs} - arrays.keys() - absent
        if missing:
            raise LookupError(f"without {', '.join(sorted(missing))}")
        return arrays, Diagnostics(**values["diagnostics"])
