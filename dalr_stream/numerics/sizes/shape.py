"""What a size costs in parameters, for a layer of m outputs and d inputs whose nodes each have C weights elsewhere.

In a dense layer that reads the node these are one for each of its C outputs; a convolution has a kernel for each.
Weights are counted, biases are not: they are the same before and after.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Shape of a layer and of what reads it.

    Attributes
    ----------
    outputs
        m: outputs of the layer.
    inputs
        d: inputs of the layer, or of each group of it.
    next_outputs
        C: weights of each node in its readers and in layers tied to this one; 0 where nothing reads them one by
        one.
    groups
        g, of a convolution: its outputs are those of all groups, its inputs those of each, and so is its rank.
    head_size
        p, of the output layer of an attention: dimensions of each of its heads; 0 of other layers.
    head_weights
        Weights that go with a dimension of every head in the layers of queries, keys and values.
    head_step
        What sizes of heads are multiples of: 2 where positions are rotated into pairs of dimensions.

    Examples
    --------
    >>> import dalr_stream as ds
    >>> shape = ds.numerics.LayerShape(outputs=10, inputs=6, next_outputs=4)
    >>> shape.parameters, shape.break_even_rank, shape.equal_parameters(3)
    (60, 3, 8)
    """

    outputs: int
    inputs: int
    next_outputs: int = 0
    groups: int = 1
    head_size: int = 0
    head_weights: int = 0
    head_step: int = 1

    @property
    def max_rank(self) -> int:
        """min(m / g, d)."""
        return min(self.outputs // self.groups, self.inputs)

    @property
    def parameters(self) -> int:
        """m d."""
        return self.outputs * self.inputs

    @property
    def pair_parameters(self) -> int:
        """m d + m C: this layer and the next one together."""
        return self.outputs * (self.inputs + self.next_outputs)

    @property
    def break_even_rank(self) -> int:
        """Largest rank that adds no parameters: floor(m d / (m + g d))."""
        return self.parameters // self.factor_parameters(1)

    def factor_parameters(self, rank: int) -> int:
        """k (m + g d): a factor pair in place of the layer."""
        return rank * (self.outputs + self.groups * self.inputs)

    def factor_pair_parameters(self, rank: int) -> int:
        """k (m + g d) + m C: a factor pair, and the next layer as it was."""
        return self.factor_parameters(rank) + self.outputs * self.next_outputs

    def selection_pair_parameters(self, kept: int) -> int:
        """k' (d + C): the kept nodes' rows here and columns in the next layer."""
        return kept * (self.inputs + self.next_outputs)

    def head_parameters(self, size: int) -> int:
        """Return what the output layer of an attention has left where each head has `size` dimensions.

        Its other layers have the same share left.
        """
        return self.parameters * size // self.head_size

    def equal_parameters(self, rank: int) -> int:
        """Return the largest k' at which a selection has no more parameters than a factor pair of this rank.

        k' = floor([k (m + d) + m C] / (d + C)), within 1..m (MoMaSP, section 5.2: both layers counted).
        """
        kept = self.factor_pair_parameters(rank) // (self.inputs + self.next_outputs)
        return min(max(kept, 1), self.outputs)
