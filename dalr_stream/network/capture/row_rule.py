"""Which rows of a layer are watched: those a mask keeps, and of these at most so many a sample.

A layer reads or gives a tensor (N, ..., d): N samples, T positions each, a row a position. A mask (N, T) speaks of
positions, so it holds for layers that have N x T rows, as (N, T, d) or flattened; a layer with one row a sample, such
as the head after pooling, is not masked. Anything else is an error: a mask that fits nothing would be wrong in silence.

Rows come sample after sample. A layer that gets (T, N, d), as torch's transformers do unless told batch_first=True, is
refused; where T equals N nothing tells the two apart, so that only a batch of another size would show it.

Rows are chosen on the layer's own tensor, which is copied once, while the network has not yet overwritten it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.batches import inputs_of
from dalr_stream.network.layers.kinds import LayerRows
from dalr_stream.numerics.rows.sampling import EVERY_ROW, Keep, at_most
from dalr_stream.numerics.rows.tiling import Samples

MOST_PATCHES = 16
"""VGG19's second convolution makes 431 GiB of patches of 4,000 images, and 0.14 GiB of 16 patches each."""
MaskOf = Callable[[Any], torch.Tensor]


@dataclass(frozen=True, slots=True)
class RowRule:
    """Which rows are watched; by default every one."""

    mask: str | MaskOf | None = None
    """A key of the batch's inputs, which are a mapping then (all of it goes to the network), or a function of the
    batch: (N, T), True or 1 for positions that count, False or 0 for padding. A sample, or a whole batch, may have none
    that count."""
    most_per_sample: int | None = None
    """At most so many rows of each sample in each layer, chosen among those that count; a longer sample then weighs no
    more than one of this length."""
    seed: int = 0
    """Of that choice."""
    most_patches: int | None = MOST_PATCHES
    """The same for what convolutions read, whose patches overlap and are far too many to keep; None for all of them.
    A smaller `most_per_sample` holds there too."""

    def __post_init__(self) -> None:
        for name in ("most_per_sample", "most_patches"):
            most = getattr(self, name)
            if most is not None and most < 1:
                raise InvalidInputError(f"rows: {name} must be 1 at least, got {most}")
        if self.mask is not None and not callable(self.mask) and (not isinstance(self.mask, str) or not self.mask):
            raise InvalidInputError(f"rows: mask must be a key of the batch or a function of it, got {self.mask!r}")

    @property
    def words(self) -> str:
        """The rule in words, by which it is recorded and compared.

        A function goes by its name; what it returns is part of each batch's digest.
        """
        parts = [EVERY_ROW] if self.mask is None else [f"rows that {self._mask_name} keeps"]
        if self.most_per_sample is not None:
            parts.append(f"at most {self.most_per_sample} a sample by seed {self.seed}")
        if self.most_patches != MOST_PATCHES:
            parts.append(
                "all patches" if self.most_patches is None else f"at most {self.most_patches} patches a sample"
            )
        if self.seed and self.most_per_sample is None:
            parts.append(f"patches by seed {self.seed}")
        return ", ".join(parts)

    def most_of(self, rows: LayerRows, *, paired: bool = False) -> int | None:
        """Return the most rows of a sample to be taken of a layer's rows; None for no limit.

        `paired` takes what a convolution gave where what it read is taken, so that they belong together row for row.
        """
        patches = rows.of_patches or (paired and rows.given_for_patches)
        limits = [self.most_per_sample, self.most_patches if patches else None]
        return min((limit for limit in limits if limit is not None), default=None)

    def mask_of(self, batch: Any, samples: int) -> torch.Tensor | None:
        """Return the mask of a batch of `samples` samples, (N, T) of booleans on the CPU; None where all rows count.

        Raises InvalidInputError where there is none, or it is no mask.
        """
        if self.mask is None or samples == 0:
            return None
        mask = self._look_up(batch)
        if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or mask.shape[0] != samples:
            what = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
            raise InvalidInputError(
                f"rows: {self._mask_name} must give a tensor (N, T) with N = {samples} samples, got {what}: name a "
                "function of the batch that makes one"
            )
        counted: torch.Tensor = (mask != 0).cpu()
        if bool(((mask != 0) & (mask != 1)).any()):
            raise InvalidInputError(
                f"rows: {self._mask_name} must give True or 1 for positions that count and False or 0 for the others, "
                f"got {mask.dtype} values from {mask.min()} to {mask.max()}: name a function that makes such a mask"
            )
        return counted

    @property
    def _mask_name(self) -> str:
        if isinstance(self.mask, str):
            return f"mask '{self.mask}'"
        named: Any = self.mask if hasattr(self.mask, "__qualname__") else type(self.mask)
        return f"mask {named.__module__}:{named.__qualname__}"

    def _look_up(self, batch: Any) -> Any:
        if callable(self.mask):
            return self.mask(batch)
        inputs, key = inputs_of(batch), str(self.mask)
        if not isinstance(inputs, Mapping) or key not in inputs:
            has = ", ".join(map(str, inputs)) if isinstance(inputs, Mapping) else "no keys, its inputs are a tensor"
            raise InvalidInputError(
                f"rows: the batch has no '{key}', it has {has}: name one of its keys, or a function of the batch"
            )
        return inputs[key]


