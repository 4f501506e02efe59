"""What the default ridge leaves where one channel stands out, beside the mean of all features and the best of a grid.

    python pipelines/digits/default_ridge.py

Two networks that are trained here on 1,000 handwritten digits, dense layers and a residual net of convolutions, by DALR
(anchored, affine) at a quarter of each layer's full rank. One channel of what each layer reads is multiplied and its
weights divided, so that the network computes what it did. Shown is the output error on the 797 other digits over the
least of a grid of ridges: the mean and the largest of all layers. Half a minute.
"""

from __future__ import annotations

import copy
import functools
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.numerics import choose_ridge

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "shared")]

from deeper_networks import dense_stack, residual  # noqa: E402
from digits_data import target_test, target_train  # noqa: E402
from labelled_batches import Batches  # noqa: E402

DEFAULT = 1e-3

GRID = tuple(10.0**power for power in range(-7, 2))
"""Times the median of the diagonal."""
SCALES = (1.0, 30.0, 1000.0, 3000.0)
EVERY = ds.Folding(ds.HoldoutRule(0.0))


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    digits, unseen = target_train(seed=0, samples=1000), target_test(seed=0, samples=1000)
    print("| network | one channel, times | largest max / median | mean of all | default | chosen on held-out rows |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, train in {"8 dense layers": dense_stack, "residual net": residual}.items():
        net = train(digits, seed=0)
        for scale in SCALES:
            stretched = with_a_large_channel(net, scale)
            columns = np.array([*ratios(stretched, digits, unseen)]).T
            shown = " | ".join(f"{column.mean():.3f}, {column.max():.3f}" for column in columns[1:])
            print(f"| {name} | {scale:,.0f} | {columns[0].max():,.0f} | {shown} |")


def with_a_large_channel(net: nn.Module, scale: float) -> nn.Module:
    """Return a network that computes the same, and in which each layer reads its middle channel times `scale`."""
    stretched = copy.deepcopy(net)
    for module in stretched.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            channel = module.weight.shape[1] // 2
            with torch.no_grad():
                module.weight[:, channel] /= scale
            dimension = 1 if isinstance(module, nn.Conv2d) else -1
            module.register_forward_pre_hook(functools.partial(_stretch, channel, scale, dimension))
    return stretched


def _stretch(channel: int, scale: float, dimension: int, _: nn.Module, read: tuple[torch.Tensor, ...]) -> torch.Tensor:
    factors = torch.ones(read[0].shape[dimension])
    factors[channel] = scale
    return read[0] * factors.reshape(-1, 1, 1) if dimension == 1 else read[0] * factors


def ratios(net: nn.Module, digits: Batches, unseen: Batches) -> Iterator[tuple[float, float, float, float]]:
    """Yield of each layer max / median, and the errors of three ridges, each over the least of the grid."""
    layers = ds.watch(net, [name for name, module in net.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)])
    known, other = (ds.accumulate(net, batches, layers, folding=EVERY) for batches in (digits, unseen))
    heldout = ds.accumulate(net, digits, layers, folding=ds.Folding(ds.HoldoutRule(0.2)))
    for name in known:
        layer, judged = known[name], other[name].inputs
        diagonal = np.diagonal(layer.inputs.scatter)
        rank = min(layer.weight.shape) // 4 or 1

        def left(ridge: ds.Ridge, layer: ds.Layer = layer, judged: ds.Moments = judged, rank: int = rank) -> float:
            return float(np.sqrt(ds.dalr(layer, ridge=ridge).errors(judged)[rank]))

        median = float(np.median(diagonal[diagonal > 1e-12 * diagonal.max()]))
        least = min(left(ds.Ridge.absolute(value * median)) for value in GRID)
        mean = ds.Ridge.absolute(DEFAULT * float(diagonal.mean()))
        chosen = choose_ridge(heldout[name], rank=rank).ridge
        three = (left(ridge) / least for ridge in (mean, ds.Ridge.relative(DEFAULT), chosen))
        yield (float(diagonal.max()) / median, *three)  # type: ignore[misc]


if __name__ == "__main__":
    main()
