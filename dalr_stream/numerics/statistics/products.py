"""Products with a scatter matrix S = sum of (x - c)(x - c)', wherever it lies: in memory, on disk, or as the rows.

Error curves and the anchored regression read S by its products alone. So it is taken a block of rows at a time, and a
matrix of 5 GB on disk need not be in memory whole; where the rows are at hand and few, not even read. A block depends
on d alone, so a matrix gives the same bits from memory and from disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dalr_stream.numerics.types import Matrix, Vector

BLOCK_BYTES = 32 * 2**20
"""Of a block of rows of S in float64."""

BLOCK_FEATURES = 1024
"""Features whose rows are in float64 at a time while the Gram of rows is made: 50 MB for 6,000 rows."""

FEW_ROWS = 0.5
"""Of the features: fewer rows give a product in less time than the matrix does, at 4 n k d operations for 2 k d^2."""

Blocks = Callable[[], Iterator[Matrix]]
"""Yields S in blocks of `block_rows(d)` rows, from the first to the last."""


def block_rows(features: int) -> int:
    """Return how many rows of a d x d matrix are taken at a time: all of them up to 2,048 features."""
    return max(1, min(features, BLOCK_BYTES // (8 * features)))


class Products(Protocol):
    """What can be asked of S about a centre c (d,) without forming it."""

    def times(self, left: Matrix, centre: Vector) -> Matrix:
        """(k, d): left S, C order. Cost from a matrix 2 k d^2 operations, from n rows 4 n k d."""

    def congruence(self, left: Matrix, centre: Vector) -> Matrix:
        """(k, k): left S left', symmetric. Cost as of `times`, and no k x d beside `left`."""

    def forms(self, left: Matrix, right: Matrix, centre: Vector) -> Vector:
        """(k,): the diagonal of left S right'. Cost as of `times`, and no k x d beside the two."""

    def diagonal(self, centre: Vector) -> Vector:
        """(d,): of S."""


@dataclass(frozen=True, slots=True, eq=False)
class ByBlocks:
    """Products with a matrix about the mean of `count` rows, a block of its rows at a time."""

    count: int
    mean: Vector
    blocks: Blocks

    def times(self, left: Matrix, centre: Vector) -> Matrix:
        """Multiply by a block after the other: its rows are columns of the result."""
        total, delta = np.empty(left.shape), self.mean - centre
        moved = left @ (delta * self.count)
        for columns, block in self._numbered():
            total[:, columns] = left @ block.T
            if delta.any():
                total[:, columns] += np.outer(moved, delta[columns])
        return total

    def congruence(self, left: Matrix, centre: Vector) -> Matrix:
        """Multiply by a block, and what comes of it by the same columns of `left`."""
        total, moved = np.zeros((len(left),) * 2), left @ (self.mean - centre)
        for columns, block in self._numbered():
            total += (left @ block.T) @ left[:, columns].T
        total += np.outer(moved * self.count, moved)
        return symmetric(total)

    def forms(self, left: Matrix, right: Matrix, centre: Vector) -> Vector:
        """Do the same, and keep the diagonal alone."""
        delta = self.mean - centre
        total: Vector = self.count * (left @ delta) * (right @ delta)
        for columns, block in self._numbered():
            total += np.einsum("ij,ij->i", left @ block.T, right[:, columns])
        return total

    def diagonal(self, centre: Vector) -> Vector:
        """Read it off the blocks."""
        total: Vector = self.count * (self.mean - centre) ** 2
        for columns, block in self._numbered():
            total[columns] += np.diagonal(block[:, columns])
        return total

    def squares(self, centre: Vector) -> float:
        """||S||^2: with S = B + n delta delta' it is ||B||^2 + 2 n delta'B delta + n^2 ||delta||^4, all of one sign."""
        delta = self.mean - centre
        moved, total = self.count * float(delta @ delta), 0.0
        for columns, block in self._numbered():
            total += float(np.vdot(block, block)) + 2.0 * self.count * float(delta[columns] @ (block @ delta))
        return total + moved**2

    def matrix(self, centre: Vector) -> Matrix:
        """(d, d): S itself, a new array."""
        delta = self.mean - centre
        about = np.outer(delta * self.count, delta)
        for columns, block in self._numbered():
            about[columns] += block
        return about

    def _numbered(self) -> Iterator[tuple[slice, Matrix]]:
        first = 0
        for block in self.blocks():
            yield slice(first, first + len(block)), block
            first += len(block)


@dataclass(frozen=True, slots=True, eq=False)
class ByRows:
    """Products with the scatter of rows that can be gone through again and again, in blocks (t, d)."""

    rows: Iterable[NDArray[Any]]

    def times(self, left: Matrix, centre: Vector) -> Matrix:
        """Sum (left x')x."""
        total = np.zeros(left.shape)
        for x in self._about(centre):
            total += (left @ x.T) @ x
        return total

    def congruence(self, left: Matrix, centre: Vector) -> Matrix:
        """Sum (left x')(left x')'."""
        total = np.zeros((len(left),) * 2)
        for x in self._about(centre):
            seen = left @ x.T
            total += seen @ seen.T
        return symmetric(total)

    def forms(self, left: Matrix, right: Matrix, centre: Vector) -> Vector:
        """Sum the products of left x' and right x'."""
        total = np.zeros(len(left))
        for x in self._about(centre):
            total += np.einsum("ij,ij->i", left @ x.T, right @ x.T)
        return total

    def diagonal(self, centre: Vector) -> Vector:
        """Sum of squares."""
        total = np.zeros(centre.size)
        for x in self._about(centre):
            total += np.einsum("ij,ij->j", x, x)
        return total

    def _about(self, centre: Vector) -> Iterator[Matrix]:
        for block in self.rows:
            yield block - centre


def by_matrix(count: int, mean: Vector, scatter: Matrix) -> ByBlocks:
    """Return products with a matrix in memory, of which nothing is copied."""
    height = block_rows(mean.size)
    return ByBlocks(count, mean, lambda: (scatter[first : first + height] for first in range(0, len(scatter), height)))


def symmetric(matrix: Matrix) -> Matrix:
    """Half of `matrix` and its transpose: products that are symmetric on paper are so only to rounding."""
    return 0.5 * (matrix + matrix.T)
