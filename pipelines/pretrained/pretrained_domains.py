"""An ImageNet network on two target domains: every method at half and at 30 % of its weights, over five seeds.

    python pipelines/pretrained/pretrained_domains.py [SEED ...] [--sizes]

Prints the tables of docs/results/pretrained.md: means and standard errors over the seeds, five by default. Each row of
a seed is kept in `runs/pretrained` and not measured again by the same settings and code, so an interrupted run goes on
there; the picture is drawn there too. `--sizes` adds what `ds.sizes` finds: half a minute of one core more each.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "shared")]

import pretrained_data  # noqa: E402
from kept_results import digest_of, kept_figures  # noqa: E402
from pretrained_measures import PARTS, SIZES, UNCOMPRESSED, WAYS, Measured, Row, Scale  # noqa: E402

RUNS = HERE.parents[1] / "runs" / "pretrained"
SEEDS = (0, 1, 2, 3, 4)
Seeds = Sequence[Mapping[str, Row]]
"""The rows of each seed of one domain."""


def accuracies(by_domain: Mapping[str, Seeds], budgets: Sequence[float]) -> Iterator[str]:
    """Yield the table of test accuracy in Markdown: a row a method, a column a domain and budget."""
    columns = [("accuracy", at, f"{share:.0%}") for at, share in enumerate(budgets)]
    columns.append(("finetuned", 0, f"{budgets[-1]:.0%}, fine-tuned"))
    yield from _table(by_domain, columns, "weights of the 21 layers")


def agreements(by_domain: Mapping[str, Seeds], budgets: Sequence[float]) -> Iterator[str]:
    """Yield the table of agreement with the uncompressed network on photographs."""
    yield from _table(
        by_domain, [("agreement", at, f"{share:.0%}") for at, share in enumerate(budgets)], "weights of the 21 layers"
    )


def further(by_domain: Mapping[str, Seeds], budgets: Sequence[float]) -> Iterator[str]:
    """Yield what DALR loses of the features' variance, of each domain and of photographs."""
    yield "| DALR, its own statistics | " + " | ".join(f"{share:.0%}" for share in budgets) + " |"
    yield "|---|" + "---:|" * len(budgets)
    rows = {domain: [one["domain"]["lost"] for one in seeds] for domain, seeds in by_domain.items()}
    rows["photographs"] = [one["photographs"]["lost"] for one in next(iter(by_domain.values()))]
    for words, seeds in rows.items():
        yield f"| {words} | " + " | ".join(spread(column) for column in zip(*seeds, strict=True)) + " |"


def _table(by_domain: Mapping[str, Seeds], columns: Sequence[tuple[str, int, str]], corner: str) -> Iterator[str]:
    heads = [f"{domain}, {words}" for domain in by_domain for _, _, words in columns]
    yield f"| {corner} | " + " | ".join(heads) + " |"
    yield "|---|" + "---:|" * len(heads)
    for words in _rows_in(by_domain):
        found = [
            [one[words][quantity][at] for one in seeds if quantity in one[words]]
            for seeds in by_domain.values()
            for quantity, at, _ in columns
        ]
        if any(found):
            yield f"| {words} | " + " | ".join(map(spread, found)) + " |"


def _rows_in(by_domain: Mapping[str, Seeds]) -> list[str]:
    return [words for words in (UNCOMPRESSED, *WAYS, SIZES) if words in next(iter(by_domain.values()))[0]]


def spread(values: Sequence[float]) -> str:
    """Mean and standard error, in per cent."""
    if not values:
        return ""
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values) / len(values) ** 0.5:.1f}"


def draw(by_domain: Mapping[str, Seeds], budgets: Sequence[float], file: Path) -> None:
    """Draw accuracy by method and budget, a panel a domain."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(by_domain), figsize=(9, 3.6), sharey=True, squeeze=False)
    for panel, (domain, seeds) in zip(panels[0], by_domain.items(), strict=True):
        rows = _rows_in(by_domain)[:0:-1]
        for at, share in enumerate(budgets):
            means = [100 * statistics.mean(one[words]["accuracy"][at] for one in seeds) for words in rows]
            places = [place + 0.38 * (0.5 - at) for place in range(len(rows))]
            panel.barh(places, means, height=0.36, label=f"{share:.0%} of the weights")
        whole = 100 * statistics.mean(one[UNCOMPRESSED]["accuracy"][0] for one in seeds)
        panel.axvline(whole, color="black", linewidth=1, linestyle="--", label="uncompressed")
        panel.set_yticks(range(len(rows)), [words.strip("`") for words in rows])
        panel.set_title(domain)
        panel.set_xlabel("test accuracy (%)")
        panel.set_xlim(0, 100)
    panels[0][-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def rows_of(domain: str, seed: int, scale: Scale, *, sizes: bool) -> dict[str, Row]:
    """Measure what is not kept of one domain and seed, with the row of `ds.sizes` or without."""
    found: dict[str, Row] = {}
    prepared = cache(partial(Measured.of, domain, seed, scale))
    for (words, quantity), part in PARTS.items():
        if words == SIZES and not sizes:
            continue
        settings = {"domain": domain, "seed": seed, "row": words, "quantity": quantity, **asdict(scale)}
        figures = kept_figures(
            RUNS / domain / f"seed{seed}", digest_of(settings, Measured.of), lambda part=part: part(prepared())
        )
        print(f"{domain}, seed {seed}: {words}: {figures}", file=sys.stderr, flush=True)
        found[words] = found.get(words, {}) | figures
    return found


def main() -> None:
    """Measure what is not kept, print the tables, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", metavar="SEED", type=int, nargs="*", help="five by default")
    parser.add_argument("--sizes", action="store_true", help="add the networks that ds.sizes finds")
    asked, scale = parser.parse_args(), Scale()
    by_domain: dict[str, list[dict[str, Row]]] = {}
    for seed in asked.seeds or SEEDS:
        for domain in pretrained_data.DOMAINS:
            by_domain.setdefault(domain, []).append(rows_of(domain, seed, scale, sizes=asked.sizes))
    for table in (accuracies, agreements, further):
        print("\n".join(table(by_domain, scale.budgets)) + "\n")
    draw(by_domain, scale.budgets, RUNS / "accuracy.png")


if __name__ == "__main__":
    main()
