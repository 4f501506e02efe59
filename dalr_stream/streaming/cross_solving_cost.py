"""What solving one layer from cross moments holds, by arithmetic alone: a pass of sequential compression, after it ran.

Counted is the most that is there at once beside the records: the weight, S and what is factored of it, and matrices of
the layer's shape. A layer that gives more features than it reads was watched for what it reads; the moments of what it
gives are formed for it. A selection's nodes are formed from what reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dalr_stream.numerics.methods import Family, Method, Variant
from dalr_stream.numerics.metric import Metric
from dalr_stream.streaming.solving_cost import EIGEN, GREEDY, GREEDY_PAIR, IN_METRIC, SMALL_THINGS, SPECTRUM

_FLOAT64, _FLOAT32 = 8, 4
SHAPED = 8
"""Matrices m x d: the weight, Z X', what M differs from it by and how that is come by, M, and the factors."""
FORMED = 2
"""Matrices of the outputs' order while W Z W' is made, the one that is kept not among them."""
JOINED = 2
"""Of joint order: nodes of both networks while those of several readers are added up."""
FELT = 2 + EIGEN
"""Of the outputs' order: the gradients' record, their second moment, and its eigendecomposition."""
REFITTED = 4
"""Of the order of all that a reader reads: its Sigma, what is factored of it, and copies on the way."""


@dataclass(frozen=True, slots=True)
class TurnedLayer:
    """What decides the cost of solving a layer at its turn."""

    name: str
    outputs: int
    inputs: int
    methods: tuple[Method, ...]
    """That it may be solved by; what takes most is counted."""
    groups: int = 1
    readers: tuple[int, ...] = ()
    """Features of what is watched of those that read its channels, for a selection."""
    paired: bool = True
    """Whether rows of two networks lie side by side; the first pass reads those of the original alone."""
    mends: bool = False
    """Whether it is solved towards a stream: all that it gives is watched then."""
    refits: tuple[tuple[int, int], ...] = ()
    """Outputs and inputs of those that read its channels, where these are solved towards a stream for a selection."""

    @property
    def is_wider_out(self) -> bool:
        """Whether it is watched for what it reads in both networks: it gives W X + b."""
        return self.outputs > self.inputs and self.paired and not self.mends

    @property
    def widths(self) -> tuple[int, ...]:
        """Features of the joint rows that are folded for it."""
        beside = 0 if not self.paired else self.inputs if self.is_wider_out else self.outputs
        pair = (self.inputs + beside,) * self.groups
        selects = [method for method in self.methods if method.family is Family.SELECTION]
        factors = pair if len(selects) < len(self.methods) else ()
        if self.refits:
            return (*factors, *map(sum, self.refits)) if selects else factors
        return (*factors, *(((1 + self.paired) * width for width in self.readers) if selects else ()))


def pass_solving_bytes(layers: Sequence[TurnedLayer], records: int) -> int:
    """Return the peak of solving the layers of a pass one after the other; `records` of each are held, or one only."""
    held = sum(records * _FLOAT64 * width**2 for layer in layers for width in layer.widths)
    return held + max((_solving(layer, records) for layer in layers), default=0) + SMALL_THINGS


def _solving(layer: TurnedLayer, records: int) -> int:
    return max(_of_method(layer, method, records) for method in layer.methods)


def _of_method(layer: TurnedLayer, method: Method, records: int) -> int:
    if method.family is Family.SELECTION:
        return _selecting(layer, method, records)
    m, d, p = layer.outputs, layer.inputs, min(layer.outputs, layer.inputs)
    through = layer.is_wider_out
    formed = records * layer.groups * _FLOAT64 * (d + m) ** 2 if through else 0
    forming = FORMED * _FLOAT64 * m**2 if through else 0
    weights = layer.groups * (_FLOAT32 + _FLOAT64) * m * d
    ordered = m if _decomposes_outputs(method) else p
    shaped = (SHAPED + 2 * (layer.groups - 1)) * _FLOAT64 * m * d
    factoring = _FLOAT64 * max(EIGEN * d**2, d**2 + SPECTRUM * ordered**2)
    felt = FELT * _FLOAT64 * layer.groups * m**2 if method.needs_gradients else 0
    return weights + formed + felt + max(forming, shaped + factoring)


def _decomposes_outputs(method: Method) -> bool:
    """Tell whether it decomposes Z Z', m x m."""
    return method.dalr_options is not None and method.dalr_options.variant is Variant.PUBLISHED


def _selecting(layer: TurnedLayer, method: Method, records: int) -> int:
    """Count the nodes of both networks, and the order and the restoration beside them."""
    nodes = layer.outputs * layer.groups
    square = _FLOAT64 * nodes**2
    several = JOINED if len(layer.readers) > 1 else 1
    source = sum(_FLOAT64 * width**2 for width in layer.readers) + square if method.needs_source else 0
    nodes_of_both = (records + several) * (1 + layer.paired) ** 2 * square
    if layer.refits:
        refitting = max(_FLOAT64 * (REFITTED * d**2 + SHAPED * m * d) for m, d in layer.refits)
        nodes_of_both = max(nodes_of_both, refitting)
    weighed = 0 if method.metric is Metric.NODES else IN_METRIC
    return nodes_of_both + source + (weighed + (GREEDY_PAIR if method.needs_source else GREEDY)) * square
