"""How one layer is compressed at its turn: by which method, to which size, and what decides where errors are weighed.

Errors are weighed by gradients of the original network, whatever has become of it by then: what the loss feels of a
compressed network would need a backward pass for every layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.lowrank.output_metric import DEFAULT_GRADIENT_RIDGE
from dalr_stream.numerics.lowrank.ridge import DEFAULT_RIDGE, Ridge
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.options import parse_choice
from dalr_stream.numerics.selection.readers import metric_of
from dalr_stream.numerics.statistics.grouped import InputMoments
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.types import Matrix


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """How one layer is compressed by `compress_sequentially`: the method and the size.

    Attributes
    ----------
    method
        `Method`, or its value as in run files.
    size
        Rank, number of kept nodes, or dimensions of each head: heads go by the output layer of their attention.
    ridge
        The ridge of the DALR methods; a number is relative.
    strength
        The strength of MoMaSP's regulariser.
    restore_ridge
        The ridge of what restores pruned nodes, or dimensions of heads, relative to the mean diagonal of Sigma.
    layer
        The layer in the original network, `statistics[name]`: its gradients, and who reads its nodes, decide the
        weighted methods. Others do without.
    gradient_ridge
        The ridge of the gradients' second moment, for these; a number is relative.
    attention
        The layers of the attention in the original network by name, `statistics` say: gradients of its keys and output
        layer decide `heads_weighted`, in the place of `layer`.

    Examples
    --------
    >>> import dalr_stream as ds
    >>> ds.LayerChoice("spectral", size=64).selects
    True
    """

    method: Method | str
    size: int
    ridge: Ridge | float = DEFAULT_RIDGE
    strength: float = 1.0
    restore_ridge: float = 1e-3
    layer: Layer | None = None
    gradient_ridge: Ridge | float | str = DEFAULT_GRADIENT_RIDGE
    attention: Mapping[str, Layer] | None = field(default=None, hash=False)  # mappings have no hash

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", parse_choice(Method, self.method, "method"))
        object.__setattr__(self, "ridge", Ridge.of(self.ridge))
        object.__setattr__(self, "gradient_ridge", Ridge.of(self.gradient_ridge))
        heads = self.by.family is Family.HEADS
        if self.by.weighted and (self.attention if heads else self.layer) is None:
            given = "attention=statistics), the layers" if heads else "layer=statistics[name]), the layer"
            whose = "their gradients" if heads else "its gradients"
            raise InvalidInputError(
                f"{self.by.value} weighs errors by what comes of them: give LayerChoice(..., {given} of the original "
                f"network with {whose} (network.gradients in a run file)"
            )

    @property
    def by(self) -> Method:
        """The method, whichever way it was given."""
        return Method(self.method)

    def gradients(self, groups: int) -> Sequence[Moments | None]:
        """Moments of the gradients by the outputs of each group of the layer; None where they are not needed."""
        if self.layer is None or not self.by.needs_gradients:
            return [None] * groups
        return self.layer.known_gradients.parts

    def gradients_of(self, heads: HeadLayout) -> dict[str, InputMoments]:
        """Moments of the gradients that weigh these heads, by layer; empty where they are not needed.

        Raises InvalidInputError for a layer that is not given, or without gradients.
        """
        if self.attention is None or not (self.by.needs_gradients and self.by.family is Family.HEADS):
            return {}
        for name in heads.felt:
            if name not in self.attention:
                raise InvalidInputError(
                    f"layer '{heads.output}': {self.by.value} needs the gradients of '{name}', which is not among "
                    f"{', '.join(self.attention) or 'no layers'}: give the statistics of the original network that "
                    f"have it, LayerChoice(..., attention=statistics)"
                )
        return {name: self.attention[name].known_gradients for name in heads.felt}

    @property
    def metric(self) -> Matrix | None:
        """In which a selection compares errors of nodes; None for their own."""
        return None if self.layer is None else metric_of(self.layer, self.by.metric)

    @property
    def selects(self) -> bool:
        """Whether it keeps some of the layer's nodes; a factor pair keeps them all."""
        return self.by.family is Family.SELECTION
