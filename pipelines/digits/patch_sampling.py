"""What it costs to watch a few positions of each picture: of the statistics, and of the layers solved from them.

    python pipelines/digits/patch_sampling.py

The second convolution of the digits network, 64 positions a picture, and one with random weights on 64 x 64 crops of
scikit-learn's two photographs, 4,096 positions a picture. Two questions.

How far off are the moments of a few positions of each picture from those of all, and how much larger is the output
error of DALR solved from them, judged at every position of unseen pictures? Beside it, what the choice of the pictures
costs: every position of a random half of them. Between a half and the whole a mean has the very variance that the whole
has itself, E |half - whole|^2 = (2/n - 1/n) S^2 = S^2 / n.

Does the jackknife over shards know? Its standard error, from one set of pictures and positions, is set against the
spread over fresh ones.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import nn

import dalr_stream as ds
from dalr_stream.numerics import merge_all, relative_errors

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "shared")]

from digits_data import target_test, target_train  # noqa: E402
from digits_trained import trained  # noqa: E402

POSITIONS = (1, 4, 16, 64)
SEEDS = 20
FRESH = 40
"""Sets of pictures over which the spread is taken: it is known to within a ninth."""
CROP_SIDE, CROPS = 64, 300
SHARDS = 8
PART = 10
"""Pictures folded together: halves are sums of such parts."""
LAYER = "0"


@dataclass(frozen=True, slots=True)
class Case:
    """One convolution, and what it reads."""

    name: str
    convolution: nn.Conv2d
    ranks: tuple[int, ...]
    read: Callable[[int], torch.Tensor]
    """The input of the convolution for the pictures of one draw, (n, C, H, W)."""
    unseen: torch.Tensor
    """The same of pictures to judge on."""

    @property
    def positions(self) -> int:
        """Patches of each picture."""
        return int(self.unseen[0, 0].numel())

    def layer(self, inputs: torch.Tensor, most: int | None, *, seed: int = 0, shards: int = 1) -> ds.Layer:
        """Accumulate the patches at `most` positions of each picture."""
        model = nn.Sequential(self.convolution).eval()
        statistics = ds.accumulate(
            model,
            inputs.split(PART),
            ds.watch(model, [LAYER]),
            rows=ds.RowRule(most_patches=most, seed=seed),
            folding=ds.Folding(ds.HoldoutRule(0.0), shards=shards),
        )
        return statistics[LAYER]

    def moments(self, inputs: torch.Tensor, most: int | None, *, seed: int = 0) -> ds.Moments:
        """Return the moments of these patches alone."""
        return self.layer(inputs, most, seed=seed).inputs

    def solve(self, moments: ds.Moments) -> ds.LowRankFactors:
        """Return DALR at every rank."""
        return ds.dalr(*ds.network.weights_of(nn.Sequential(self.convolution), LAYER), moments)


def digits_case() -> Case:
    """Give the digits network's second convolution; its convolutions saw printed glyphs alone, so any digits do."""
    features = trained(0).network.features.requires_grad_(requires_grad=False)
    second = features[2]
    assert isinstance(second, nn.Conv2d)  # noqa: S101  # for the type checker
    unseen = features[:2](target_test(seed=0).inputs)
    return Case("digits, 8 x 8", second, (4, 16), lambda seed: features[:2](target_train(seed=seed).inputs), unseen)


