"""MoMaSP's section 4 on printed and handwritten digits: the tables of docs/results/adaptation.md.

    python pipelines/adaptation/experiment.py [SEED ...] [--pair svhn mnist]

Five repetitions by default. A seed decides the weights, the training and the glyphs. Its network and figures are kept
in `runs/adaptation/<pair>/seed<N>` and not made again; all go to `runs/adaptation/<pair>/adaptation.json`.
Settings were chosen by `experiment.py 100 --pair glyphs validation`, which sees none of the test digits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "shared")]

from adaptation_data import source_statistics, target_statistics, target_test  # noqa: E402
from adaptation_network import AdaptationNetwork, build  # noqa: E402
from adaptation_selection import (  # noqa: E402
    ALONE,
    Selections,
    Statistics,
    compressed,
    parameters,
    sizes_at_rate,
    specificity,
)
from adaptation_training import STEPS, train  # noqa: E402
from dalr_stream.network import Structure, accuracy, load_weights, save_weights  # noqa: E402
from labelled_batches import Batches  # noqa: E402

RUNS = HERE.parents[1] / "runs" / "adaptation"
RATES = (0.96, 0.965, 0.97, 0.975, 0.98, 0.985)
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
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


def trained(seed: int, folder: Path, pair: Mapping[str, str], options: Mapping[str, Any]) -> AdaptationNetwork:
    """Return the adapted network of a seed: read where it was trained before."""
    network, file = build(**pair), folder / "network.safetensors"
    if file.exists():
        load_weights(network, file)
    else:
        train(network, seed=seed, report=print, **pair, **options)
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(network, file)
    network.eval()
    return network


def candidates(found: Statistics) -> Iterator[tuple[str, Selections]]:
    """Yield every selection that is compared, by name."""
    for setting in found.settings:
        yield setting, found.spectral(setting)
    dense = {layer: one for layer, one in found.spectral("target").items() if ".fc" in layer}
    yield "target, dense layers only", dense
    for form in ("node", "subset"):
        for strength in STRENGTHS:
            yield f"{form}, strength {strength:g}", found.momasp(form, strength)
        yield f"{form}, alone", found.momasp(form, ALONE)


def measure(seed: int, folder: Path, pair: Mapping[str, str], options: Mapping[str, Any]) -> Figures:
    """Return the figures of one repetition: read where they were measured before."""
    file = folder / "figures.json"
    if not file.exists():
        network = trained(seed, folder, pair, options)
        unadapted = build(**pair)
        train(unadapted, seed=seed, report=print, **pair, **{**options, "warm_up": options.get("steps", STEPS)})
        test = target_test(seed=seed, **pair)
        figures = {
            "parameters": parameters(network, {}),
            "baseline": {"unadapted": _percent(unadapted, test), "adapted": _percent(network, test)},
            **_compressed_figures(
                network, target_statistics(seed=seed, **pair), source_statistics(seed=seed, **pair), test
            ),
        }
        file.write_text(json.dumps(figures, indent=1) + "\n")
    found: Figures = json.loads(file.read_text())
    return found


def _compressed_figures(network: AdaptationNetwork, target: Batches, source: Batches, test: Batches) -> Figures:
    found, model = Statistics.of(network, target, source), Structure.of(network, target.inputs)
    accuracies, kept = {}, {}
    for name, selections in candidates(found):
        kept[name] = [sizes_at_rate(network, selections, rate) for rate in RATES]
        accuracies[name] = [_percent(compressed(model, selections, sizes).eval(), test) for sizes in kept[name]]
    return {
        "accuracies": accuracies,
        "kept": {layer: [sizes[layer] for sizes in kept["target"]] for layer in found.source},
        "specificity": {
            layer: specificity(on_target, found.source[layer], kept["target"][0][layer])
            for layer, on_target in found.settings["target"].items()
        },
    }


def _percent(network: Any, rows: Any) -> float:
    return 100 * accuracy(network, rows)


def table(seeds: Sequence[Figures]) -> str:
    """Return the tables in Markdown: mean +- standard deviation over the repetitions, the published figure below."""
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
    yield _row(title, (f"{100 * rate:.1f}" for rate in RATES))
    yield "|---|" + "---:|" * len(RATES)
    for name, repetitions in rows.items():
        yield _row(name, (spread(values) for values in zip(*repetitions, strict=True)))
        if name in published:
            yield _published(name, published[name])


def _row(name: str, cells: Iterable[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def _published(name: str, values: Iterable[float]) -> str:
    return _row(f"*{name}, published*", (f"*{value}*" for value in values))


def spread(values: Sequence[float | None], digits: int = 1) -> str:
    """Return mean +- standard deviation of the values that are there."""
    known = [value for value in values if value is not None]
    if not known:
        return "no such nodes"
    deviation = f" +- {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{deviation}"


def main(arguments: Sequence[str]) -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("seeds", nargs="*", type=int, default=range(5))
    parser.add_argument("--pair", nargs=2, default=("glyphs", "digits"), metavar=("SOURCE", "TARGET"))
    asked = parser.parse_args(arguments)
    pair = dict(zip(("source", "target"), asked.pair, strict=True))
    folder = RUNS / "-".join(asked.pair)
    found = [measure(seed, folder / f"seed{seed}", pair, {}) for seed in asked.seeds]
    kept = {str(seed): figures for seed, figures in zip(asked.seeds, found, strict=True)}
    (folder / "adaptation.json").write_text(json.dumps(kept, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main(sys.argv[1:])
