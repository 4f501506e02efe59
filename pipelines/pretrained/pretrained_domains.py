"""An ImageNet network on two target domains: plain rules, statistics of the wrong domain, and what `ds.sizes` finds.

    python pipelines/pretrained/pretrained_domains.py [SEED ...]

All 1 x 1 convolutions at a share of their weights, all at once; nothing is fine-tuned, and no label decides anything.
Scores are the shares of test pictures that are classified right: mean and standard deviation over the seeds.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dalr_stream as ds

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "shared")]

import pretrained_data  # noqa: E402
import pretrained_network  # noqa: E402
import pretrained_training  # noqa: E402
from dalr_stream.network import Replacement, accuracy  # noqa: E402

LAYERS = [r"re:blocks\.\d+\.(expand|project)\.conv", "last.conv"]
BUDGETS = (0.5, 0.3)
SAMPLES, TEST_SAMPLES = 700, 600
SEEDS = (0, 1, 2, 3, 4)
RULES: dict[str, tuple[ds.Method, bool]] = {
    "truncated SVD, the same share of each layer": (ds.Method.SVD, False),
    "SVD + bias compensation, likewise": (ds.Method.SVD_BC, False),
    "DALR, likewise, statistics of photographs": (ds.Method.DALR_ANCHORED_AFFINE, True),
    "DALR, likewise, statistics of the domain": (ds.Method.DALR_ANCHORED_AFFINE, False),
}
Scores = dict[str, list[float]]
"""The accuracy of each row of the table, a budget each."""


def plain(layers: Mapping[str, ds.Layer], method: ds.Method, share: float) -> dict[str, Replacement]:
    """Return every layer at the same share of its break-even rank."""
    found: dict[str, Replacement] = {}
    for name, layer in layers.items():
        m, d = layer.weight.shape
        found[name] = ds.solve(layer, method).at_rank(max(1, int(share * m * d / (m + d))))
    return found


def scores(domain: str, seed: int) -> Scores:
    """Train the head, stream the domain and the photographs through the network, and score every row of the table."""
    factory, classes = pretrained_data.DOMAINS[domain]
    model = pretrained_network.build(classes=classes)
    pretrained_training.train(model, seed=seed, report=_to_stderr, domain=domain, samples=SAMPLES)
    target, test = factory(seed=seed, samples=SAMPLES), factory(seed=seed, part="test", samples=TEST_SAMPLES)
    watched = ds.watch(model, LAYERS, example=next(iter(target)))
    known = ds.accumulate(model, target, watched)
    layers = {name: layer for name, layer in known.items() if layer.inputs is not None and name != "head"}
    there = ds.accumulate(model, pretrained_data.photographs(seed=seed, samples=SAMPLES), watched)
    distance = ds.OutputDistance(model, target)

    def score(replacements: Mapping[str, Replacement]) -> float:
        return accuracy(ds.compress(model, replacements, example=watched.structure), test)

    found: Scores = {"uncompressed": [accuracy(model, test)] * len(BUDGETS)}
    for words, (method, elsewhere) in RULES.items():
        chosen = {name: there[name] for name in layers} if elsewhere else layers
        found[words] = [score(plain(chosen, method, share)) for share in BUDGETS]
    for words, methods in (("`ds.sizes`, factor pairs alone", ["dalr_anchored_affine"]), ("`ds.sizes`", None)):
        options: dict[str, Any] = {} if methods is None else {"methods": methods}
        plans = ds.sizes(model, known, distance, BUDGETS, layers=list(layers), structure=watched.structure, **options)
        found[words] = [score(plan.replacements) for plan in plans]
    return found


def table(by_domain: Mapping[str, Sequence[Scores]]) -> Iterator[str]:
    """Yield the table in Markdown: a row a rule, a column a domain and budget."""
    heads = [f"{domain}, {share:.0%}" for domain in by_domain for share in BUDGETS]
    yield "| weights of the 1 x 1 convolutions | " + " | ".join(heads) + " |"
    yield "|---|" + "---:|" * len(heads)
    for words in next(iter(by_domain.values()))[0]:
        columns = [[seed[words][at] for seed in seeds] for seeds in by_domain.values() for at in range(len(BUDGETS))]
        yield f"| {words} | " + " | ".join(map(spread, columns)) + " |"


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, in per cent."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Print the table."""
    seeds = [int(seed) for seed in sys.argv[1:]] or SEEDS
    by_domain: dict[str, list[Scores]] = defaultdict(list)
    for domain in pretrained_data.DOMAINS:
        for seed in seeds:
            by_domain[domain].append(scores(domain, seed))
            _to_stderr("\n".join(f"{domain} {seed}: {words}: {row}" for words, row in by_domain[domain][-1].items()))
    print("\n".join(table(by_domain)))


if __name__ == "__main__":
    main()
