"""Three seeds of `run.toml`, and the spread of what it claims: the table of docs/results/digits.md.

    python pipelines/digits/seeds.py [SEED ...]

A seed decides the glyphs, the training, and which digits are the 300 of the target. Each seed's run is kept in
`runs/digits-seed<N>`; what is there already is not done again.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence

import dalr_stream as ds
from digits_trained import run_of


def run_seed(seed: int) -> ds.Results:
    """Do, or find done, the run of one seed."""
    print(f"seed {seed}", file=sys.stderr)
    run = run_of(seed, visible=True)
    run.all()
    return run.results


def table(seeds: Sequence[ds.Results], layer: int) -> str:
    """Return one layer's table in Markdown: size and ratio to SVD at the allowed drop, a column a seed."""
    name = seeds[0].layers[layer].name
    names = [f"seed {found.provenance['configuration']['run']['seed']}" for found in seeds]
    lines = [f"| {name} | " + " | ".join(names) + " | ratio to SVD, median |"]
    lines.append("|---|" + "---:|" * (len(seeds) + 1))
    for row in range(len(seeds[0].layers[layer].headline)):
        rows = [found.layers[layer].headline[row] for found in seeds]
        ratios = [found.svd_ratio for found in rows if found.svd_ratio is not None]
        median = f"{statistics.median(ratios):.1f}" if len(ratios) == len(rows) else "not reached on every seed"
        cells = " | ".join(cell(row.size, row.svd_ratio) for row in rows)
        lines.append(f"| {ds.Method(rows[0].method).label} | {cells} | {median} |")
    return "\n".join(lines)


def cell(size: int | None, svd_ratio: float | None) -> str:
    """Return the smallest sufficient size and its ratio."""
    return "not reached" if size is None else f"{size} ({svd_ratio or float('nan'):.1f}x)"


def main(seeds: Sequence[int]) -> None:
    """Print the tables."""
    found = [run_seed(seed) for seed in seeds]
    baselines = ", ".join(f"{one.baseline_score:.2%}" for one in found)
    print(f"\nuncompressed accuracy, seeds {', '.join(map(str, seeds))}: {baselines}\n")
    for layer in range(len(found[0].layers)):
        print(table(found, layer) + "\n")


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [0, 1, 2])
