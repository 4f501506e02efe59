"""Labelled rows as loaders give them: in a fixed order, cut into batches, as often as they are asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Batches:
    """Rows in a fixed order, cut into batches; iterating again gives the same batches.

    Parameters
    ----------
    inputs
        (n, ...) float32.
    labels
        (n,) int64.
    batch_size
        Rows a batch; the last may be shorter.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    batch_size: int

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, len(self.labels), self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield self.inputs[rows], self.labels[rows]

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)