@dataclass(frozen=True, slots=True)
class Taken:
    """The watched rows of one layer in one batch."""

    rows: torch.Tensor
    """(n, d): a copy, on the layer's device and of its dtype."""
    counts: Samples | None
    """(N,): rows of each sample, where a mask lets them differ."""


class BatchRows:
    """The rule applied to one batch, whichever the layer."""

    def __init__(
        self, rule: RowRule, samples: int, first_sample: int, mask: torch.Tensor | None, *, paired: bool = False
    ) -> None:
        """`first_sample` is the number of the batch's first sample within its domain; `mask` is from `mask_of`.

        `paired` takes outputs where the inputs are taken, as `RowRule.most_of` says.
        """
        self._rule = rule
        self._paired = paired
        self._samples = samples
        self._first = first_sample
        self._mask: Keep | None = None if mask is None else mask.numpy()
        self._kept: dict[tuple[tuple[int, ...], int | None], Keep | None] = {}

    def take(self, stream: str, rows: LayerRows) -> Taken:
        """Copy the watched rows of a layer, in the order of samples and positions."""
        self._require_samples_first(stream, rows)
        most = self._rule.most_of(rows, paired=self._paired)
        known = rows.leading, most
        if known not in self._kept:
            self._kept[known] = self._keep(stream, rows.leading, most)
        keep = self._kept[known]
        if keep is None:
            return Taken(rows.take(None), None)
        numbers = torch.from_numpy(np.flatnonzero(keep)).to(rows.tensor.device)
        return Taken(rows.take(numbers), None if self._mask is None else keep.sum(axis=1, dtype=np.int64))

    def _require_samples_first(self, stream: str, rows: LayerRows) -> None:
        first, second, *_ = (*rows.leading, 0, 0)
        if rows.of_patches or rows.given_for_patches or not first != self._samples == second != 1:
            return
        raise InvalidInputError(
            f"layer '{stream}': its rows must come sample after sample; a batch of {self._samples} samples gave rows "
            f"of shape {rows.leading}: let samples be the first dimension, as batch_first=True does, or transpose "
            "before the layer; if they are, and the sizes are so by chance, take batches of another size"
        )

    def _keep(self, stream: str, leading: tuple[int, ...], most: int | None) -> Keep | None:
        """Return the rows to keep, (N, positions); None for all, the same number of each sample."""
        if self._mask is None and most is None:
            return None
        keep = self._all(stream, leading) if self._mask is None else self._masked(stream, leading, self._mask)
        if most is not None:
            keep = at_most(keep, most, seed=self._rule.seed, first_sample=self._first)
        return None if self._mask is None and bool(keep.all()) else keep

    def _all(self, stream: str, leading: tuple[int, ...]) -> Keep:
        if not leading or leading[0] % self._samples:
            raise InvalidInputError(
                f"layer '{stream}': to choose rows of each sample, its rows must come sample after sample; a batch of "
                f"{self._samples} samples gave rows of shape {leading}: let samples be the first dimension, or watch "
                "every row"
            )
        return np.ones((self._samples, math.prod(leading) // self._samples), np.bool_)

    def _masked(self, stream: str, leading: tuple[int, ...], mask: Keep) -> Keep:
        samples, positions = mask.shape
        by_sample = leading[:1] == (samples,)
        if leading == (samples,) or (by_sample and math.prod(leading) == samples and positions != 1):
            return np.ones((samples, 1), np.bool_)
        if math.prod(leading) == mask.size and (by_sample or leading[:1] == (mask.size,)):
            return mask
        raise InvalidInputError(
            f"layer '{stream}': its rows must be those of the mask, (N, T) = {mask.shape}, or one a sample, "
            f"({samples},), got {leading}: give as mask a function of the batch that returns the positions of this "
            "layer, or capture it in another store without one"
        )
