"""How far the outputs of other networks are from one network's, on a few batches without labels.

The one unit in which what different layers lose can be compared and added up, and what candidates are chosen by where
there is no score: every layer's error matters by what becomes of it at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from dalr_stream.errors import InvalidInputError, NonFiniteError
from dalr_stream.network.capture.batches import (
    call,
    few_samples,
    held_out_of,
    inputs_copied,
    inputs_of,
    refusals_explained,
    samples_in,
    tensors_in,
)
from dalr_stream.network.capture.hooks import require_eval
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.capture.row_rule import RowRule, rule_of
from dalr_stream.network.measure.distance import Comparison, Distance, require_same_shapes, total
from dalr_stream.network.measure.memory import memory_of
from dalr_stream.numerics.options import parse_choice, whole_number
from dalr_stream.numerics.rows.sampling import HoldoutRule

PLACE = "compress"
KEPT_BYTES = 256 * 2**20
"""Of the network's own outputs; what does not fit is computed again for each other network."""


class OutputDistance:
    """How far the outputs of other networks are from this one's: call it with a network, and it returns the distance.

    Parameters
    ----------
    model
        The network whose outputs are the reference, in eval mode.
    batches
        What it is run on, as for `accumulate`; labels are not needed.
    samples
        How many samples, from the first on, are used.
    holdout
        Which samples were held out of the statistics: only these are used, since what is compressed is fitted to the
        others. All are where there is no such rule, or the loader has none that it holds out.
    rows
        Its mask says which positions count; by default all do.
    distance
        "energy", ||Y - Y~||^2 / ||Y||^2; "kl", the divergence of class probabilities in nats; or "cosine", 1 - cosine
        of each row.
    kept_bytes
        Keep at most this much of the reference outputs; the rest is computed again for each other network.

    Raises
    ------
    InvalidInputError
        For a network in train mode, where the loader gives no sample, or `holdout` is no rule. When it is called:
        where the other network is in train mode or its outputs are of another shape, or the mask counts no position.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 3)).eval()
    >>> distance = ds.OutputDistance(model, [torch.randn(32, 6)])
    >>> distance(model)
    0.0
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        *,
        samples: int = 128,
        holdout: HoldoutRule | None = None,
        rows: RowRule | None = None,
        distance: Distance | str = Distance.ENERGY,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        require_eval(model, PLACE)
        whole_number(samples, f"{PLACE}: samples to measure networks on")
        self._model = model
        self._comparison = Comparison(parse_choice(Distance, distance, "distance"), rule_of(rows))
        if not isinstance(holdout, HoldoutRule | None):
            raise InvalidInputError(f"holdout must be a rule, ds.HoldoutRule(0.1) say, got {holdout!r}")
        unseen = [] if holdout is None else list(_first(held_out_of(batches, holdout), samples))
        self.held_out = bool(unseen)
        """Whether it is measured on samples that were held out of the statistics."""
        self._batches = unseen or list(_first(batches, samples))
        self._room = kept_bytes
        self._kept: dict[int, list[torch.Tensor]] = {}
        self.samples = sum(map(samples_in, self._batches))
        """How many samples it is measured on."""
        if not self.samples:
            raise InvalidInputError(f"{PLACE}: the loader gave no sample to measure networks on")

    def __call__(self, other: nn.Module) -> float:
        """Return the distance.

        Raises NonFiniteError where it is not finite, InvalidInputError where outputs do not belong together.
        """
        return self.between(self._model, other)

    @property
    def model(self) -> nn.Module:
        """The network whose outputs are the reference."""
        return self._model

    @property
    def batches(self) -> Sequence[Any]:
        """What networks are run on."""
        return self._batches

    def between(self, model: nn.Module, other: nn.Module) -> float:
        """Return the same where `model` stands for the network whose outputs are the reference."""
        require_eval(other, PLACE)
        sums, compared = torch.zeros(0, 2, dtype=torch.float64), 0
        with without_gradients():
            for number, batch in enumerate(self._batches):
                expected, actual = self._expected(model, number), self._outputs(other, batch)
                require_same_shapes(expected, actual, PLACE)
                parts = torch.stack([self._comparison.sums(*pair) for pair in zip(expected, actual, strict=True)])
                sums = parts if not len(sums) else sums + parts
                compared += sum(tensor.numel() for tensor in expected)
        if not compared:
            raise InvalidInputError(
                f"{PLACE}: the mask counts no position in any of the {self.samples} samples that networks are measured "
                "on: look at the mask, or take more samples"
            )
        value = float(total(sums))
        if not value < float("inf"):
            raise NonFiniteError("the outputs of the compressed network are not finite on the batches it is tried on")
        return value

    def _expected(self, model: nn.Module, number: int) -> list[torch.Tensor]:
        if number in self._kept:
            return self._kept[number]
        outputs = self._outputs(model, self._batches[number])
        size = sum(tensor.nbytes for tensor in outputs)
        if size <= self._room:
            self._room -= size
            self._kept[number] = outputs
        return outputs

    def _outputs(self, model: nn.Module, batch: Any) -> list[torch.Tensor]:
        with refusals_explained(batch, PLACE):
            outputs = call(model, inputs_copied(batch))
        return self._comparison.tensors(outputs, batch, PLACE)


def measuring_bytes(model: nn.Module, batches: Iterable[Any], samples: int, kept_bytes: int = KEPT_BYTES) -> int:
    """Return what measuring other networks holds: the first samples, what the network gives for them, a pass.

    Cost: a forward pass of the first batch.
    """
    first = next(_first(batches, samples), None)
    count = 0 if first is None else samples_in(first)
    if not count:
        return 0
    given: list[torch.Tensor] = []
    passed = memory_of(model, first, lambda: given.extend(tensors_in(call(model, inputs_copied(first)))))
    outputs, batch = (sum(tensor.nbytes for tensor in tensors) for tensors in (given, tensors_in(inputs_of(first))))
    times = max(1.0, samples / count)
    return int(times * batch) + min(kept_bytes, int(times * outputs)) + passed.peak_bytes


def _first(batches: Iterable[Any], samples: int) -> Iterator[Any]:
    """Yield the first samples, in the loader's batches."""
    left = samples
    for batch in batches:
        few = few_samples(batch, left)
        yield few
        left -= samples_in(few)
        if left <= 0:
            return
