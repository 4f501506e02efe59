"""Every rank of one layer, beside the authors' formulas as written in numpy, which start over for each rank.

Theirs: the covariance of the rows, an explicit inverse of X X' + lam I and an SVD of Z, for one rank (Masana et al.
2017, Eqs. 10-11). The formulas take a d x d matrix; at d = 25,088 that is 5 GB and hours, so there they run at an
eighth of the width and are not scaled up.
"""

from __future__ import annotations

import warnings

import numpy as np
from timing import Row, against, race

from dalr_stream.errors import FewSamplesWarning
from dalr_stream.numerics.lowrank.factors import LowRankFactors
from dalr_stream.numerics.lowrank.from_rows import dalr_from_rows
from dalr_stream.numerics.lowrank.ridge import Ridge
from dalr_stream.numerics.lowrank.solvers import dalr, dalr_sweep
from dalr_stream.numerics.statistics.moments import Moments

TILE = 256
MANY = 64
"""Ranks of which one solve at the largest is the price."""


WIDE_BARS = {"anchored, from outputs": 15.0, "optimal, dual": 30.0, "published, dual": 30.0}


def layer_and_rows(n: int, m: int, d: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """A layer, and inputs with a decaying spectrum after a ReLU in tiles of float32."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((m, d), np.float32) / np.sqrt(d)
    mixing = rng.standard_normal((64, d), np.float32)
    tiles = []
    for start in range(0, n, TILE):
        t = min(TILE, n - start)
        rows = rng.standard_normal((t, 64), np.float32) @ mixing + 4 * rng.standard_normal((t, d), np.float32)
        tiles.append(np.maximum(rows, 0))
    return weight, tiles


def authors(weight: np.ndarray, x: np.ndarray, lam: float, ranks: tuple[int, ...]) -> list[tuple[np.ndarray, ...]]:
    """Eqs. 10 and 11 for each rank, as one would type them: X is d x n."""
    found = []
    for k in ranks:
        z = weight @ x
        u = np.linalg.svd(z @ z.T)[0]
        b = u[:, :k].T @ z @ x.T @ np.linalg.inv(x @ x.T + lam * np.eye(len(x)))
        found.append((u[:, :k], b))
    return found


def square(n: int, m: int, d: int, turns: int) -> list[Row]:
    """Every rank from moments, the first of them alone, and one rank of the authors' formulas."""
    weight, tiles = layer_and_rows(n, m, d)
    x = np.concatenate(tiles)
    moments, outputs = Moments.of(x), Moments.of(x @ weight.T)
    felt = Moments.of(np.random.default_rng(1).standard_normal((n, m), np.float32))
    doubles = x.T.astype(np.float64)
    lam = 1e-3 * float(np.mean(np.diagonal(moments.gram)))
    most = max(1, m // 16)
    first = {"max_rank": most}
    seconds = race(
        {
            "authors' formulas, one rank": lambda: authors(weight.astype(float), doubles, lam, (most,)),
            "published, all ranks": lambda: dalr(weight, None, moments, variant="published"),
            "optimal, all ranks": lambda: dalr(weight, None, moments, variant="optimal"),
            "anchored, all ranks": lambda: dalr(weight, None, moments),
            "weighted by gradients, all ranks": lambda: dalr(weight, None, moments, variant="weighted", gradients=felt),
            "anchored, from outputs": lambda: dalr(weight, None, outputs, side="outputs"),
            f"anchored, from outputs, to rank {most}": lambda: dalr(weight, None, outputs, side="outputs", **first),
            f"optimal, to rank {most}": lambda: dalr(weight, None, moments, variant="optimal", **first),
        },
        turns,
    )
    return against("authors' formulas, one rank", seconds, {})


def wide(n: int, m: int, d: int, most: int) -> list[Row]:
    """From m x m moments, and from n < d rows through the dual; bars in seconds, at full size."""
    weight, tiles = layer_and_rows(n, m, d)
    outputs = sum((Moments.of(rows @ weight.T) for rows in tiles), Moments.empty(m))
    small = d // 8
    doubles = np.concatenate([rows[:, :small] for rows in tiles]).T.astype(np.float64)
    peaks: dict[str, float] = {}
    seconds = race(
        {
            f"authors' formulas, one rank, {small:,} inputs": lambda: authors(weight[:, :small], doubles, 1.0, (most,)),
            "anchored, from outputs": lambda: dalr(weight, None, outputs, side="outputs", max_rank=most),
            "optimal, dual": lambda: by_dual(weight, tiles, "optimal", most),
            "published, dual": lambda: by_dual(weight, tiles, "published", most),
        },
        1,
        peaks,
    )
    reference = next(iter(seconds))
    return [Row(name, s, s / seconds[reference], WIDE_BARS.get(name), peaks[name]) for name, s in seconds.items()]


def by_dual(weight: np.ndarray, tiles: list[np.ndarray], variant: str, most: int) -> LowRankFactors:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamplesWarning)  # few rows are the point here
        return dalr_from_rows(weight, None, tiles, variant=variant, max_rank=most)


def many_ranks(n: int, m: int, d: int, turns: int) -> list[Row]:
    """64 ranks against one solve at the largest, and 8 ridges against 8 solves."""
    weight, tiles = layer_and_rows(n, m, d)
    moments = Moments.of(np.concatenate(tiles))
    largest = m // 4
    ranks = np.unique(np.linspace(1, largest, MANY).astype(int))
    ridges = [Ridge.relative(10.0**power) for power in range(-7, 1)]

    def solve_one() -> object:
        return dalr(weight, None, moments, max_rank=largest).at_rank(largest)

    def solve_many() -> object:
        factors = dalr(weight, None, moments, max_rank=largest)
        return [factors.at_rank(int(k)) for k in ranks]

    seconds = race(
        {
            "one solve at the largest rank": solve_one,
            f"{MANY} ranks": solve_many,
            "optimal at 8 ridges, one by one": lambda: [
                dalr(weight, None, moments, ridge=ridge, variant="optimal") for ridge in ridges
            ],
            "optimal at 8 ridges, swept": lambda: dalr_sweep(weight, None, moments, ridges, variant="optimal"),
        },
        turns,
    )
    return against("one solve at the largest rank", seconds, {f"{MANY} ranks": 1.1})
