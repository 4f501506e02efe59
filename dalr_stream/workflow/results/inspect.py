"""What was solved, in numbers: every solution at several sizes, and what compressing each layer would save and cost.

Read from the store alone: no network and no data. Errors are ||Y - Yhat|| / ||Y - b|| for a factor pair and
||phi - phihat|| / ||phi|| for the nodes of a selection; of heads the root of what is lost of the energy of scores or
outputs, of which more is. All are of the target's training rows, and of the held-out ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.numerics.heads.factors import HeadFactors
from dalr_stream.numerics.heads.narrowed import NarrowedHeads, head_losses
from dalr_stream.numerics.lowrank.grouped import Factors
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.options import parse_choice
from dalr_stream.numerics.selection.nodes import ChannelSelection, SelectedNodes
from dalr_stream.numerics.sizes.allocation import by_energy
from dalr_stream.numerics.sizes.losses import lost_energy, lost_nodes
from dalr_stream.numerics.sizes.sized_layer import SizedLayer
from dalr_stream.numerics.statistics.grouped import InputMoments
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.storage.records.solutions import Solution
from dalr_stream.workflow.runfile.labelled_sections import LabelledSection
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.scores.scoring import sizes_to_try
from dalr_stream.workflow.steps.sizes.sizing import layers_by, sized_layer, solution_of
from dalr_stream.workflow.steps.sizes.stored_menus import rows_a_sample

ENOUGH = 0.95
"""Share of the energy at which layers are ranked by what they save."""


@dataclass(frozen=True, slots=True)
class SizePoint:
    """One size of one solution."""

    size: int
    """Rank, or number of kept nodes."""
    saved: int
    """Weights fewer than the layer has; for a selection in its own rows, what its readers save not counted."""
    energy: float
    """Share kept on the training rows, 1 - error^2."""
    error_training: float
    error_heldout: float | None


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What compressing one layer by one method would save and cost."""

    layer: str
    method: Method
    outputs: int
    inputs: int
    weights: int
    multiply_adds: float
    """Of one sample: weights x rows a sample."""
    enough: SizePoint
    """The smallest size that keeps `ENOUGH` of the energy; the layer as it is where none does for fewer weights."""
    half: SizePoint | None
    """The largest size with at most half of the weights; None where none has so few."""
    break_even: SizePoint | None
    """The largest rank that adds no weights; None for selections, which add none at any size."""
    groups: int = 1
    """Of a convolution: inputs and ranks are those of each."""


def solution_facts(project: Project) -> list[dict[str, Any]]:
    """Return, as plain values, every solution at the sizes that are evaluated and at break-even.

    `parameters` are weights: of the layer for a factor pair, of the layer and its readers for a selection, of the four
    layers of an attention for heads; `of` is what they have uncompressed.
    """
    store = StoreView.open(project.store)
    return [
        fact
        for layer, method in project.wanted(store)
        for fact in _facts(project, store, layer, store.solutions(layer, [method])[method])
    ]


def layer_costs(project: Project, method: Method | str | None = None) -> list[LayerCost]:
    """Return what compressing each layer would save and cost, the one that saves most for `ENOUGH` energy first.

    By the method of a rule for all layers (`compress.method`) unless another one is named.
    """
    store = StoreView.open(project.store)
    named = parse_choice(Method, method or project.config.compress_method, "method")

    def cost(layer: str) -> LayerCost:
        solution = solution_of(project, store, layer, named)
        sized, rows = sized_layer(project, store, layer, solution), rows_a_sample(project, store, layer)
        return _layer_cost(project, store, sized, solution, rows)

    return sorted(map(cost, layers_by(project, store, named)), key=lambda cost: -cost.enough.saved)


