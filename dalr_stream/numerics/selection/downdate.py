"""What a few steps of a pivoted factorisation take from R and from R R, without touching either.

R is A + v v': what is left of the covariance, and of the mean, which are kept apart. Of features whose mean is 1e5
times their spread the sum has lost what tells one from another: 10 of its 16 digits. Taking node p subtracts
R_:p R_p: / R_pp from R, and that is (the Schur complement of [[A, v], [v', -1]], by blocks), with l = A_:p / sqrt(A_pp)
and c = v_p / sqrt(A_pp)

    A - l l',        s (v - c l) in place of v,        s = 1 / sqrt(1 + c^2)

With h = A l and w = h - ||l||^2 l / 2

    (A - l l')^2 = A A - l w' - w l',        A v becomes s (A v - c h - (l'v) l + c ||l||^2 l)

so a step needs one column of A and one of A A, and after some steps both are A_0 - L L' and A_0 A_0 - L W' - W L'.
Greedy selection compares ||R_:j||^2 / R_jj, in which ||R_:j||^2 = ||A_:j||^2 + 2 v_j (A v)_j + v_j^2 ||v||^2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dalr_stream.numerics.types import Indices, Mask, Matrix, Vector


@dataclass(slots=True, eq=False)
class MeanPart:
    """v, by position among the same nodes as a `Downdate`."""

    values: Vector
    """(s,): v."""
    image: Vector
    """(s,): A v."""
    squared: float
    """||v||^2 over all nodes, not these alone."""
    in_metric: Vector | None = None
    """(s,): M v, where inner products are in a metric; None where they are plain."""

    @property
    def seen(self) -> Vector:
        """M v, or v."""
        return self.values if self.in_metric is None else self.in_metric

    @classmethod
    def none(cls, size: int) -> MeanPart:
        """Of a centred matrix."""
        return cls(np.zeros(size), np.zeros(size), 0.0)

    def among(self, positions: Indices) -> MeanPart:
        """Return the same of these nodes alone."""
        return MeanPart(self.values[positions], self.image[positions], self.squared)

    def take(
        self, position: int, pivot: float, step: Vector, pushed: Vector, length: float, seen: Vector | None = None
    ) -> None:
        """Follow a step l of A, of squared length `length`, at the node of `pivot` A_pp; `pushed` is A l.

        `seen` is M l, without which M v is not followed.
        """
        root = np.sqrt(pivot)
        c, along = self.values[position] / root, self.image[position] / root
        s = 1.0 / np.sqrt(1.0 + c * c)
        self.image = s * (self.image - c * pushed + (c * length - along) * step)
        self.values = s * (self.values - c * step)
        self.in_metric = None if self.in_metric is None or seen is None else s * (self.in_metric - c * seen)
        self.squared = max(s * s * (self.squared - 2.0 * c * along + c * c * length), 0.0)
        self.values[position] = self.image[position] = 0.0

    def forget(self) -> None:
        """Take a node of which the mean alone is left: it explains the mean of all."""
        self.values, self.image, self.squared = np.zeros_like(self.values), np.zeros_like(self.image), 0.0
        self.in_metric = None if self.in_metric is None else np.zeros_like(self.values)


@dataclass(frozen=True, slots=True, eq=False)
class Gains:
    """What each node would explain, less what any of them would: the means' share may be 1e10 times the difference."""

    values: Vector
    """(s,): ||R_:j||^2 / R_jj - ||v||^2; 0 for nodes that were not asked for."""
    magnitude: Vector
    """(s,): what `values` are sums and differences of, added up: their rounding is a share of it."""
    shared: float
    """||v||^2."""


@dataclass(slots=True, eq=False)
class Downdate:
    """The steps so far, and the diagonals they lead to; `take` adds one.

    Everything goes by position among s nodes, which may be some of those that A_0 is about.
    """

    diagonal: Vector
    """(s,): A_jj now."""
    norms: Vector
    """(s,): ||A_:j||^2 now."""
    left: Matrix
    """(s, room), Fortran order: L, of which the first `steps` columns are set."""
    right: Matrix
    """W, alike."""
    mean: MeanPart
    """v."""
    steps: int = 0

    @classmethod
    def start(cls, diagonal: Vector, norms: Vector, room: int, mean: MeanPart | None = None) -> Downdate:
        """No steps yet, and room for `room` of them; without a mean R is A."""
        left, right = (np.zeros((diagonal.size, room), order="F") for _ in range(2))
        return cls(diagonal, norms, left, right, mean or MeanPart.none(diagonal.size))

    def among(self, positions: Indices) -> Downdate:
        """Return the same steps as these nodes alone see them."""
        left, right = (np.asfortranarray(matrix[positions]) for matrix in (self.left, self.right))
        mean = self.mean.among(positions)
        return Downdate(self.diagonal[positions], self.norms[positions], left, right, mean, self.steps)

    @property
    def remaining(self) -> Vector:
        """(s,): R_jj now."""
        return self.diagonal + self.mean.values**2

    def gains(self, slack: Vector, where: Mask) -> Gains:
        """||R_:j||^2 / R_jj of the nodes `where`; `slack` is added to R_jj."""
        v, own, norms = self.mean.values, self.diagonal + slack, np.maximum(self.norms, 0.0)
        shared = self.mean.squared
        if shared == 0.0 and not v.any():
            values = np.divide(norms, own, out=np.zeros(v.size), where=where)
            return Gains(values, values, 0.0)
        own = np.maximum(self.diagonal, 0.0) + slack  # what is left of A_jj may be rounding, of either sign
        whole, both, alone = own + v * v, 2.0 * v * self.mean.image, own * shared
        values, magnitude = np.zeros(v.size), np.zeros(v.size)
        np.divide(norms + both - alone, whole, out=values, where=where)
        np.divide(norms + np.abs(both) + alone, whole, out=magnitude, where=where)
        return Gains(values, magnitude, shared)

    def column(self, position: int, before: Vector) -> Vector:
        """A_:p, from what that column was `before` the first step. Cost: s multiply-adds per step."""
        left = self.left[:, : self.steps]
        now: Vector = before - left @ left[position]
        return now

    def length(self, position: int) -> float:
        """||l||^2: ||A_:p||^2 / A_pp."""
        return float(self.norms[position] / self.diagonal[position])

    def take(  # what is known of the column, each once
        self,
        position: int,
        column: Vector,
        squared: Vector,
        length: float,
        gone: Sequence[int] = (),
        seen: Vector | None = None,
    ) -> Vector:
        """Take the node at `position`; return l. Cost: 2 s multiply-adds per step.

        `column` is A_:p now, `squared` (A_0 A_0)_:p, and `length` ||l||^2 over all nodes, not these alone. Nodes `gone`
        have no entries left on paper: theirs in l and w are set to zero. In a metric M all inner products are in it:
        `squared` is of A_0 M A_0, `length` l'M l, and `seen` M l.
        """
        left, right = self.left[:, : self.steps], self.right[:, : self.steps]
        pivot = float(column[position])
        root = np.sqrt(pivot)
        step: Vector = column / root
        pushed = (squared - left @ right[position] - right @ left[position]) / root
        if gone:
            step[gone] = pushed[gone] = 0.0
        self.mean.take(position, pivot, step, pushed, length, seen)
        image = pushed - (0.5 * length) * step
        self.diagonal -= step * step
        self.norms -= 2.0 * step * image
        self.left[:, self.steps], self.right[:, self.steps] = step, image
        self.steps += 1
        return step
