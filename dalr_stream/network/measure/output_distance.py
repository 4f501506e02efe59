"""How far the outputs of other networks are from one network's, on a few batches without labels.

The one unit in which what different layers lose can be compared and added up, and what candidates are chosen by where
there is no score: every layer's error matters by what becomes of it at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any

import torch
from torch import nn

from dalr_stream.errors import InvalidInputError, NonFiniteError
from dalr_stream.network.capture.batches import call, few_samples, inputs_copied, samples_in
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.numerics.options import parse_choice

KEPT_BYTES = 256 * 2**20
"""Of the network's own outputs; what does not fit is computed again for each other network."""


class Distance(StrEnum):
    """In what the distance of two networks' outputs is measured."""

    ENERGY = "energy"
    """||Y - Y~||^2 / ||Y||^2, each tensor of the outputs by itself, and the mean of these."""
    KL = "kl"
    """KL divergence of the classes' probabilities in nats, mean over rows: of the `logits`, or the first tensor."""


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
    rows
        Its mask says which positions count; by default all do.
    distance
        "energy", ||Y - Y~||^2 / ||Y||^2; or "kl", the divergence of class probabilities in nats.
    kept_bytes
        Keep at most this much of the reference outputs; the rest is computed again for each other network.

    Raises
    ------
    InvalidInputError
        Where the loader gives no sample.

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
        rows: RowRule | None = None,
        distance: Distance | str = Distance.ENERGY,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self._model = model
        self._rows = rows or RowRule()
        self._distance = parse_choice(Distance, distance, "distance")
        self._batches = list(_first(batches, samples))
        self._room = kept_bytes
        self._kept: dict[int, list[torch.Tensor]] = {}
        self.samples = sum(map(samples_in, self._batches))
        """How many samples it is measured on."""
        if not self.samples:
            raise InvalidInputError("compress: the loader gave no sample to measure networks on")

    def __call__(self, other: nn.Module) -> float:
        """Return the distance; raises NonFiniteError where it is not finite."""
        sums = torch.zeros(0, 2, dtype=torch.float64)
        with without_gradients():
            for number, batch in enumerate(self._batches):
                pairs = zip(self._expected(number), self._outputs(other, batch), strict=True)
                parts = torch.stack([self._of(*pair) for pair in pairs])
                sums = parts if not len(sums) else sums + parts
        gaps, scales = sums.unbind(1)
        value = float(torch.where(scales > 0, gaps / scales.clamp(min=torch.finfo(torch.float64).tiny), gaps).mean())
        if not value < float("inf"):
            raise NonFiniteError("the outputs of the compressed network are not finite on the batches it is tried on")
        return value

    def _of(self, expected: torch.Tensor, actual: torch.Tensor) -> torch.Tensor:
        """(2,): a sum over the rows of a tensor, and what it is a share of."""
        y, given = expected.double(), actual.double()
        if self._distance is Distance.ENERGY:
            return torch.stack([(y - given).square().sum(), y.square().sum()])
        ours, theirs = y.log_softmax(-1), given.log_softmax(-1)
        rows = torch.tensor(float(y.shape[:-1].numel()), dtype=torch.float64, device=y.device)
        return torch.stack([(ours.exp() * (ours - theirs)).sum(), rows])

    def _expected(self, number: int) -> list[torch.Tensor]:
        if number in self._kept:
            return self._kept[number]
        outputs = self._outputs(self._model, self._batches[number])
        size = sum(tensor.nbytes for tensor in outputs)
        if size <= self._room:
            self._room -= size
            self._kept[number] = outputs
        return outputs

    def _outputs(self, model: nn.Module, batch: Any) -> list[torch.Tensor]:
        given = call(model, inputs_copied(batch))
        masks = self._rows.masks_of(batch, samples_in(batch))
        mask = None if masks is None else masks.of_layer("")
        tensors = [_counted(tensor, mask) for tensor in _floating(self._counting(given))]
        if not tensors:
            raise InvalidInputError("compress: the network's outputs hold no floating-point tensor to compare")
        return tensors

    def _counting(self, outputs: Any) -> Any:
        if self._distance is Distance.ENERGY:
            return outputs
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
        return next(_floating(outputs), None) if logits is None else logits


def _first(batches: Iterable[Any], samples: int) -> Iterator[Any]:
    """Yield the first samples, in the loader's batches."""
    left = samples
    for batch in batches:
        few = few_samples(batch, left)
        yield few
        left -= samples_in(few)
        if left <= 0:
            return


def _floating(outputs: Any) -> Iterator[torch.Tensor]:
    if isinstance(outputs, torch.Tensor) and outputs.is_floating_point() and outputs.ndim:
        yield outputs
    members = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, tuple | list) else ()
    for member in members:
        yield from _floating(member)


def _counted(tensor: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the rows of the positions that count, where the tensor has a row for each position of the mask."""
    if mask is None or tensor.shape[:2] != mask.shape:
        return tensor
    return tensor[mask.to(tensor.device)]
