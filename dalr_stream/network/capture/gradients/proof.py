"""The proof, on the first batch, that gradients of all samples at once are those of each sample.

It needs two things. What a layer gives for a sample depends on no other one: `capture.proof` shows that of its rows.
And neither does the sample's own output, or loss: with one sample replaced, those of the others must stay as they are.
Cost: two forward passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.batches import call, inputs_copied
from dalr_stream.network.capture.gradient_rule import GradientRule
from dalr_stream.network.capture.gradients.ends import End, end_of
from dalr_stream.network.capture.order import Orders
from dalr_stream.network.capture.proofs.disturbed import with_sample_replaced
from dalr_stream.network.capture.proofs.observed import ROUNDING
from dalr_stream.network.capture.reading import same_draws


def require_separate_outputs(model: nn.Module, rule: GradientRule, batch: Any, samples: int) -> None:
    """Raise InvalidInputError where one sample's output, or loss, depends on another sample."""
    changed = with_sample_replaced(batch, samples)
    if changed is None:
        return
    before, after = (_by_sample(model, rule, inputs, batch, samples) for inputs in (batch, changed.batch))
    scale = float(before.abs().nan_to_num().max()) if before.numel() else 0.0
    same = torch.isclose(after, before, rtol=0.0, atol=ROUNDING * scale, equal_nan=True)
    others = [number for number in range(samples) if number != changed.sample]
    if not bool(same.reshape(samples, -1)[others].all()):
        raise InvalidInputError(
            f"gradients: with one of {samples} samples replaced, the network's outputs, or losses, of others change "
            "too: samples are mixed on the way to them, or are not their first dimension: name a function as "
            "gradients.outputs that gives each sample's own; rows.prove=False (`capture.prove = false`) takes the "
            "gradients as they come, unproved"
        )


def require_own_rows(orders: Orders, streams: Sequence[str]) -> None:
    """Raise InvalidInputError for a layer that gives rows of a table: a gradient by one is a sum over samples."""
    for stream in streams:
        if any(order is not None and order.of_every_sample for order in orders.get(stream, ())):
            raise InvalidInputError(
                f"layer '{stream}': gives rows of a table that every sample reads, of positions say, so that a "
                "gradient by them is a sum over samples: watch no gradients of it"
            )


def _by_sample(model: nn.Module, rule: GradientRule, inputs: Any, batch: Any, samples: int) -> torch.Tensor:
    with same_draws(model):
        returned = call(model, inputs_copied(inputs))
    return end_of(End(returned, batch, samples), rule).detach()
