"""Ratios on a noisy machine: the candidates take turns, and what is compared is the median of each one's turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """A line of the table: seconds, and the ratio to the reference of the same run."""

    what: str
    seconds: float
    ratio: float
    bar: float | None = None
    peak_mib: float | None = None
    """Held at the peak beyond what was held before."""


def race(
    candidates: Mapping[str, Callable[[], object]],
    turns: int,
    peaks: dict[str, float] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return the median seconds of each candidate over interleaved turns, after one turn to warm up.

    `peaks` is filled with the MiB each one held beyond what was held before. `clock` may be that of the process's CPU,
    where one candidate uses more threads than another.
    """
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(turns + 1):
        for name, run in candidates.items():
            before = _mib("VmRSS") if peaks is not None else 0.0
            begun = clock()
            run()
            if turn or turns == 1:
                taken[name].append(clock() - begun)
            if peaks is not None:
                peaks[name] = _mib("VmHWM") - before
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _mib(field: str) -> float:
    """Return a figure of this process, and start the high-water mark anew when its contents are read."""
    if field == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def against(reference: str, seconds: Mapping[str, float], bars: Mapping[str, float]) -> list[Row]:
    """Return the rows of a race, the reference first."""
    ordered = [reference, *(name for name in seconds if name != reference)]
    return [Row(name, seconds[name], seconds[name] / seconds[reference], bars.get(name)) for name in ordered]
