"""Ratios on a noisy machine: the candidates take turns, and what is compared is the median of each one's turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A line of the table: seconds, and the ratio to the reference of the same run."""

    what: str
    seconds: float
    ratio: float
    bar: float | None = None
    note: str = ""


def race(candidates: Mapping[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Return the median seconds of each candidate over interleaved turns, after one turn to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(turns + 1):
        for name, run in candidates.items():
            begun = time.perf_counter()
            run()
            if turn or turns == 1:
                taken[name].append(time.perf_counter() - begun)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def against(reference: str, seconds: Mapping[str, float], bars: Mapping[str, float]) -> list[Row]:
    """Return the rows of a race, the reference first."""
    ordered = [reference, *(name for name in seconds if name != reference)]
    return [Row(name, seconds[name], seconds[name] / seconds[reference], bars.get(name)) for name in ordered]
