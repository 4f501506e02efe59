"""A head for the target domain on features that stay as ImageNet left them: logistic regression, to its optimum."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import pretrained_data
from pretrained_network import EfficientNetLite0

DECAY = 1e-3
"""Of the head's weights, in the loss."""
STEPS = 200
"""Of L-BFGS at most; it stops by itself before."""


def train(
    model: EfficientNetLite0, *, seed: int, report: Callable[[str], None], domain: str = "digits", samples: int = 700
) -> EfficientNetLite0:
    """Fit the head on `samples` pictures of a domain of `pretrained_data`; nothing of it is random but their choice."""
    batches = pretrained_data.DOMAINS[domain][0](seed=seed, samples=samples)
    with torch.no_grad():
        features = torch.cat([model.features(pictures) for pictures, _ in batches])
    right = fit(model.head, features, batches.labels)
    report(f"{samples} {domain}: the head gets {right:.1%} of its own pictures right")
    return model.eval()


def fit(head: nn.Linear, features: torch.Tensor, labels: torch.Tensor) -> float:
    """Fit the head on features (n, d) and labels (n,); return the share of them that it gets right."""
    features = features.double()
    weight = torch.zeros(head.weight.shape, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(head.out_features, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = cross_entropy(features @ weight.T + bias, labels) + DECAY * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
        return float(((features @ weight.T + bias).argmax(1) == labels).double().mean())
