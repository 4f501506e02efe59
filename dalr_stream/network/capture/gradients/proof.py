"""The proof, on the first batch, that gradients of all samples at once are those of each sample.

It needs two things. What a layer gives for a sample depends on no other one: `capture.proof` shows that of its rows.
And neither does the sample's own output, or loss: with one sample replaced, and other random numbers, those of the
others must stay as they are. Cost: two forward passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
from dalr_stream.network.capture.proofs.unrepeatable import what_differs
from dalr_stream.network.capture.reading import same_draws


def require_separate_outputs(model: nn.Module, rule: GradientRule, end: End) -> None:
    """Raise InvalidInputError where one sample's output, or loss, depends on another sample, or on chance.

    `end` has the batch, and nothing that was returned for it.
    """
    changed = with_sample_replaced(end.batch, end.samples) if end.samples > 1 else None
    number, inputs = (None, end.batch) if changed is None else (changed.sample, changed.batch)
    before, after = _ends(model, rule, end.batch, end, seed=0), _ends(model, rule, inputs, end, seed=1)
    others = [sample for sample in range(end.samples) if sample != number]
    if _same(before, after, others):
        return
    if not _same(before, _ends(model, rule, end.batch, end, seed=1), range(end.samples)):
        raise InvalidInputError(
            "gradients: the same batch gave other outputs, or losses, the second time: "
            f"{what_differs(model, end.batch)}; while gradients are taken nothing may be random, or depend on earlier "
            "batches: turn it off"
        )
    raise InvalidInputError(
        f"gradients: with one of {end.samples} samples replaced, the network's outputs, or losses, of others change "
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


def _same(before: torch.Tensor, after: torch.Tensor, samples: Sequence[int]) -> bool:
    """Tell whether these samples have the same outputs, to rounding."""
    if not samples:
        return True
    if before.shape != after.shape:
        return False
    scale = float(before.abs().nan_to_num().max()) if before.numel() else 0.0
    same = torch.isclose(after, before, rtol=0.0, atol=ROUNDING * scale, equal_nan=True)
    return bool(same.reshape(len(same), -1)[list(samples)].all())


def _ends(model: nn.Module, rule: GradientRule, inputs: Any, end: End, *, seed: int) -> torch.Tensor:
    """Return the outputs, or losses, of the samples with other inputs, and with the labels of `end`."""
    with same_draws(model, seed):  # never those of another pass: what is drawn must show
        returned = call(model, inputs_copied(inputs))
    return end_of(replace(end, returned=returned), rule).detach()
