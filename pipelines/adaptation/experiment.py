r"""MoMaSP's section 4 on printed and handwritten digits: the tables of docs/results/adaptation.md.

    python pipelines/adaptation/experiment.py [SEED ...]
    python pipelines/adaptation/experiment.py --repeats 10 --pair mnist-5000 digits
    python pipelines/adaptation/experiment.py --repeats 10 --pair svhn mnist --width 2048 --steps 20000 --warm-up 2000 \
        --batch-size 128

Five repetitions by default, of seeds 0 to 4. A seed decides the weights, the training and the glyphs. Its network and
figures are kept in `runs/adaptation/<pair>/seed<N>`, named by a digest of settings and code: what was made from the
same is not made again. All go to `runs/adaptation/<pair>/adaptation.json`, and Figs. 2 and 3 as pictures beside it.
Settings were chosen by `experiment.py 100 --pair glyphs validation`, which sees none of the test digits.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "shared")]

from adaptation_data import source_statistics, target_statistics, target_test  # noqa: E402
from adaptation_network import AdaptationNetwork, build  # noqa: E402
from adaptation_pictures import draw  # noqa: E402
from adaptation_selection import (  # noqa: E402
    ALONE,
    Selections,
    Statistics,
    compressed,
    in_turn,
    parameters,
    sizes_at_rate,
    specificity,
)
from adaptation_tables import RATES, Figures, table  # noqa: E402
from adaptation_training import STEPS, train  # noqa: E402
from dalr_stream.network import Structure, accuracy  # noqa: E402
from kept_results import digest_of, kept_figures, kept_weights  # noqa: E402
from labelled_batches import Batches  # noqa: E402

RUNS = HERE.parents[1] / "runs" / "adaptation"
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
IN_TURN = {"target": "spectral", "node, strength 1": "momasp_node", "subset, strength 1": "momasp_subset"}
"""Selections that are also done one layer after the other, at the sizes that they have at once."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured: the data sets, and what differs from the defaults of `build` and of `train`."""

    pair: Mapping[str, str]
    """`source` and `target`; `root` where the data sets lie elsewhere."""
    network: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    def digest(self, seed: int, *functions: Callable[..., Any]) -> str:
        """Of these settings, a seed and the code of functions."""
        return digest_of({"seed": seed, **asdict(self)}, *functions)


def trained(seed: int, folder: Path, settings: Settings, *, adapted: bool = True) -> AdaptationNetwork:
    """Return the network of a seed, adapted or trained on the source alone: read where it was trained before."""
    network = build(**settings.pair, **settings.network)
    options = dict(settings.training)
    if not adapted:
        options["warm_up"] = options.get("steps", STEPS)

    def teach() -> None:
        train(network, seed=seed, report=print, **settings.pair, **options)

    name = "adapted" if adapted else "unadapted"
    kept_weights(folder, settings.digest(seed, build, train), {name: network}, teach)
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


def measure(seed: int, folder: Path, settings: Settings) -> Figures:
    """Return the figures of one repetition: read where they were measured before."""
    found: Figures = kept_figures(folder, settings.digest(seed, measure), lambda: _measured(seed, folder, settings))
    return found


def _measured(seed: int, folder: Path, settings: Settings) -> Figures:
    network, unadapted = (trained(seed, folder, settings, adapted=adapted) for adapted in (True, False))
    target, source, test = (
        rows(seed=seed, **settings.pair) for rows in (target_statistics, source_statistics, target_test)
    )
    return {
        "settings": asdict(settings),
        "parameters": parameters(network, {}),
        "baseline": {"unadapted": _percent(unadapted, test), "adapted": _percent(network, test)},
        **_compressed_figures(network, target, source, test),
    }


def _compressed_figures(network: AdaptationNetwork, target: Batches, source: Batches, test: Batches) -> Figures:
    found, model = Statistics.of(network, target, source), Structure.of(network, target.inputs)
    accuracies, kept = {}, {}
    for name, selections in candidates(found):
        kept[name] = [sizes_at_rate(network, selections, rate) for rate in RATES]
        accuracies[name] = [_percent(compressed(model, selections, sizes).eval(), test) for sizes in kept[name]]
    for name, method in IN_TURN.items():
        small = (in_turn(network, method, sizes, target, source) for sizes in kept.get(name, ()))
        accuracies[f"{name}, layer after layer"] = [_percent(one.eval(), test) for one in small]
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


def main(arguments: Sequence[str]) -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("seeds", nargs="*", type=int)
    parser.add_argument("--repeats", type=int, default=5, help="seeds 0 to N - 1, where none are named")
    parser.add_argument("--pair", nargs=2, default=("glyphs", "digits"), metavar=("SOURCE", "TARGET"))
    parser.add_argument("--root", help="folder that holds `svhn` and `mnist`, in place of data/")
    parser.add_argument("--width", type=int, help="of the dense layers")
    parser.add_argument("--steps", type=int, help="of the training in all")
    parser.add_argument("--warm-up", type=int, help="the first steps, on the source alone")
    parser.add_argument("--batch-size", type=int, help="rows of each domain a step")
    asked = parser.parse_args(arguments)
    training = {"steps": asked.steps, "warm_up": asked.warm_up, "batch_size": asked.batch_size}
    settings = Settings(
        pair=_named({"source": asked.pair[0], "target": asked.pair[1], "root": asked.root}),
        network=_named({"width": asked.width}),
        training=_named(training),
    )
    folder = RUNS / "-".join(asked.pair)
    found = {seed: measure(seed, folder / f"seed{seed}", settings) for seed in asked.seeds or range(asked.repeats)}
    (folder / "adaptation.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(list(found.values()), folder)
    print(table(list(found.values())))


def _named(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


if __name__ == "__main__":
    main(sys.argv[1:])
