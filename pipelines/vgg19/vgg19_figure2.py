"""DALR's Fig. 2: how evenly the inputs of fc6 and fc7 respond, on ImageNet and on the three targets.

    python pipelines/vgg19/vgg19_figure2.py [--device cuda] [--samples 4000]

The network is VGG19 as ImageNet left it, before any fine-tuning: data/vgg19.safetensors (vgg19_convert.py). Printed is
the share of a layer's inputs that carry half of all activations, the published eight beside ours; the rates themselves,
in falling order as the figure has them, go to `runs/vgg19-figure2/rates.npz`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "shared")]

from activity import half_share  # noqa: E402
from images_data import source, target_train  # noqa: E402
from images_layout import DATA  # noqa: E402
from vgg19_network import VGG, build  # noqa: E402

OUTPUT = HERE.parents[1] / "runs" / "vgg19-figure2"
PUBLISHED = {  # dalr_iccv2017.txt, section 3; in per cent
    "fc6": {"ImageNet": 32.29, "flowers": 14.61, "cub": 19.13, "actions": 25.0},
    "fc7": {"ImageNet": 41.38, "flowers": 19.51, "cub": 24.93, "actions": 29.44},
}
Rates = dict[str, NDArray[np.float64]]


def rates(model: VGG, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Rates:
    """Return the share of pictures on which each input of fc6 and of fc7 is above zero."""
    device, seen = next(model.parameters()).device, 0
    counts = {name: torch.zeros(layer.in_features) for name, layer in _layers(model).items()}
    with torch.inference_mode():
        for pictures, _ in batches:
            flat = model.flat(pictures.to(device))
            hidden = torch.relu(model.classifier[0](flat))
            for name, values in (("fc6", flat), ("fc7", hidden)):
                counts[name] += (values > 0).sum(dim=0).cpu()
            seen += len(pictures)
    return {name: count.double().numpy() / seen for name, count in counts.items()}


def _layers(model: VGG) -> dict[str, torch.nn.Linear]:
    return {"fc6": model.classifier[0], "fc7": model.classifier[3]}


def table(found: Mapping[str, Rates]) -> str:
    """Return the shares in Markdown: a row for each domain, published beside ours."""
    lines = ["| inputs that carry half of the activations (%) | fc6 | published | fc7 | published |"]
    lines.append("|---|---:|---:|---:|---:|")
    for domain, layers in found.items():
        cells = [f"{100 * half_share(layers[name]):.2f} | {PUBLISHED[name][domain]:.2f}" for name in PUBLISHED]
        lines.append(f"| {domain} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table and keep the rates."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--start", type=Path, default=DATA / "vgg19.safetensors", help="ImageNet's weights")
    parser.add_argument("--samples", type=int, default=4000, help="pictures of ImageNet")
    parser.add_argument("--seed", type=int, default=0, help="draws them")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    model = build()
    model.load_state_dict(load_file(asked.start))
    model.to(asked.device).eval()
    shown = {"resize": "squash"}
    loaders = {"ImageNet": source(seed=asked.seed, samples=asked.samples, **shown)}
    loaders |= {name: target_train(dataset=name, seed=asked.seed, **shown) for name in ("flowers", "cub", "actions")}
    found = {name: rates(model, batches) for name, batches in loaders.items()}
    OUTPUT.mkdir(parents=True, exist_ok=True)
    falling = {f"{name}, {layer}": np.sort(each)[::-1] for name, two in found.items() for layer, each in two.items()}
    np.savez(OUTPUT / "rates.npz", **falling)
    print(table(found))


if __name__ == "__main__":
    main()
