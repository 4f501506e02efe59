"""Learning from rankings (Liu et al., ICCV 2017): a hinge on pairs, with each picture run once; then scores themselves.

A Siamese network runs both pictures of every pair: of a set of 6 that is 30 runs for 15 pairs. Since both branches are
one network, its gradient is that of the same loss on numbers computed once: 6 runs. `ranking_loss` takes these.
Before scores are learnt, `calibrate` brings the numbers to their unit.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from scipy import stats
from torch import nn
from torch.nn import functional

from rankings_data import Ranked, Scored

MARGIN = 1.0
BATCH = 8
"""Sets of six pictures a step, or steps of as many scored pictures."""


def ranking_loss(numbers: torch.Tensor) -> torch.Tensor:
    """Return the mean over pairs of max(0, f(worse) - f(better) + margin), of numbers (sets, levels), best first."""
    better, worse = torch.triu_indices(numbers.shape[1], numbers.shape[1], offset=1)
    return functional.relu(numbers[:, worse] - numbers[:, better] + MARGIN).mean()


def siamese_loss(model: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """Return the same the slow way, both pictures of every pair through the network: (sets, levels, ...)."""
    levels = pictures.shape[1]
    pairs = [(one, other) for one in range(levels) for other in range(one + 1, levels)]
    losses = [functional.relu(model(pictures[:, two]) - model(pictures[:, one]) + MARGIN) for one, two in pairs]
    return torch.stack(losses).mean()


def learn_ranks(model: nn.Module, ranked: Ranked, *, seed: int, epochs: int, rate: float = 1e-3) -> None:
    """Train in place on rankings alone."""
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    model.train()
    for picked in _batches(len(ranked.pictures), seed, epochs):
        pictures = ranked.pictures[picked]
        optimiser.zero_grad()
        ranking_loss(model(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])).backward()
        optimiser.step()
    model.eval()


def calibrate(model: nn.Module, pictures: torch.Tensor, scores: torch.Tensor) -> None:
    """Bring a network that learnt from rankings to the unit of scores, in place: its last layer, by least squares.

    Rankings say nothing of a unit, and the numbers are tens of margins apart by the end. Fine-tuning from there by the
    squared error starts with steps that switch most nodes off for good.
    """
    with torch.no_grad():
        numbers = torch.cat([model(part) for part in pictures.split(256)]).double()
        spread = numbers - numbers.mean()
        slope = float((spread * scores.double()).sum() / spread.square().sum().clamp_min(torch.finfo().tiny))
        last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
        last.weight *= slope
        last.bias.copy_(slope * last.bias.double() + scores.double().mean() - slope * numbers.mean())


def learn_scores(
    model: nn.Module, pictures: torch.Tensor, scores: torch.Tensor, *, seed: int, epochs: int, rate: float = 1e-3
) -> None:
    """Train in place on pictures (n, 3, ...) with scores (n,), by their squared error."""
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    model.train()
    for picked in _batches(len(scores), seed, epochs):
        optimiser.zero_grad()
        functional.mse_loss(model(pictures[picked]), scores[picked]).backward()
        optimiser.step()
    model.eval()


def _batches(count: int, seed: int, epochs: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(count, generator=generator).split(BATCH)


def correlations(model: nn.Module, judged: Scored) -> tuple[float, float]:
    """Return the linear and the rank-order correlation (LCC, SROCC) of scores and what the network says.

    What it says of a picture is the mean over its crops.
    """
    with torch.inference_mode():
        each = torch.cat([model(part) for part in judged.crops.flatten(0, 1).split(256)])
        said = each.double().unflatten(0, judged.crops.shape[:2]).mean(dim=1).numpy()
    if said.std() == 0:
        return 0.0, 0.0
    scores = judged.scores.numpy()
    return float(stats.pearsonr(said, scores).statistic), float(stats.spearmanr(said, scores).statistic)
