"""Measures what share of VGG19's run time fc6 and fc7 take, on this machine (the DALR paper's reason to compress them).

    python pipelines/vgg19/vgg19_timing.py --batch 1 --repeats 10

Weights do not matter to the time and are as they are drawn. Each part is run by itself on what it reads; the median of
the repeats is shown, after one run that is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn

from vgg19_network import VGG, build


@dataclass(frozen=True, slots=True)
class PartTime:
    """How long a part of the network takes for one batch."""

    name: str
    parameters: int
    seconds: float


def measure(model: VGG, pictures: torch.Tensor, repeats: int) -> list[PartTime]:
    """Time the convolutions, fc6, fc7 and fc8, activations with the layer before them, on one batch."""
    fc = model.classifier
    parts: dict[str, nn.Module] = {
        "convolutions": nn.Sequential(model.features, model.avgpool, nn.Flatten()),
        "fc6": fc[0:3],
        "fc7": fc[3:6],
        "fc8": fc[6],
    }
    found, values = [], pictures
    with torch.inference_mode():
        for name, part in parts.items():
            given = values
            values = part(given)
            seconds = statistics.median(_seconds(part, given) for _ in range(repeats))
            found.append(PartTime(name, sum(p.numel() for p in part.parameters()), seconds))
    return found


def _seconds(part: nn.Module, given: torch.Tensor) -> float:
    begun = time.perf_counter()
    part(given)
    if given.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def main() -> None:
    """Print the table for the options of the command line."""
    parser = argparse.ArgumentParser(description="The share of fc6 and fc7 in VGG19's run time.")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    pictures = torch.zeros(given.batch, 3, 224, 224, device=given.device)
    found = measure(build().eval().to(given.device), pictures, given.repeats)
    whole = sum(part.seconds for part in found)
    for part in found:
        print(f"{part.name:<14}{part.parameters:>14,}{1000 * part.seconds:>12.2f} ms{part.seconds / whole:>8.1%}")
    both = sum(part.seconds for part in found if part.name in ("fc6", "fc7"))
    print(f"fc6 + fc7: {both / whole:.1%} of the run time at batch {given.batch}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
