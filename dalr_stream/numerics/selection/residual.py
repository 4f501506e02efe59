"""What is left of Sigma once some nodes are known: R = Sigma - Sigma_FJ Sigma_JJ^-1 Sigma_JF, one node at a time.

Taking node p subtracts l l' with l = R_:p / sqrt(R_pp): a pivoted Cholesky factorisation whose pivot somebody else
chooses. It explains ||R_:p||^2 / R_pp of the trace, so the greedy rule of spectral pruning needs the norms of all
columns of R after every step. `downdate` has them from one column of R and one of R R a step.

R itself is brought up to date once in BLOCK steps by one matrix product, and taken nodes are dropped then. A column of
R R is the whole of R times a vector: d^2 numbers read for as many operations, which is what made selection slow. So
these columns are made many at a time, by a matrix product again, for the nodes that are likely to be taken next: the
most promising dozens play the coming steps among themselves (`_foreseen`). A wrong guess costs time, nothing
else: whoever chooses, chooses by the gains of all nodes, and one nobody foresaw gets its column when it is taken.

The invariant: every gain handed out is right to GAIN_TOLERANCE of the largest. The recurrence cancels when a column
falls to little of what it was. What may have been lost is added up a step at a time (`_doubt`), and a node for which
it could matter has its norm recomputed from its column before anyone compares it.
"""

from __future__ import annotations

from concurrent.futures import Executor

import numpy as np

from dalr_stream.numerics.linalg.psd import EPSILON
from dalr_stream.numerics.selection.downdate import Downdate, Gains, MeanPart
from dalr_stream.numerics.selection.seen import doubts, seen_by
from dalr_stream.numerics.types import Indices, Mask, Matrix, Vector

BLOCK = 128
"""Steps between two updates of R: long enough for a matrix product at full speed, short enough to drop rows soon."""

AHEAD = 64
"""Columns of R R made at a time, at most. Reading R costs as much as 40 of them, but not many more are foreseen."""

HOPE = 4
"""Steps foreseen for each that came true of those foreseen last: few while the guesses are bad, AHEAD once they are
good. At d = 4096 one reading did for 8 to 20 of the first 128 steps, on the whole for 20 or more."""

PLAYERS = 4
"""Nodes that play for each step foreseen. Twice as many are wrong a little less often, and take longer over it."""

PART = 1024
"""Nodes in a share of that product; threads do shares at the same time. Borders depend on the number of nodes alone,
and so do the bits."""

ROWS, WAVE = 128, 8
"""Rows of R brought up to date by one thread, and how many such parts at a time: that many are held twice."""

EXPLAINED = 1e-12
"""A node with R_jj below this share of Sigma_jj explains nothing more. Relative to the node's own Sigma_jj, so the
scale of a feature does not matter; a few thousand subtractions leave about 1e-14 of rounding there."""

SIGMA_ROUNDING = 64 * EPSILON
"""Share of Sigma_jj that may be rounding to begin with. A pivot that is itself a small remainder spreads its rounding:
node j inherits (R_jp / R_pp)^2 of p's. With two almost parallel nodes taken (R_pp at 9e-5 of Sigma_pp) residuals that
were zero on paper stood at 3e-12 of Sigma_jj, above the fixed share; the sum kept here covers that."""

GAIN_TOLERANCE = 1e-10
"""Gains closer than this share of the largest are a tie: their difference may be rounding."""

CONTENDERS = 1e-3
"""Nodes whose gains are within this share of the largest, with what all would explain alike, say how large the terms
are whose differences are compared. Those of a node without a mean, beside others of 1e5, are of another kind."""


