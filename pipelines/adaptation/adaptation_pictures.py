"""Figs. 2 and 3 of MoMaSP: accuracy on the target against the compression rate, over the repetitions."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from adaptation_tables import PUBLISHED_RATES, RATES, Figures

PICTURES: Mapping[str, Sequence[str]] = {
    "figure-2": ("target", "target/source", "target+source"),
    "figure-3": ("target", "node, strength 1", "subset, strength 1"),
}
"""What each shows."""
SIZE = (6.0, 4.0)


def draw(seeds: Sequence[Figures], folder: Path) -> list[Path]:
    """Write both pictures as PNG: mean +- standard deviation, as published, and the published means dashed."""
    written = []
    for name, rows in PICTURES.items():
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        for number, row in enumerate(rows):
            colour = f"C{number}"
            by_rate = list(zip(*(one["accuracies"][row] for one in seeds), strict=True))
            spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in by_rate]
            means = [statistics.mean(values) for values in by_rate]
            axes.errorbar(_percent(RATES), means, spreads, color=colour, capsize=3, label=row)
            if row in PUBLISHED_RATES:
                axes.plot(_percent(RATES), PUBLISHED_RATES[row], "--", color=colour, label=f"{row}, published")
        axes.set(xlabel="parameters removed (%)", ylabel="accuracy on the target (%)")
        axes.legend()
        path = folder / f"{name}.png"
        with mpl.rc_context({"savefig.dpi": 150}):
            figure.savefig(path, metadata={"Software": None})
        written.append(path)
    return written


def _percent(rates: Sequence[float]) -> list[float]:
    return [100 * rate for rate in rates]
