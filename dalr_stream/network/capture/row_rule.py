"""Which rows of a layer are watched: those that a mask keeps, and at most a given number of these per sample.

A layer reads or gives a tensor (N, ..., d): N samples of T positions, one row per position. A mask (N, T) speaks of
positions, so it holds for layers that have N x T rows, in whatever order these are proved to come; a layer with one row
a sample, such as the head after pooling, is not masked. Anything else is an error: a mask that fits nothing would be
wrong in silence.

Rows are taken sample after sample. Where nothing is proved, a layer that gets (T, N, d) is refused; where T equals N
nothing tells the two apart then, so that only a batch of another size would show it.

Rows are chosen on the layer's own tensor, which is copied once, while the network has not yet overwritten it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.gradient_rule import GradientRule
from dalr_stream.network.capture.masks import BatchMasks, LayerMask, Mask, by_pattern, mask_words, of_call
from dalr_stream.network.capture.order import Orders, RowOrder, is_routed, order_of_call, require_order
from dalr_stream.network.capture.routed import Places
from dalr_stream.network.capture.taken import Taken
from dalr_stream.network.layers.kinds import LayerRows
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.numerics.options import whole_number
from dalr_stream.numerics.rows.sampling import EVERY_ROW, Keep, at_most
from dalr_stream.numerics.rows.streams import Side, layer_of_stream, module_name
from dalr_stream.numerics.rows.tiling import Samples

MOST_PATCHES = 16
"""VGG19's second convolution makes 431 GiB of patches of 4,000 images, and 0.14 GiB of 16 patches each."""


@dataclass(frozen=True, slots=True)
class RowRule:
    """Which rows of each layer are recorded; by default every one.

    Attributes
    ----------
    mask
        A key of the batch's inputs, which are a mapping then (all of it goes to the network), or a function of the
        batch: (N, T), True or 1 for positions that count, False or 0 for padding. A sample, or a whole batch, may
        have none that count. A mapping gives each pattern of layers a mask of its own, `{"encoder.*":
        "attention_mask", "decoder.*": "decoder_attention_mask"}`: the first pattern that matches decides, and
        layers that none matches have no mask. A list, of masks or in a mapping, is one for each call of layers that
        are called several times in a pass, in their order.
    most_per_sample
        Record at most this many rows of each sample in each layer, chosen at random among those that count, so that
        a long sample weighs no more than one of this length.
    seed
        Seed of that choice.
    most_patches
        The same for what convolutions read, whose patches overlap and are too many to keep; None for all of them. A
        smaller `most_per_sample` holds there too.
    prove
        Prove on the first batch which rows belong to which sample: three forward passes more, for gradients two and
        some of two samples.
    gradients
        Which gradients are recorded of layers that are watched for them; `GradientRule()` by default. A gradient row
        stands where the layer's row does.

    Examples
    --------
    Count the tokens that the attention mask keeps, at most 64 of each text:

    >>> import dalr_stream as ds
    >>> ds.RowRule(mask="attention_mask", most_per_sample=64).words
    "rows that mask 'attention_mask' keeps, at most 64 a sample by seed 0"
    """

    mask: Mask | None = None
    most_per_sample: int | None = None
    seed: int = 0
    most_patches: int | None = MOST_PATCHES
    prove: bool = True
    gradients: GradientRule | None = None

    def __post_init__(self) -> None:
        for name in ("most_per_sample", "most_patches"):
            if getattr(self, name) is not None:
                whole_number(getattr(self, name), f"rows: {name}")
        whole_number(self.seed, "rows: seed", 0)
        if not isinstance(self.gradients, GradientRule | None):
            raise InvalidInputError(f"rows: gradients must be a ds.GradientRule, got {self.gradients!r}")
        by_pattern(self.mask)

    @property
    def words(self) -> str:
        """The rule in words, by which it is recorded and compared.

        A function goes by its name; what it returns is part of each batch's digest.
        """
        parts = [EVERY_ROW] if self.mask is None else [f"rows that {mask_words(self.mask)} keeps"]
        if self.most_per_sample is not None:
            parts.append(f"at most {self.most_per_sample} a sample by seed {self.seed}")
        if self.most_patches != MOST_PATCHES:
            patches = "all patches" if self.most_patches is None else f"at most {self.most_patches} patches a sample"
            parts.append(patches)
        if self.seed and self.most_per_sample is None:
            parts.append(f"patches by seed {self.seed}")
        if not self.prove:
            parts.append("not proved")
        if self.gradients is not None:
            parts.append(self.gradients.words)
        return ", ".join(parts)

    def of_layers(self, layers: Iterable[LayerSpec]) -> RowRule:
        """Return the rule with gradients where some of the layers are watched for them, and only there."""
        if Side.GRADIENTS not in [getattr(layer, "side", None) for layer in layers]:
            return replace(self, gradients=None)
        return replace(self, gradients=self.gradients or GradientRule())

    def most_of(self, rows: LayerRows, *, paired: bool = False) -> int | None:
        """Return the most rows of a sample to be taken of a layer's rows; None for no limit.

        `paired` takes what a convolution gave where what it read is taken, so that they belong together row for row.
        """
        patches = rows.of_patches or (paired and rows.given_for_patches)
        limits = [self.most_per_sample, self.most_patches if patches else None]
        return min((limit for limit in limits if limit is not None), default=None)

    def masks_of(self, batch: Any, samples: int) -> BatchMasks | None:
        """Return the masks of a batch, None where all rows count; InvalidInputError where it has none, or no mask."""
        return None if self.mask is None or samples == 0 else BatchMasks.of(self.mask, batch, samples)


