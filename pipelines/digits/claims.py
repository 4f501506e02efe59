"""The papers' claims on the digits networks, over several seeds: the figures of docs/results/claims.md.

    python pipelines/digits/claims.py [SEED ...]

Five seeds by default. A seed decides the glyphs, the training and which digits are the target's 300. Its two networks
and its figures are kept in `runs/claims/seed<N>`, named by a digest of settings and code: what was made from the same
is not made again. All figures go to `runs/claims/claims.json`.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "shared")]

from claims_measures import CLAIMS, Quantities, solve  # noqa: E402
from claims_networks import Scale, domains  # noqa: E402
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
    """Return all quantities in Markdown: mean, standard deviation and range over the seeds; how many are above 0."""
    lines = []
    for claim in seeds[0]:
        lines += [f"\n**{claim.replace('_', ' ')}**\n", "| quantity | mean +- sd | range | above 0 |"]
        lines.append("|---|---:|---:|---:|")
        for name in seeds[0][claim]:
            lines.append(f"| {name} | {spread([one[claim][name] for one in seeds])} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Return the cells of one quantity. NaN, a size that no tried one reaches, is left out and counted."""
    known = [value for value in values if value == value]  # noqa: PLR0124 - NaN alone differs from itself
    if not known:
        return "not reached | |"
    deviation = f" +- {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    missing = f" ({len(known)} of {len(values)} seeds)" if len(known) < len(values) else ""
    above = f"{sum(value > 0 for value in known)}/{len(known)}"
    return f"{statistics.mean(known):.2f}{deviation}{missing} | {min(known):.2f} .. {max(known):.2f} | {above}"


def main(seeds: Sequence[int]) -> None:
    """Measure, print, keep."""
    found = [measure(seed, RUNS / f"seed{seed}", Scale()) for seed in seeds]
    (RUNS / "claims.json").write_text(json.dumps(dict(zip(map(str, seeds), found, strict=True)), indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or range(5))
