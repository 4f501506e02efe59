"""In what the outputs of two networks are compared, tensor by tensor: sums over a batch, which batches add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch.nn import functional

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.batches import samples_in, tensors_in
from dalr_stream.network.capture.row_rule import RowRule


class Distance(StrEnum):
    """In what the distance of two networks' outputs is measured."""

    ENERGY = "energy"
    """||Y - Y~||^2 / ||Y||^2, each tensor of the outputs by itself, and the mean of these."""
    KL = "kl"
    """KL divergence of the classes' probabilities in nats, mean over rows: of the `logits`, or the first tensor."""
    COSINE = "cosine"
    """1 - cosine of a row and the original's, mean over rows that are not 0: of embeddings, whose length is no matter.
    Each tensor of the outputs by itself, and the mean of these."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How outputs are compared: in which distance, and at which positions."""

    distance: Distance
    rows: RowRule
    """Its mask says which positions count; by default all do."""

    def tensors(self, outputs: Any, batch: Any, place: str) -> list[torch.Tensor]:
        """Return what is compared of a network's outputs on a batch; InvalidInputError, naming `place`, for nothing."""
        masks = self.rows.masks_of(batch, samples_in(batch))
        mask = None if masks is None else masks.of_outputs()
        tensors = [_counted(tensor, mask) for tensor in tensors_in(self._compared(outputs)) if tensor.ndim]
        if not tensors:
            raise InvalidInputError(f"{place}: the network's outputs hold no floating-point tensor to compare")
        return tensors

    def sums(self, expected: torch.Tensor, actual: torch.Tensor) -> torch.Tensor:
        """(2,): what one tensor differs from the one that is expected, and of what that is a share; `total` ends it."""
        y, given = expected.double(), actual.double()
        if self.distance is Distance.ENERGY:
            return torch.stack([(y - given).square().sum(), y.square().sum()])
        if self.distance is Distance.COSINE:
            counts = y.any(-1)
            gaps = functional.normalize(y, dim=-1) - functional.normalize(given, dim=-1)
            return torch.stack([0.5 * gaps[counts].square().sum(), counts.double().sum()])  # 1 - cosine, without 1 - 1
        ours, theirs = y.log_softmax(-1), given.log_softmax(-1)
        rows = torch.tensor(float(y.shape[:-1].numel()), dtype=torch.float64, device=y.device)
        return torch.stack([(ours.exp() * (ours - theirs)).sum(), rows])

    def _compared(self, outputs: Any) -> Any:
        if self.distance is not Distance.KL:
            return outputs
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
        return next((tensor for tensor in tensors_in(outputs) if tensor.ndim), None) if logits is None else logits


def total(sums: torch.Tensor) -> torch.Tensor:
    """Return the distance, a scalar: of `sums`, (tensors, 2), added up over batches."""
    gaps, scales = sums.unbind(1)
    return torch.where(scales > 0, gaps / scales.clamp(min=torch.finfo(torch.float64).tiny), gaps).mean()


def require_same_shapes(expected: Sequence[torch.Tensor], actual: Sequence[torch.Tensor], place: str) -> None:
    """Raise InvalidInputError, naming `place`, where the outputs of two networks do not belong together."""
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (expected, actual)]
    if shapes[0] != shapes[1]:
        asked, given = (", ".join(map(str, each)) for each in shapes)
        raise InvalidInputError(
            f"{place}: the original's outputs have shape {asked}, and those of the other network {given}: give the "
            "network that it was compressed from"
        )


def _counted(tensor: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the rows of the positions that count, where the tensor has a row for each position of the mask."""
    if mask is None or tensor.shape[:2] != mask.shape:
        return tensor
    return tensor[mask.to(tensor.device)]