def rule_of(rows: RowRule | None) -> RowRule:
    """Return the rule that was given, or the one that takes every row; raises InvalidInputError for anything else."""
    if not isinstance(rows, RowRule | None):
        raise InvalidInputError(f"rows must be a ds.RowRule, got {rows!r}: a GradientRule is its `gradients`")
    return rows or RowRule()


class BatchRows:
    """The rule applied to one batch, whichever the layer."""

    def __init__(  # what one batch is
        self, rule: RowRule, samples: int, first_sample: int, masks: BatchMasks | None, *,
        orders: Orders | None = None, paired: bool = False,
    ) -> None:  # fmt: skip
        """`first_sample` is the number of the batch's first sample within its domain; `masks` are from `masks_of`.

        `orders` is what is proved of the layers' rows. `paired` is as in `RowRule.most_of`.
        """
        self._rule = rule
        self._paired = paired
        self._samples = samples
        self._first = first_sample
        self._masks = masks
        self._orders = orders
        self._numbers: dict[tuple[Any, ...], NDArray[np.int64] | None] = {}
        self._counts: dict[tuple[Any, ...], tuple[Samples | None, Samples | None]] = {}

    def masks_of(self, stream: str) -> LayerMask:
        """(N, T): the positions of a layer that count, those of each call where these differ; None where all do."""
        return None if self._masks is None else self._masks.of_layer(module_name(layer_of_stream(stream)))

    def mask_of_outputs(self, outputs: torch.Tensor) -> torch.Tensor | None:
        """(N, T): the positions that count of what gradients go back from, `outputs`; None where all do."""
        if self._masks is None:
            return None
        self._masks.require_one_of(outputs, "gradients")
        return self._masks.of_outputs()

    def take(self, stream: str, rows: LayerRows, number: int = 0, *, paired: bool | None = None) -> Taken:
        """Copy the watched rows of call `number` of a layer, in the order of samples and positions.

        `paired` is that of the batch where nothing is said.
        """
        if stream not in (self._orders or {}):
            self._require_samples_first(stream, rows)
        order = order_of_call(self._orders, stream, number)
        order = require_order(stream, order, rows.leading, self._samples)
        most = self._rule.most_of(rows, paired=self._paired if paired is None else paired)
        mask = of_call(self.masks_of(stream), number)
        known = rows.leading, most, order, id(mask)
        if known not in self._numbers:
            keep = self._keep(stream, rows.leading, most, order, mask)
            self._numbers[known] = self._numbers_of(rows.leading, order, keep)
            before = None if most is None else self._keep(stream, rows.leading, None, order, mask)
            self._counts[known] = (
                self._counts_of(rows, keep, masked=mask is not None),
                None if most is None else self._each(rows.leading, order, before),
            )
        numbers = self._numbers[known]
        if numbers is None:
            return Taken.of(rows.take(None), *self._counts[known])
        return Taken.of(rows.take(torch.from_numpy(numbers).to(rows.tensor.device)), *self._counts[known])

    def _each(self, leading: tuple[int, ...], order: RowOrder, keep: Keep | None) -> Samples:
        """(N,): rows of each sample that are kept; None keeps all."""
        if keep is not None:
            return np.asarray(keep.sum(axis=1, dtype=np.int64))
        rows = math.prod(leading)
        return np.full(self._samples, rows if order.of_every_sample else rows // self._samples, np.int64)

    def _counts_of(self, rows: LayerRows, keep: Keep | None, *, masked: bool) -> Samples | None:
        """(N,): rows of each sample, where another batch may have others: under a mask, or of longer sequences."""
        each, rest = divmod(math.prod(rows.leading), self._samples)
        pictures = rows.of_patches or rows.given_for_patches or (each == 1 and len(rows.leading) == 1)
        if not masked and (pictures or rest):
            return None
        if keep is None:
            return None if masked else np.full(self._samples, each, np.int64)
        return np.asarray(keep.sum(axis=1, dtype=np.int64))

    def take_routed(self, stream: str, rows: LayerRows, places: Places) -> Taken:
        """Copy the watched rows of a layer that a router sends them to, in the order of samples and positions."""
        keep = np.zeros((self._samples, places.positions), np.bool_)
        keep.ravel()[places.numbers] = True
        mask = of_call(self.masks_of(stream), 0)
        if mask is not None:
            keep &= self._masked(stream, keep.shape, mask.numpy())
        most = self._rule.most_of(rows, paired=self._paired)
        chosen_from = None
        if most is not None:
            chosen_from = keep.sum(axis=1, dtype=np.int64)
            keep = at_most(keep, most, seed=self._rule.seed, first_sample=self._first)
        order = np.argsort(places.numbers, kind="stable")
        order = order[keep.ravel()[places.numbers[order]]]
        counts = np.bincount(places.numbers[order] // places.positions, minlength=self._samples).astype(np.int64)
        return Taken.of(rows.take(None)[torch.from_numpy(order).to(rows.tensor.device)], counts, chosen_from)

    def is_routed(self, stream: str) -> bool:
        """Tell whether a router decides which rows a layer gets."""
        return is_routed(self._orders, stream)

    @property
    def samples(self) -> int:
        """Of the batch."""
        return self._samples

    @property
    def first_sample(self) -> int:
        """The number of the first of them within its domain."""
        return self._first

    def _numbers_of(self, leading: tuple[int, ...], order: RowOrder, keep: Keep | None) -> NDArray[np.int64] | None:
        """Return the flat numbers of the rows that are taken, sample after sample; None for all as they are."""
        if order == RowOrder():
            return None if keep is None else np.flatnonzero(keep)
        numbers = order.numbers(leading, self._samples)
        return numbers.ravel() if keep is None else numbers[keep]

    def _require_samples_first(self, stream: str, rows: LayerRows) -> None:
        first, second, *_ = (*rows.leading, 0, 0)
        if rows.of_patches or rows.given_for_patches or not first != self._samples == second != 1:
            return
        raise InvalidInputError(
            f"layer '{stream}': its rows must come sample after sample; a batch of {self._samples} samples gave rows "
            f"of shape {rows.leading}: let samples be the first dimension, as batch_first=True does, or transpose "
            "before the layer; if they are, and the sizes are so by chance, take batches of another size"
        )

    def _keep(
        self, stream: str, leading: tuple[int, ...], most: int | None, order: RowOrder, mask: torch.Tensor | None
    ) -> Keep | None:
        """Return the rows to keep, (N, positions); None for all, the same number of each sample."""
        if mask is None and most is None:
            return None
        if order.of_every_sample:
            keep = np.ones((self._samples, math.prod(leading)), np.bool_)
        else:
            keep = self._all(stream, leading) if mask is None else self._masked(stream, leading, mask.numpy())
        if most is not None:
            keep = at_most(keep, most, seed=self._rule.seed, first_sample=self._first)
        return None if mask is None and bool(keep.all()) else keep

    def _all(self, stream: str, leading: tuple[int, ...]) -> Keep:
        if not leading or (math.prod(leading) if stream in (self._orders or {}) else leading[0]) % self._samples:
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
        proved = stream in (self._orders or {})
        if math.prod(leading) == mask.size and (proved or by_sample or leading[:1] == (mask.size,)):
            return mask
        raise InvalidInputError(
            f"layer '{stream}': its rows must be those of the mask, (N, T) = {mask.shape}, or one a sample, "
            f"({samples},), got {leading}: give layers masks of their own by patterns, mask={{pattern: mask}} "
            "(capture.mask in a run file), each a key or a function of the batch that returns the positions of these "
            "layers, a list of these for the calls of a layer, or None for no mask"
        )
