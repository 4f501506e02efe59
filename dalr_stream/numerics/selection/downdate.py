"""What a few steps of a pivoted factorisation take from R and from R R, without touching either.

Taking node p subtracts l l' from R. With l = R_:p / sqrt(R_pp) and w = (R R)_:p / sqrt(R_pp) - ||l||^2 l / 2

    R - l l',        (R - l l')^2 = R R - l w' - w l'

so a step needs one column of R and one of R R, and after some steps both are R_0 - L L' and R_0 R_0 - L W' - W L'.
The second one's diagonal holds the squared norms of all columns of R, which are what greedy selection compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dalr_stream.numerics.types import Indices, Matrix, Vector


@dataclass(slots=True, eq=False)
class Downdate:
    """The steps so far, and the diagonals they lead to; `take` adds one.

    Everything goes by position among s nodes, which may be some of those that R_0 is about.
    """

    diagonal: Vector
    """(s,): R_jj now."""
    norms: Vector
    """(s,): ||R_:j||^2 now."""
    left: Matrix
    """(s, room), Fortran order: L, of which the first `steps` columns are set."""
    right: Matrix
    """W, alike."""
    steps: int = 0

    @classmethod
    def start(cls, diagonal: Vector, norms: Vector, room: int) -> Downdate:
        """No steps yet, and room for `room` of them."""
        left, right = (np.zeros((diagonal.size, room), order="F") for _ in range(2))
        return cls(diagonal, norms, left, right)

    def among(self, positions: Indices) -> Downdate:
        """Return the same steps as these nodes alone see them."""
        left, right = (np.asfortranarray(matrix[positions]) for matrix in (self.left, self.right))
        return Downdate(self.diagonal[positions], self.norms[positions], left, right, self.steps)

    def column(self, position: int, before: Vector) -> Vector:
        """R_:p, from what that column was `before` the first step. Cost: s multiply-adds per step."""
        left = self.left[:, : self.steps]
        now: Vector = before - left @ left[position]
        return now

    def gain(self, position: int) -> float:
        """||R_:p||^2 / R_pp, which is ||l||^2."""
        return float(self.norms[position] / self.diagonal[position])

    def take(self, position: int, column: Vector, squared: Vector, gain: float, gone: Sequence[int] = ()) -> Vector:
        """Take the node at `position`; return l. Cost: 2 s multiply-adds per step.

        `column` is R_:p now, `squared` (R_0 R_0)_:p, and `gain` ||l||^2 over all nodes, not these alone. Nodes `gone`
        have no entries left on paper: theirs in l and w are set to zero.
        """
        left, right = self.left[:, : self.steps], self.right[:, : self.steps]
        root = np.sqrt(column[position])
        step: Vector = column / root
        image = (squared - left @ right[position] - right @ left[position]) / root
        image -= (0.5 * gain) * step
        if gone:
            step[gone] = image[gone] = 0.0
        self.diagonal -= step * step
        self.norms -= 2.0 * step * image
        self.left[:, self.steps], self.right[:, self.steps] = step, image
        self.steps += 1
        return step
