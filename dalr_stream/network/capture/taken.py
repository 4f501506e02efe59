"""Rows of a layer that were taken in one batch, and those of several calls put together: sample after sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dalr_stream.numerics.rows.tiling import Samples


@dataclass(frozen=True, slots=True)
class Taken:
    """The watched rows of one layer in one batch."""

    rows: torch.Tensor
    """(n, d): a copy, on the layer's device and of its dtype."""
    counts: Samples | None
    """(N,): rows of each sample, where these may differ: under a mask, and of sequences, whose lengths may."""
    chosen_from: Samples | None = None
    """(N,): the rows of each sample that count, where a limit may have left out some of them."""
    finite: bool = False
    """Whether all of them are known to be finite; else nobody has looked, or some are not."""

    @classmethod
    def of(cls, rows: torch.Tensor, counts: Samples | None, chosen_from: Samples | None = None) -> Taken:
        """Describe rows that were copied just now, while a core has them in its cache."""
        return cls(rows, counts, chosen_from, _known_finite(rows))

    def counts_of(self, samples: int) -> Samples:
        """(N,): rows of each of `samples` samples."""
        return np.full(samples, len(self.rows) // samples) if self.counts is None else self.counts

    def same_as(self, other: Taken) -> bool:
        """Tell whether both are the same rows: memory can be overwritten without torch taking note of it.

        On the meta device there are no numbers to compare.
        """
        if self is other:
            return True
        one, two = self.counts, other.counts
        same_counts = one is two or (one is not None and two is not None and np.array_equal(one, two))
        return same_counts and (self.rows.is_meta or torch.equal(self.rows, other.rows))


def together(calls: Sequence[Taken], samples: int) -> Taken:
    """Return the rows of several calls as those of one: sample after sample, and call after call within each."""
    if len(calls) == 1:
        return calls[0]
    rows = torch.cat([taken.rows for taken in calls])
    counts = [np.full(samples, len(taken.rows) // samples) if taken.counts is None else taken.counts for taken in calls]
    owners = np.concatenate([np.repeat(np.arange(samples), count) for count in counts])
    order = torch.from_numpy(np.argsort(owners, kind="stable")).to(rows.device)
    same_for_each = all(taken.counts is None for taken in calls)
    each: Samples | None = None if same_for_each else np.sum(counts, axis=0, dtype=np.int64)
    return Taken(rows[order], each, finite=all(taken.finite for taken in calls))


def _known_finite(rows: torch.Tensor) -> bool:
    """Tell whether their sum of squares is finite, which no NaN and no Inf leaves so: a pass that writes nothing.

    A device would have to be waited for, and half precision overflows.
    """
    if rows.device.type != "cpu" or rows.dtype not in (torch.float32, torch.float64):
        return False
    flat = rows.reshape(-1)
    return math.isfinite(float(torch.dot(flat, flat)))
