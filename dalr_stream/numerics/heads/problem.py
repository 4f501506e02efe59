"""An attention's four layers as what projections are solved from and judged by: who reads a head, and what is read.

Readers of keys are the queries, and of what the output layer reads its columns. Where the loss decides they are what it
feels: with g the gradient by the keys, an error e of a key costs about 1/2 (g'e)^2, so E[g g'] stands for E[q q']; and
W'G W for W'W, with G = E[g g'] by what the output layer gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.heads.pairs import keys_as_met
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.lowrank.ridge import Ridge
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.types import Matrix, Vector

NO_RIDGE = Ridge.relative(0.0)


class HeadProblem:
    """The four layers, each of the shape that the layout has for it."""

    def __init__(self, layers: Mapping[str, Layer], layout: HeadLayout, *, heldout: bool = False) -> None:
        """`heldout` takes the moments of the rows that nothing is fitted to. Raises InvalidInputError."""
        missing = [name for name in layout.layers if name not in layers]
        if missing:
            raise InvalidInputError(
                f"layer '{layout.output}': its attention needs {', '.join(layout.layers)}, and {', '.join(missing)} "
                "are not given"
            )
        self._layers = {name: layers[name] for name in layout.layers}
        self._layout = layout
        self._heldout = heldout
        whole, shared = layout.heads * layout.size, layout.groups * layout.size
        for name, rows in zip(layout.layers, (whole, shared, shared, None), strict=True):
            got = self._layers[name].weight.shape
            if (rows is not None and got[0] != rows) or (rows is None and got[1] != whole):
                side, needed = ("reads", whole) if rows is None else ("gives", rows)
                raise InvalidInputError(
                    f"layer '{name}': {side} {got[rows is None]} features, and heads of '{layout.output}' have {needed}"
                )

    def inputs(self, name: str) -> Moments:
        """Return the moments of what a layer reads."""
        layer = self._layers[name]
        found = layer.heldout if self._heldout else layer.inputs
        if found is None or found.count == 0:
            which = "inputs on held-out rows" if self._heldout else "inputs"
            raise InvalidInputError(
                f"layer '{name}': needs moments of its {which}, has none: accumulate them for all of "
                f"{', '.join(self._layout.layers)}{', with a held-out share' if self._heldout else ''}"
            )
        (moments,) = found.parts
        return moments

    def weight(self, name: str) -> Matrix:
        """Return a layer's weight in float64."""
        return self._layers[name].weight.astype(np.float64)

    def scores(self, felt: Matrix | None = None) -> Iterator[tuple[Matrix, Matrix]]:
        """Yield S and R of each group: queries about zero, as what they share counts, and keys about their mean.

        `felt` takes the place of what the queries are: E[g g'] by the keys. Where positions are rotated into keys they
        are as `pairs` says.
        """
        layout = self._layout
        readers = self._queries() if felt is None else _blocks(felt, layout.groups)
        keys, shift = self._given(layout.keys)
        means = shift.reshape(layout.groups, -1)
        for one, covariance, mean in zip(readers, _blocks(keys, layout.groups), means, strict=True):
            yield one, keys_as_met(covariance, mean, layout, turned=felt is None)

    def mixed(self, seen: Matrix, felt: Matrix | None = None) -> Iterator[tuple[Matrix, Matrix]]:
        """Yield S and R of each group, of what the output layer reads: `seen` is its second moment, Z.

        `felt` is the metric of what it gives: E[g g']; I without it.
        """
        layout = self._layout
        columns = np.split(self.weight(layout.output), layout.heads, axis=1)
        own = np.array([one.T @ (one if felt is None else felt @ one) for one in columns])
        readers = _summed((own + own.swapaxes(1, 2)) / 2, layout.shared)
        yield from zip(readers, _summed(_blocks(seen, layout.heads), layout.shared), strict=True)

    @property
    def knows_gradients(self) -> bool:
        """Whether it is known what the loss feels of keys and outputs."""
        return all(self._layers[name].gradients is not None for name in self._layout.felt)

    def felt(self, name: str, ridge: Ridge = NO_RIDGE) -> Matrix:
        """Return G = E[g g'] of a layer's output gradients; `ridge` is what an error counts where none was seen."""
        (gradients,) = self._layers[name].known_gradients.parts
        if gradients.count == 0:
            raise InvalidInputError(f"layer '{name}': gradients must come from at least one row, got none")
        gamma = ridge.of_moments(gradients, np.zeros(gradients.features)) / gradients.count
        return np.asarray(gradients.second_moment + gamma * np.eye(gradients.features))

    def rows_a_sample(self, name: str) -> float:
        """Return how many rows a layer reads of a sample."""
        moments = self.inputs(name)
        return moments.count / max(moments.samples, 1)

    def _queries(self) -> Matrix:
        layout = self._layout
        queries, shift = self._given(layout.queries)
        queries += np.outer(shift, shift)
        return _summed(_blocks(queries, layout.heads), layout.shared)

    def _given(self, name: str) -> tuple[Matrix, Vector]:
        """Return covariance and mean of what a layer gives."""
        weight, moments, bias = self.weight(name), self.inputs(name), self._layers[name].bias
        mean = weight @ moments.mean
        return weight @ moments.covariance @ weight.T, mean if bias is None else mean + bias


def _blocks(matrix: Matrix, count: int) -> Matrix:
    """(count, p, p): the blocks on the diagonal."""
    p = len(matrix) // count
    return np.array([matrix[first : first + p, first : first + p] for first in range(0, len(matrix), p)])


def _summed(blocks: Matrix, neighbours: int) -> Matrix:
    """Add up so many neighbours each."""
    p = blocks.shape[-1]
    return np.asarray(blocks.reshape(-1, neighbours, p, p).sum(axis=1))


def energy(weight: Matrix, moment: Matrix) -> float:
    """tr W Z W'."""
    return float(np.vdot(weight @ moment, weight))
