"""Orders of all nodes of a wide layer, and the greedy as one would write it down from the paper."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from timing import Row, race

import dalr_stream as ds

FULL, FIRST = 8.0, 0.5
"""Seconds on two cores: a full order at d = 4096, and its first 128."""


def correlated(d: int, seed: int) -> np.ndarray:
    """2 d rows of d correlated nodes after a ReLU, of which some are almost never active."""
    rng = np.random.default_rng(seed)
    hidden = np.maximum(rng.standard_normal((2 * d, 64)) @ rng.standard_normal((64, 512)), 0)
    mixed = hidden @ rng.standard_normal((512, d)) / 100 + 0.2 * rng.standard_normal((2 * d, d))
    return np.maximum(mixed - rng.uniform(0, 0.5, d), 0)


def orders(d: int, first: int, turns: int) -> list[Row]:
    """Every greedy selection, full and begun; seconds beside their bars, ratios to the first line."""
    target, source = (ds.Moments.of(correlated(d, seed)) for seed in (0, 1))
    runs: dict[str, Callable[[int | None], object]] = {
        "spectral": lambda limit: ds.spectral(target, limit=limit),
        "MoMaSP node": lambda limit: ds.momasp(target, source, form=ds.numerics.Form.NODE, limit=limit),
        "MoMaSP subset": lambda limit: ds.momasp(target, source, form=ds.numerics.Form.SUBSET, limit=limit),
    }
    rows = []
    for what, limit, bar in (("full", None, FULL), (f"first {first}", first, FIRST)):
        named = {f"{name}, {what}": (lambda run=run, limit=limit: run(limit)) for name, run in runs.items()}
        rows += [(name, seconds, bar) for name, seconds in race(named, turns).items()]
    return [Row(name, seconds, seconds / rows[0][1], bar) for name, seconds, bar in rows]


def as_written(d: int, turns: int) -> list[Row]:
    """Algorithm 1 with the retention of J + j made anew for each candidate j, at a size where that ends."""
    target = ds.Moments.of(correlated(d, 0))
    sigma = target.second_moment
    ours, naive = f"spectral at d = {d}", "r(J + j) anew for each j, ratio to the line above"
    seconds = race({ours: lambda: ds.spectral(target), naive: lambda: _every_inverse(sigma)}, turns)
    return [Row(name, taken, taken / seconds[ours]) for name, taken in seconds.items()]


def _every_inverse(sigma: np.ndarray) -> list[int]:
    taken: list[int] = []
    while len(taken) < len(sigma):
        left = [j for j in range(len(sigma)) if j not in taken]
        taken.append(left[int(np.argmax([_retention(sigma, [*taken, j]) for j in left]))])
    return taken


def _retention(sigma: np.ndarray, kept: list[int]) -> float:
    """tr(Sigma_FJ Sigma_JJ^-1 Sigma_JF) / tr(Sigma), momasp.md 3.1."""
    columns = sigma[:, kept]
    return float(np.trace(columns @ np.linalg.inv(sigma[np.ix_(kept, kept)]) @ columns.T) / np.trace(sigma))
