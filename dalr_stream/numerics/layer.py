"""One layer with everything a solver can use: its weights, and the moments of its inputs and outputs.

Every solver takes this record in place of its parts: `dalr(layer)`, `spectral(layer)`, `momasp(layer, source)`. It
copies nothing and computes nothing; what is not known is None, and the solver that needs it says so by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalr_stream.errors import InvalidInputError, UnsupportedLayerError
from dalr_stream.numerics.rows.streams import group_name
from dalr_stream.numerics.statistics.channels import NodeReader
from dalr_stream.numerics.statistics.grouped import InputMoments
from dalr_stream.numerics.statistics.moments import Moments

Weight = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A layer's weights and moments: what `dalr`, `spectral`, `momasp` and the other solvers start from.

    Attributes
    ----------
    name
        The layer's name, which messages give.
    weight
        (m, d); of a convolution in several groups, the matrices of its groups one below the other.
    bias
        (m,), or None where the layer has none.
    inputs
        Training moments of what the layer, or each group of it, reads: d features. None where only outputs are
        known.
    outputs
        Training moments of y = W x + b, of the layer or of each group of it. None where they were not accumulated.
    nodes
        Training moments of its channels as their readers read them: m features. None where they cannot be selected.
    source_nodes
        The same channels on the source domain, which MoMaSP compares; None where there is no source.
    heldout
        What `inputs` would be on rows that no solution is fitted to; None without held-out rows.
    shards
        Records that `inputs` is the sum of, to leave one out; may be read from disk one by one. Empty without them.
    rows
        The training rows that `inputs` is of, for each group, in blocks (t, d) that can be gone through again and
        again; empty where they were not kept. `published` and `optimal` are solved from them where they are fewer
        than d.
    gradients
        Training moments of the gradients of a loss by y, of the layer or of each group of it: m features, of which
        `second_moment` is G = E[g g^T]. None where they were not accumulated.
    readers
        The layers that read its channels, with their weights for these and their gradients: what an error in a node
        costs. Empty where they are not known.
    unprunable
        Why its channels cannot be selected, as `watch` found; empty where they can be, or nobody looked.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> rng = np.random.default_rng(0)
    >>> layer = ds.Layer("fc", rng.normal(size=(10, 6)), None, inputs=ds.Moments.of(rng.normal(size=(200, 6))))
    >>> ds.dalr(layer).max_rank
    6
    """

    name: str
    weight: Weight
    bias: Weight | None
    inputs: InputMoments | None = None
    outputs: InputMoments | None = None
    nodes: Moments | None = None
    source_nodes: Moments | None = None
    heldout: InputMoments | None = None
    shards: Sequence[InputMoments] = ()
    rows: tuple[Iterable[NDArray[Any]], ...] = ()
    gradients: InputMoments | None = None
    readers: tuple[NodeReader, ...] = ()
    unprunable: str = ""

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or 0 in self.weight.shape:
            raise InvalidInputError(
                f"layer '{self.name}': weight must be a matrix of outputs x inputs, got shape {self.weight.shape}"
            )
        m, d = self.weight.shape
        if self.bias is not None and self.bias.shape != (m,):
            raise InvalidInputError(
                f"layer '{self.name}': bias must have {m} entries, one per output, got shape {self.bias.shape}"
            )
        groups = self.groups
        self._require_width("inputs", self.inputs, d * groups)
        self._require_width("heldout", self.heldout, d * groups)
        for name in ("outputs", "nodes", "source_nodes", "gradients"):
            self._require_width(name, getattr(self, name), m)
        if self.gradients is not None and len(self.gradients.parts) != groups:
            raise InvalidInputError(
                f"layer '{self.name}': gradients must be given for each of its {groups} groups, got "
                f"{len(self.gradients.parts)}"
            )
        if self.rows and len(self.rows) != groups:
            raise InvalidInputError(
                f"layer '{self.name}': rows must be given for each of its {groups} groups, got {len(self.rows)}"
            )
        if m % groups:
            raise InvalidInputError(f"layer '{self.name}': {m} outputs cannot be split into {groups} groups")

    def __repr__(self) -> str:
        m, d = self.weight.shape
        return f"Layer '{self.name}', {m} x {d}, with {', '.join(self._known()) or 'no moments'}"

    def _known(self) -> Iterable[str]:
        """Name what is known beyond the weights, without reading it."""
        beyond = (one.name for one in fields(Layer) if one.name not in {"name", "weight", "bias", "unprunable"})
        return [name for name in beyond if (value := getattr(self, name)) is not None and value != ()]

    @property
    def groups(self) -> int:
        """Groups of a convolution, of which each reads channels of its own; 1 for other layers."""
        known = (moments for moments in (self.inputs, self.outputs, self.gradients) if moments is not None)
        return next((len(grouped.parts) for grouped in known), 1)

    @property
    def parts(self) -> tuple[Layer, ...]:
        """The layer's groups as layers with weights, inputs and outputs of their own; itself where it has one."""
        g = self.groups
        if g == 1:
            return (self,)
        columns = (
            np.split(self.weight, g),
            [None] * g if self.bias is None else np.split(self.bias, g),
            [None] * g if self.inputs is None else self.inputs.parts,
            [None] * g if self.outputs is None else self.outputs.parts,
        )
        rows: list[tuple[Iterable[NDArray[Any]], ...]] = [(own,) for own in self.rows] or [()] * g
        gradients = [None] * g if self.gradients is None else self.gradients.parts
        parts = enumerate(zip(zip(*columns, strict=True), rows, gradients, strict=True))
        return tuple(
            Layer(group_name(self.name, number), *part, rows=own, gradients=by_outputs)
            for number, (part, own, by_outputs) in parts
        )

    def with_inputs(self, inputs: InputMoments) -> Layer:
        """Return weights and gradients with these training moments, the rows where they are of these, nothing else."""
        rows = self.rows if inputs is self.inputs else ()
        return Layer(self.name, self.weight, self.bias, inputs, rows=rows, gradients=self.gradients)

    @property
    def known_inputs(self) -> InputMoments:
        """`inputs`; raises InvalidInputError where they are None."""
        if self.inputs is None:
            raise InvalidInputError(
                f"layer '{self.name}': the moments of its inputs are needed but not known: accumulate with "
                "side='inputs'"
            )
        return self.inputs

    @property
    def known_nodes(self) -> Moments:
        """`nodes`; raises InvalidInputError where they are None, UnsupportedLayerError where they cannot be known."""
        if self.nodes is None:
            self._require_prunable()
            raise InvalidInputError(
                f"layer '{self.name}': the moments of its channels are needed but not known: watch the layers that "
                "read them too; a layer without such readers can be factored, but none of its nodes removed"
            )
        return self.nodes

    @property
    def known_source_nodes(self) -> Moments:
        """`source_nodes`; raises InvalidInputError where they are None."""
        if self.source_nodes is None:
            raise InvalidInputError(
                f"layer '{self.name}': the moments of its channels on a source domain are needed but not known: "
                "accumulate one, or give the source's layer"
            )
        return self.source_nodes

    @property
    def known_readers(self) -> tuple[NodeReader, ...]:
        """`readers`; raises InvalidInputError where there are none, UnsupportedLayerError where there cannot be any."""
        if not self.readers:
            self._require_prunable()
            raise InvalidInputError(
                f"layer '{self.name}': the layers that read its channels are needed but not known: watch them too, "
                "with an example"
            )
        return self.readers

    @property
    def known_gradients(self) -> InputMoments:
        """`gradients`; raises InvalidInputError where they are None."""
        if self.gradients is None:
            raise InvalidInputError(
                f"layer '{self.name}': the moments of its gradients are needed but not known: accumulate them too, "
                "watch(..., gradients=[...]) or network.gradients in a run file"
            )
        return self.gradients

    def _require_prunable(self) -> None:
        if self.unprunable:
            raise UnsupportedLayerError(self.unprunable)

    def _require_width(self, name: str, moments: InputMoments | None, features: int) -> None:
        if moments is not None and moments.features != features:
            raise InvalidInputError(
                f"layer '{self.name}': {name} must have {features} features for a weight of shape "
                f"{self.weight.shape}, got {moments.features}"
            )