class SchurResidual:
    """R of Sigma = C + m m', with C (d, d) symmetric positive semi-definite, which it overwrites; nodes go one by one.

    Everything by node (`remaining`, `open`, gains) goes by *position* among the nodes still here; `nodes` maps
    positions to nodes, ascending. Positions change in `take`. Sigma is scaled to a trace of 1.

    At most `most` nodes are taken. `executor` shares what is large; BLAS should be held at one thread. In a metric M
    all gains are shares of tr(M Sigma), see `seen`.
    """

    def __init__(
        self, covariance: Matrix, mean: Vector | None, most: int, executor: Executor, metric: Matrix | None = None
    ) -> None:
        """`mean` is m; none for a centred selection. `metric` (d, d) is M; none for I."""
        d = covariance.shape[0]
        m = np.zeros(d) if mean is None else mean
        self.trace = float(np.trace(covariance) + m @ m)
        if self.trace > 0.0:
            covariance /= self.trace
            m = m / np.sqrt(self.trace)
        self.nodes: Indices = np.arange(d)
        self._matrix, self._executor = covariance, executor
        self._factor = np.zeros((d, most), order="F")
        self._steps = self._looked_at = 0
        self._seen, self.notes = seen_by(metric, covariance, m, BLOCK)
        self.energy = self.trace * self._seen.energy
        seen = self._seen.start(m)
        self._start_block(np.einsum("ij,ij->i", covariance, self._seen.whole(covariance)), m, covariance @ seen, seen)
        self._own = np.diagonal(covariance).copy()
        self._slack = SIGMA_ROUNDING * self._own
        self._rounding = self._slack + (SIGMA_ROUNDING * m) ** 2
        self.open: Mask = self.remaining > 0.0
        self.tie = 0.0
        """How far from the largest of the last `gains` one may lie that is the same but for rounding."""

    @property
    def remaining(self) -> Vector:
        """R_jj by position."""
        return self._block.remaining

    @property
    def factor(self) -> Matrix:
        """(d, r): L, columns in the order of taking, so that Sigma = L L' + R."""
        return self._factor[:, : self._steps]

    @property
    def left(self) -> float:
        """What is not explained yet, as a share of the whole."""
        steps = self._block.left[:, : self._block.steps]
        return self._seen.left(float(self.remaining[self.open].sum()), steps, self._block.mean.squared)

    def gains(self, candidates: Mask) -> Vector:
        """Share of the trace each candidate would explain, as far as it is sure; zero at other positions.

        Less what they would all explain alike, see `Downdate.gains`: to be compared with one another only.

        What is rounding in C_jj counts against node j. Where all gains are the same on paper, as before the last
        pick of rank-deficient input, the largest would otherwise belong to a node of which next to nothing is left.
        """
        gains = self._block.gains(self._slack, candidates)
        doubtful = self._doubtful(candidates, gains)
        if doubtful.size:
            self._recompute(doubtful)
            gains = self._block.gains(self._slack, candidates)
        self.tie = self._tie(candidates, gains)
        return gains.values

    def _tie(self, candidates: Mask, gains: Gains) -> float:
        """Return how far from the largest gain one may lie that is the same but for rounding.

        Where the mean alone is left, what is left of C_jj is rounding, and counts as such.
        """
        if gains.shared == 0.0:
            return GAIN_TOLERANCE * float(gains.values.max())
        values = np.where(candidates, gains.values, -np.inf)
        best = float(values.max())
        largest = max(best + gains.shared, 0.0)  # all that is left may be rounding, below zero
        near = np.flatnonzero(values >= best - CONTENDERS * largest)
        slack = self._slack[near]
        rounding = gains.shared * float((slack / (self.remaining[near] + slack)).min())
        return GAIN_TOLERANCE * min(float(gains.magnitude[near].max()), largest) + rounding

    def take(self, position: int, scores: Vector) -> float:
        """Take the node at `position`, which must be open; return the share of the trace it explains.

        `scores` (s,) by position are those it was chosen by, -inf where a node may not be taken. They say who is likely
        to follow, and change nothing else.
        """
        column = self._block.column(position, self._matrix[position])
        column[self._taken] = 0.0
        seen = self._seen.columns(position, column, self._block.left[position, : self._block.steps])
        pivot, mean = float(column[position]), self._block.mean
        own, plain = mean.values[position], seen is column
        in_sigma, seen_sigma = column + own * mean.values, None if plain else seen + own * mean.seen
        root = np.sqrt(in_sigma[position])
        if pivot > max(EXPLAINED * self._own[position], self._rounding[position]):
            self._step(position, column, seen, pivot, scores)
        else:  # the others' covariance has explained it, but not that it is no zero
            in_sigma, seen_sigma, root = own * mean.values, None if plain else own * mean.seen, abs(own)
            mean.forget()
            self._doubt_of_image[:] = 0.0
        in_sigma[self._taken] = 0.0
        self._taken.append(position)
        self.open &= self.remaining > np.maximum(EXPLAINED * self._own, self._rounding)
        self.open[position] = False
        in_sigma /= root
        self._factor[self.nodes, self._steps] = in_sigma * np.sqrt(self.trace)
        self._steps += 1
        self._end_block_if_due()
        return float(in_sigma @ (in_sigma if seen_sigma is None else seen_sigma / root))

    def _step(self, position: int, column: Vector, seen: Vector, pivot: float, scores: Vector) -> None:
        """Take the node from A and v; `seen` is M A_:p."""
        if position not in self._squared:
            self._look_ahead(position, scores)
        mean, before = self._block.mean, self._norms_before
        weight = abs(mean.values[position]) / np.sqrt(pivot + mean.values[position] ** 2)
        length, seen = float(column @ seen / pivot), seen / np.sqrt(pivot)
        self._seen.take(seen, self._block.steps)
        step = self._block.take(position, column, self._squared.pop(position), length, self._taken, seen)
        mean.squared = max(float(mean.values @ mean.seen), 0.0)
        spread = EPSILON * np.sqrt(before[position] / pivot) * np.sqrt(before)
        self._doubt += 2.0 * spread * np.abs(step)
        self._doubt_of_image += weight * spread
        self._rounding += step * step * (self._rounding[position] / pivot)

    def _doubtful(self, candidates: Mask, gains: Gains) -> Indices:
        """Positions of candidates whose gains might be wrong by more than the tolerance."""
        doubt = self._doubt
        if gains.shared > 0.0:
            doubt = doubt + 2.0 * np.abs(self._block.mean.values) * self._doubt_of_image
        return np.flatnonzero(candidates & (doubt > self._tie(candidates, gains) * self.remaining))

    def _recompute(self, positions: Indices) -> None:
        """Take norms and A v from the columns themselves: s b operations per column."""
        left, mean = self._block.left[:, : self._block.steps], self._block.mean
        for chunk in np.array_split(positions, -(-positions.size // BLOCK)):
            columns = self._matrix[chunk] - left[chunk] @ left.T
            columns[:, self._taken] = 0.0
            seen = self._seen.columns(chunk, columns, left[chunk])
            self._block.norms[chunk] = np.einsum("ij,ij->i", columns, seen)
            mean.image[chunk] = columns @ mean.seen
            found = doubts(columns, seen, self._block.norms[chunk], mean)
            self._doubt[chunk], self._doubt_of_image[chunk] = found

    def _look_ahead(self, position: int, scores: Vector) -> None:
        """Make (R_0 R_0)_:p for the node at `position` and for those likely to follow it, reading R_0 once."""
        ahead = [p for p in self._foreseen(position, scores) if p not in self._squared]
        size = self.nodes.size
        rows, products = self._seen.whole(self._matrix)[ahead], np.empty((len(ahead), size))

        def multiply(first: int) -> None:
            part = slice(first, first + PART)
            products[:, part] = rows @ self._matrix[:, part]

        for _ in self._executor.map(multiply, range(0, size, PART)):
            pass
        self._squared.update(zip(ahead, products, strict=True))

    def _reach(self) -> int:
        """How many steps to foresee."""
        came, self._looked_at = self._steps - self._looked_at, self._steps
        return min(HOPE * max(came, 1), AHEAD, BLOCK - self._block.steps)

    def _foreseen(self, position: int, scores: Vector) -> list[int]:
        """Positions in the order in which the nodes of the best scores would be taken, the one at `position` first.

        They play among themselves, so a step costs little; what is taken off their gains stays as it is.
        """
        ranked = np.argsort(-np.where(np.arange(scores.size) == position, np.inf, scores), kind="stable")
        reach = self._reach()
        players = ranked[: min(PLAYERS * reach, np.count_nonzero(scores > -np.inf))]
        off = (self._block.gains(self._slack, self.open).values - scores)[players]
        floor, slack = EXPLAINED * self._own[players], np.zeros(players.size)
        rows = self._matrix[players]
        whole = self._seen.whole(self._matrix)
        small, squared = rows[:, players], (rows if whole is self._matrix else whole[players]) @ rows.T
        block, played = self._block.among(players), [0]
        for _ in range(reach - 1):
            p = played[-1]
            block.take(p, block.column(p, small[p]), squared[p], block.length(p))
            off[p] = np.inf
            here = (off < np.inf) & (block.diagonal > floor)
            if not here.any():
                break
            played.append(int(np.argmax(np.where(here, block.gains(slack, here).values - off, -np.inf))))
        return [int(p) for p in players[played]]

    def _end_block_if_due(self) -> None:
        """Bring R up to date where the block is full, or where that is cheaper than recomputing many norms."""
        if self._steps == self._factor.shape[1] or not self.open.any():
            return
        if (
            self._block.steps == BLOCK
            or self._doubtful(self.open, self._block.gains(self._slack, self.open)).size > BLOCK
        ):
            self._end_block()

    def _end_block(self) -> None:
        """Subtract L L' and drop the taken nodes, within the memory of R.

        Rows are written in order, each after it was read, so that none moves past one still to be read.
        """
        keep = np.delete(np.arange(self.nodes.size), self._taken)
        left = self._block.left[keep, : self._block.steps]
        matrix = self._matrix.reshape(-1)[: keep.size**2].reshape(keep.size, keep.size)
        mean, norms, image = self._block.mean.values[keep], np.empty(keep.size), np.empty(keep.size)

        def update(part: slice) -> tuple[slice, Matrix, Vector, Vector]:
            rows = self._matrix[keep[part]].take(keep, axis=1)
            rows -= left[part] @ left.T
            return part, rows, np.einsum("ij,ij->i", rows, rows), rows @ mean

        parts = [slice(first, first + ROWS) for first in range(0, keep.size, ROWS)]
        for wave in range(0, len(parts), WAVE):
            for part, rows, squares, images in self._executor.map(update, parts[wave : wave + WAVE]):
                matrix[part], norms[part], image[part] = rows, squares, images
        self._matrix = matrix
        self.nodes, self.open = self.nodes[keep], self.open[keep]
        self._own, self._slack, self._rounding = self._own[keep], self._slack[keep], self._rounding[keep]
        self._seen.compact(keep, left)
        seen = self._block.mean.seen[keep]
        if (whole := self._seen.whole(matrix)) is not matrix:
            norms, image = np.einsum("ij,ij->i", matrix, whole), matrix @ seen
        self._start_block(norms, mean, image, seen)

    def _start_block(self, norms: Vector, mean: Vector, image: Vector, seen: Vector) -> None:
        whole = self._seen.whole(self._matrix)
        part = MeanPart(mean, image, float(mean @ seen), None if whole is self._matrix else seen)
        self._block = Downdate.start(np.diagonal(self._matrix).copy(), norms, BLOCK, part)
        self._doubt, self._doubt_of_image = doubts(self._matrix, whole, norms, part)
        self._norms_before = self._doubt / EPSILON
        self._taken: list[int] = []
        self._squared: dict[int, Vector] = {}
