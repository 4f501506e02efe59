"""DALR's Table 9 in small: fc6 and fc7 of Fast R-CNN by SVD, SVD with bias compensation and DALR, and their mAP.

    python pipelines/detection/detection_experiment.py [SEED ...]
    python pipelines/detection/detection_experiment.py 0 --voc data --network vgg16_fast_rcnn.safetensors

The first is on generated pictures: handwritten digits on photographs, three seeds by default. fc6 keeps the shares of
its parameters that ranks 1,024 and 768 are in VGG16's, fc7 that of rank 256; each is compressed from what it reads of
all boxes of the training pictures. The second is on VOC 2007 in its official layout, with the weights of a Fast R-CNN
of this pipeline's names (`detection_network.build(factory="vgg16", classes=20)`). Figures are kept in `runs/detection`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "shared")]

import torch  # noqa: E402
from torch import nn  # noqa: E402

import dalr_stream as ds  # noqa: E402
from dalr_stream.network import load_weights, parameter_count  # noqa: E402
from detection_generated import scenes  # noqa: E402
from detection_map import mean_average_precision  # noqa: E402
from detection_network import FastRCNN, build  # noqa: E402
from detection_scenes import Scene  # noqa: E402
from detection_training import Recipe, SceneBatches, detect, train  # noqa: E402
from detection_voc import CLASSES, read  # noqa: E402
from kept_results import digest_of, kept_figures  # noqa: E402
from spreads import mean_and_error  # noqa: E402

RUNS = HERE.parents[1] / "runs" / "detection"
TRAIN, TEST = 400, 300
FC6, FC7 = {1024: (4096 + 25_088) * 1024 / (4096 * 25_088), 768: (4096 + 25_088) * 768 / (4096 * 25_088)}, 0.125
"""Shares of the layers' parameters at the ranks of Table 9: of fc6 by its rank, of fc7 at rank 256."""
PUBLISHED = {  # dalr_iccv2017.txt, Table 9
    "uncompressed": 66.9,
    "SVD @ 1024": 66.6,
    "SVD + BC @ 1024": 66.7,
    "DALR @ 1024": 66.9,
    "SVD @ 768": 66.5,
    "SVD + BC @ 768": 66.7,
    "DALR @ 768": 66.7,
}
Figures = dict[str, Any]


def measure(seed: int, recipe: Recipe, sizes: tuple[int, int] = (TRAIN, TEST)) -> Figures:
    """Train on generated pictures and compress; return mAP (%) and parameters by row of the table."""
    settings = {"seed": seed, "recipe": str(recipe), "sizes": sizes}

    def measured() -> Figures:
        learnt, judged = scenes("train", seed, sizes[0]), scenes("test", seed, sizes[1])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build()
            train(network, learnt, seed=seed, recipe=recipe)
        return compared(network.eval(), learnt, judged)

    found: Figures = kept_figures(RUNS, digest_of(settings, measure), measured)
    return found


def compared(network: FastRCNN, learnt: Sequence[Scene], judged: Sequence[Scene]) -> Figures:
    """Return mAP (%) and parameters of the network and of what is made of it."""
    layers = ds.watch(network, ["fc6", "fc7"])
    found = ds.accumulate(network, SceneBatches(learnt), layers, folding=ds.Folding(holdout=ds.HoldoutRule(0.0)))
    figures = {"uncompressed": _judged(network, judged)}
    for rank, share in FC6.items():
        for name in ("SVD", "SVD + BC", "DALR"):
            pairs = {layer: _factors(name, found[layer], part) for layer, part in (("fc6", share), ("fc7", FC7))}
            figures[f"{name} @ {rank}"] = _judged(ds.compress(network, pairs).eval(), judged)
    return figures


def _factors(name: str, layer: Any, share: float) -> ds.network.Replacement:
    factors = ds.dalr(layer) if name == "DALR" else ds.truncated_svd(layer, compensate_bias=name.endswith("BC"))
    return factors.at_rank(max(int(share * factors.break_even_rank), 1))


def _judged(network: nn.Module, judged: Sequence[Scene]) -> Figures:
    precision = mean_average_precision(judged, [detect(network, scene) for scene in judged])
    return {"mAP (%)": 100 * precision, "parameters": parameter_count(network)}


def table(seeds: Sequence[Figures]) -> str:
    """Return a row for each network: parameters, mAP and points under the uncompressed one, the published beside."""
    lines = [
        "| network | parameters | mAP (%) | points over uncompressed | published mAP (%) |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, first in seeds[0].items():
        values = [one[name]["mAP (%)"] for one in seeds]
        gains = [one[name]["mAP (%)"] - one["uncompressed"]["mAP (%)"] for one in seeds]
        cells = [f"{first['parameters']:,}", *(mean_and_error(each, 2) for each in (values, gains))]
        lines.append(f"| {name} | {' | '.join(cells)} | {PUBLISHED[name]} |")
    return "\n".join(lines)


def of_voc(root: Path, weights: Path) -> Figures:
    """Return the figures of VOC 2007, for a trained network."""
    network = build(factory="vgg16", classes=len(CLASSES))
    load_weights(network, weights)
    return compared(network.eval(), read(root, "trainval"), read(root, "test"))


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("seeds", nargs="*", type=int, default=range(3))
    parser.add_argument("--voc", type=Path, help="folder with VOCdevkit and selective_search_data")
    parser.add_argument("--network", type=Path, help="weights of the trained network, safetensors")
    asked = parser.parse_args(arguments)
    if (asked.voc is None) != (asked.network is None):
        parser.error("--voc and --network go together")
    found = [of_voc(asked.voc, asked.network)] if asked.voc else [measure(seed, Recipe()) for seed in asked.seeds]
    print(table(found))


if __name__ == "__main__":
    main(sys.argv[1:])