def crops_case(crops: int = CROPS, side: int = CROP_SIDE) -> Case:
    """Give the second of two convolutions with random weights, on crops of the photographs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
    features = nn.Sequential(first, nn.ReLU()).requires_grad_(requires_grad=False)
    unseen = features(photographs(SEEDS + FRESH, crops, side))
    title = f"photographs, {side} x {side}"
    return Case(title, second, (4, 16), lambda seed: features(photographs(seed, crops, side)), unseen)


def photographs(seed: int, count: int, side: int) -> torch.Tensor:
    """Cut square crops anywhere out of both photographs, (count, 3, side, side) in 0..1."""
    rng = np.random.default_rng(seed)
    images = np.stack(load_sample_images().images)
    corners = zip(*(rng.integers(size - side + 1, size=count) for size in images.shape[1:3]), strict=True)
    found = [images[n % 2, y : y + side, x : x + side] for n, (y, x) in enumerate(corners)]
    return torch.from_numpy(np.stack(found).astype(np.float32) / 255).permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True, slots=True)
class Loss:
    """What a choice of rows costs against every position of every picture."""

    covariance: float
    """||C - C_all|| / ||C_all||, Frobenius."""
    errors: tuple[float, ...]
    """By rank: how much larger the relative output error is on unseen pictures, as a share of it."""


def losses(case: Case, seeds: Sequence[int]) -> dict[str, list[Loss]]:
    """Return, by number of positions and for half of the pictures, what each seed's choice costs."""
    inputs = case.read(0)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    parts = [case.moments(inputs[chosen], None) for chosen in order.split(PART)]
    every, unseen = merge_all(iter(parts)), case.moments(case.unseen, None)
    at_best = relative_errors(case.solve(every), unseen)

    def loss(moments: ds.Moments) -> Loss:
        gap = np.linalg.norm(moments.covariance - every.covariance) / np.linalg.norm(every.covariance)
        errors = relative_errors(case.solve(moments), unseen)
        return Loss(float(gap), tuple(float(errors[rank] / at_best[rank] - 1.0) for rank in case.ranks))

    def half(seed: int) -> ds.Moments:
        chosen = np.random.default_rng(seed).permutation(len(parts))[: len(parts) // 2]
        return merge_all(parts[number] for number in chosen)

    found = {
        f"{most} of {case.positions:,}": [loss(case.moments(inputs, most, seed=seed)) for seed in seeds]
        for most in POSITIONS
        if most < case.positions
    }
    return found | {f"all {case.positions:,}, half of the pictures": [loss(half(seed)) for seed in seeds]}


def jackknifed(case: Case, most: int, seeds: Sequence[int]) -> tuple[float, float]:
    """Return the spread over fresh pictures and positions, and the jackknife's standard error: root mean squares.

    Both of the relative output error on the rows that decided, at the first rank.
    """
    rank, errors, bars = case.ranks[0], [], []
    for seed in seeds:
        shards = case.layer(case.read(seed), most, seed=seed, shards=SHARDS).shards
        found = ds.numerics.jackknife_low_rank(shards, case.solve)
        errors.append(found.training[rank])
        bars.append(found.training_error[rank])
    return float(np.std(errors, ddof=1)), float(np.sqrt(np.mean(np.square(bars))))


def loss_table(case: Case, found: dict[str, list[Loss]]) -> str:
    """Return what positions cost, in Markdown: per cent, mean +- standard deviation over the seeds."""
    ranks = " | ".join(f"output error, rank {rank}" for rank in case.ranks)
    lines = [f"| {case.name} | covariance off by | {ranks} |", "|---|" + "---:|" * (1 + len(case.ranks))]
    for name, seeds in found.items():
        errors = zip(*(one.errors for one in seeds), strict=True)
        cells = [_cell([one.covariance for one in seeds]), *(f"+{_cell(values)}" for values in errors)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    return f"{100 * statistics.mean(values):.2f} +- {100 * statistics.stdev(values):.2f} %"


def main() -> None:
    """Print both tables of both cases."""
    cases = [digits_case(), crops_case()]
    for case in cases:
        print(loss_table(case, losses(case, range(SEEDS))), end="\n\n", flush=True)
    print("| | spread | jackknife |\n|---|---:|---:|")
    for case in cases:
        for most in (1, 16):
            spread, said = jackknifed(case, most, range(FRESH))
            print(f"| {case.name}, {most} of {case.positions:,} | {spread:.5f} | {said:.5f} |", flush=True)


if __name__ == "__main__":
    torch.set_grad_enabled(mode=False)
    main()