def _facts(project: Project, store: StoreView, layer: str, solution: Solution) -> list[dict[str, Any]]:
    shape, family = store.shape(layer), solution.method.family
    low_rank = family is Family.LOW_RANK
    tried = project.config.evaluate.ranks if project.config.evaluate else LabelledSection.model_fields["ranks"].default
    sizes = set(sizes_to_try(solution.method, shape, tried)) | ({shape.break_even_rank} if low_rank else set())
    ascending = sorted(sizes - {0})
    attention = shape.parameters + shape.head_size * shape.head_weights
    training, heldout = errors(project, store, layer, solution, ascending)
    count, of = {
        Family.LOW_RANK: (shape.factor_parameters, shape.parameters),
        Family.SELECTION: (shape.selection_pair_parameters, shape.pair_parameters),
        Family.HEADS: (lambda size: size * (shape.parameters // shape.head_size + shape.head_weights), attention),
    }[family]
    return [
        {
            "layer": layer,
            "method": solution.method.value,
            "rank" if low_rank else "size": size,
            "parameters": count(size),
            "of": of,
            "error_training": training[number],
            "error_heldout": None if heldout is None else heldout[number],
            "ridge": solution.diagnostics.ridge,
            "route": solution.diagnostics.route,
        }
        for number, size in enumerate(ascending)
    ]


def errors(
    project: Project, store: StoreView, layer: str, solution: Solution, sizes: Sequence[int]
) -> tuple[list[float], list[float] | None]:
    """Return the relative errors of a solution at some sizes, on the training rows and on the held-out ones."""
    section = project.config.solve
    if isinstance(solution, HeadFactors):
        return _errors_of_heads(project, store, layer, [solution.at_size(size) for size in sizes])
    if isinstance(solution, ChannelSelection):
        nodes = store.channel_moments(section.target, layer)
        heldout_nodes = store.channel_heldout(section.target, section.heldout, layer)
        selections = [solution.at_size(size, ridge=section.restore_ridge) for size in sizes]
        training = _errors_of_nodes(selections, nodes)
        return training, None if heldout_nodes is None else _errors_of_nodes(selections, heldout_nodes)
    inputs = store.inputs(section.target, layer)
    heldout = store.inputs_heldout(section.target, section.heldout, layer)
    training = _errors_of_ranks(solution, sizes, inputs)
    return training, None if heldout is None else _errors_of_ranks(solution, sizes, heldout)


def _errors_of_heads(
    project: Project, store: StoreView, layer: str, heads: Sequence[NarrowedHeads]
) -> tuple[list[float], list[float] | None]:
    section = project.config.solve
    training = [float(np.sqrt(one.loss)) for one in heads]
    attention = store.attention_heldout(layer, section.target, section.heldout)
    if not attention:
        return training, None
    return training, [float(np.sqrt(head_losses(one, attention).most)) for one in heads]


def _errors_of_nodes(selections: Sequence[SelectedNodes], nodes: Moments) -> list[float]:
    return [float(np.sqrt(lost_nodes(selected, nodes))) for selected in selections]


def _errors_of_ranks(factors: Factors, ranks: Sequence[int], inputs: InputMoments) -> list[float]:
    return [float(error) for error in np.sqrt(lost_energy(factors, inputs)[list(ranks)])]


def _layer_cost(
    project: Project, store: StoreView, layer: SizedLayer, solution: Solution, positions: float
) -> LayerCost:
    shape, inputs = layer.shape, layer.shape.inputs
    weights = [int(count) for count in layer.cost(layer.sizes, inputs)]
    within_half = [size for size, count in zip(layer.sizes.tolist(), weights, strict=True) if 2 * count <= weights[-1]]
    break_even = shape.break_even_rank if layer.family is Family.LOW_RANK else 0
    sizes = {
        "enough": by_energy([layer], ENOUGH)[layer.name],
        "half": max(within_half, default=0),
        "break_even": break_even,
    }
    asked = {name: size for name, size in sizes.items() if size and size != layer.whole}
    training, heldout = errors(project, store, layer.name, solution, list(asked.values()))
    points = {
        name: SizePoint(
            size,
            shape.parameters - int(layer.cost(size, inputs)),
            1.0 - training[number] ** 2,
            training[number],
            None if heldout is None else heldout[number],
        )
        for number, (name, size) in enumerate(asked.items())
    }
    as_it_is = SizePoint(layer.whole, 0, 1.0, 0.0, None if heldout is None else 0.0)
    return LayerCost(
        layer=layer.name,
        method=solution.method,
        outputs=shape.outputs,
        inputs=inputs,
        weights=shape.parameters,
        multiply_adds=shape.parameters * positions,
        enough=points.get("enough", as_it_is),
        half=points.get("half"),
        break_even=points.get("break_even"),
        groups=shape.groups,
    )
