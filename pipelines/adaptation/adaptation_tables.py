"""The tables of MoMaSP's section 4: means over repetitions with their standard errors, the published figures below."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from spreads import mean_and_error

RATES = (0.96, 0.965, 0.97, 0.975, 0.98, 0.985)
FIRST = "generator.conv1"
PUBLISHED_RATES = {  # momasp.md, Table 2
    "target": (94.6, 94.0, 92.4, 90.2, 84.4, 68.7),
    "subset, strength 1": (95.0, 94.1, 93.7, 91.1, 83.3, 72.7),
    "node, strength 1": (95.2, 94.9, 94.3, 90.6, 89.3, 77.5),
}
PUBLISHED_SPECIFICITY = {  # momasp.md, Table 1
    "on source": {"source": 0.79, "target": 0.77, "none": 0.72},
    "on target": {"source": 0.65, "target": 0.84, "none": 0.71},
}
Figures = dict[str, Any]


def table(seeds: Sequence[Figures]) -> str:
    """Return the tables in Markdown: mean +- standard error over the repetitions, the published figure below."""
    lines = [f"Parameters: {seeds[0]['parameters']:,}. Repetitions: {len(seeds)}.\n"]
    lines += [
        f"- accuracy on the target, {name}: {spread([one['baseline'][name] for one in seeds])} %"
        for name in ("unadapted", "adapted")
    ]
    names = list(seeds[0]["accuracies"])
    accuracies = {name: [one["accuracies"][name] for one in seeds] for name in names}
    lines += ["", *_by_rate("accuracy (%) at compression rate", accuracies, PUBLISHED_RATES)]
    gains = {
        name: [[x - y for x, y in zip(*both, strict=True)] for both in zip(rows, accuracies["target"], strict=True)]
        for name, rows in accuracies.items()
        if name != "target"
    }
    lines += ["", *_by_rate("points over `target`, same repetition", gains, {})]
    lines += ["", *_head("repetitions above `target`")]
    for name, rows in gains.items():
        above = (sum(gain > 0 for gain in values) for values in zip(*rows, strict=True))
        lines.append(_row(name, (f"{count}/{len(rows)}" for count in above)))
    kept = {layer: [one["kept"][layer] for one in seeds] for layer in seeds[0]["kept"]}
    lines += ["", *_by_rate("nodes that `target` keeps at compression rate", kept, {})]
    lines += ["", "| mean activation rate | source nodes | target nodes | none |", "|---|---:|---:|---:|"]
    for layer, domains in seeds[0]["specificity"].items():
        for domain, groups in domains.items():
            cells = [spread([one["specificity"][layer][domain][group] for one in seeds], 2) for group in groups]
            lines.append(_row(f"{layer}, {domain}", cells))
            if layer == FIRST:
                lines.append(_published(f"first layer, {domain}", PUBLISHED_SPECIFICITY[domain].values()))
    return "\n".join(lines)


def _by_rate(
    title: str, rows: Mapping[str, Sequence[Sequence[float]]], published: Mapping[str, Sequence[float]]
) -> Iterator[str]:
    """Yield a table with a column for each rate; a row's values are by repetition, then by rate."""
    yield from _head(title)
    for name, repetitions in rows.items():
        yield _row(name, (spread(values) for values in zip(*repetitions, strict=True)))
        if name in published:
            yield _published(name, published[name])


def _head(title: str) -> tuple[str, str]:
    return _row(title, (f"{100 * rate:.1f}" for rate in RATES)), "|---|" + "---:|" * len(RATES)


def _row(name: str, cells: Iterable[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def _published(name: str, values: Iterable[float]) -> str:
    return _row(f"*{name}, published*", (f"*{value}*" for value in values))


def spread(values: Sequence[float | None], digits: int = 1) -> str:
    """Return mean +- standard error of the values that are there."""
    known = [value for value in values if value is not None]
    return mean_and_error(known, digits) if known else "no such nodes"
