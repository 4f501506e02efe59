"""An attention at its turn: its heads get narrower by what its layers read by then, and its output layer is solved.

    first pass     what queries, keys, values and output layer read in the network as compressed so far: its heads,
                   weighed by gradients of the original network where those are asked for
    second pass    what the output layer reads of the narrower heads, beside what it gave in the original: its weight

Queries and keys of fewer dimensions change which tokens attend to which, so what the output layer reads is not merely
the kept dimensions of what it read. The second pass runs the network with narrower heads, and the regression, anchored
at what the first gave, makes up for that and for what the layers before have lost. Gradients do not weigh it: without a
bound on the rank the same weight is best in any metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from dalr_stream.engine.sequential.layer_choice import LayerChoice
from dalr_stream.engine.sequential.pass_moments import PassMoments
from dalr_stream.engine.solve import solve_heads
from dalr_stream.network.capture.passes import SameEveryPass
from dalr_stream.network.layers.spec import select_layers, weights_of
from dalr_stream.network.surgery.compress import compress
from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.heads.narrowed import NarrowedHeads
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.selection.nodes import SelectedNodes
from dalr_stream.numerics.selection.restoration import RefittedReader, reader_errors, refitted
from dalr_stream.numerics.types import Vector
from dalr_stream.streaming.folding import Folding


@dataclass(frozen=True, slots=True)
class HeadsInTurn:
    """Heads, and what the output layer does with what it reads of them."""

    heads: NarrowedHeads
    output: RefittedReader
    squares: Vector
    """(3,): ||.||^2 of what the output layer lacks before it is solved, with the heads in place; after; and of what it
    gives in the original; on held-out rows where some are kept apart."""


@dataclass(frozen=True, slots=True)
class AttentionTurn:
    """What both passes of an attention need."""

    layout: HeadLayout
    choice: LayerChoice
    moments: PassMoments
    batches: SameEveryPass
    folding: Folding

    def narrowed(self, current: nn.Module, mending: Sequence[str]) -> HeadsInTurn:
        """Return heads of the chosen size, and the output layer solved for them.

        `mending` has the output layer's name where it is solved towards a stream.
        """
        choice, output = self.choice, self.layout.output
        ridges = choice.restore_ridge, choice.gradient_ridge
        heads = solve_heads(self._layers(current), self.layout, choice.by, *ridges).at_size(choice.size)
        small = compress(current, {output: heads}, example=self.batches.first())
        read = select_layers(small, [output])
        pairs = self.moments.beside_outputs(small, self.batches, read, self.folding, mending)
        (weight, bias), every = weights_of(small, output), _every(pairs[output].input_features)
        solved = refitted(every, weight, bias, pairs[output], choice.restore_ridge)
        judging = (pairs.heldout or pairs)[output]
        return HeadsInTurn(heads, solved, reader_errors(every, weight, bias, solved, judging))

    def _layers(self, current: nn.Module) -> dict[str, Layer]:
        """Return the four layers as they are by now, with what they read, and what was felt of them at first."""
        names = list(self.layout.layers)
        seen = self.moments.alone(current, self.batches, select_layers(current, names), self.folding, "target")
        felt = self.choice.gradients_of(self.layout)
        return {
            name: Layer(name, *weights_of(current, name), inputs=seen[name], gradients=felt.get(name)) for name in names
        }


def _every(features: int) -> SelectedNodes:
    """Return the selection of all that a layer reads."""
    return SelectedNodes(np.arange(features), np.eye(features), np.zeros(features), 1.0)
