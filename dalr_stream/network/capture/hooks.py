"""Runs a network over batches and sends what its watched layers read or give, as rows, to a sink.

The network is left as it was: hooks live inside a `with` block, nothing is switched to eval mode behind the
user's back (a network in train mode is an error: dropout would make every row random), and no gradient is recorded.
Rows are chosen and copied inside the hooks, as tensors on their own device: the network may overwrite its tensors from
then on. They become numpy arrays in a last step of its own.
A row batch reaches the sink whole and finite, or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from dalr_stream.errors import InvalidInputError, NonFiniteError
from dalr_stream.network.capture.batches import (
    digest_of_inputs,
    holds_batches,
    refusals_explained,
    samples_in,
)
from dalr_stream.network.capture.dealt import Elsewhere, can_deal, dealt
from dalr_stream.network.capture.loaders import beginning_at, can_resume
from dalr_stream.network.capture.masks import BatchMasks
from dalr_stream.network.capture.proofs.probe import probe_of
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.capture.resuming.onward import ResumedPass
from dalr_stream.network.capture.row_rule import RowRule, rule_of
from dalr_stream.network.capture.taken import Taken
from dalr_stream.network.capture.taking import RowTaker
from dalr_stream.network.layers.identity import require_numbers
from dalr_stream.network.layers.spec import LayerSpec, to_host
from dalr_stream.numerics.rows.probe import Probe
from dalr_stream.numerics.rows.share import UNSEEN, Share
from dalr_stream.numerics.rows.tiling import ComparingSink, RowBatch, RowSink, same_as_before
from dalr_stream.numerics.statistics.centring import describe_non_finite

BatchDone = Callable[[int, bool], None]
"""Called after each batch with its number of samples, and whether it was skipped because the sink had it."""
ToRows = Callable[[torch.Tensor], Any]
"""Makes what a sink takes of rows that are its own: a numpy array (`to_host`), or a tensor on a device."""


def capture_rows(  # noqa: PLR0913  # what is captured, where it goes, and who is told
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    sink: RowSink,
    *,
    rows: RowRule | None = None,
    batch_done: BatchDone | None = None,
    to_rows: ToRows = to_host,
    note: Callable[[str], None] | None = None,
    onward: ResumedPass | None = None,
    probed: Callable[[Probe], None] | None = None,
    share_from: Callable[[int], Share] | None = None,
) -> None:
    """Send what `layers` read, or give, to `sink`, batch after batch.

    Parameters
    ----------
    model
        In eval mode. A batch goes to the device of its first parameter. A network on several devices moves what it
        computes itself, as one with a `hf_device_map` does; rows are taken wherever a layer reads or gives them.
    batches
        Each is a tensor (N, ...), a mapping of keyword arguments, or a tuple whose first member is one of these. The
        same batches in the same order on every run: each one's digest is compared on resume. A loader that can begin
        in the middle (see `network.loaders`) does, and what it does not load is not compared.
    layers
        From `select_layers`. A tensor of shape (N, ..., d) gives prod(N, ...) rows of d features.
    sink
        Says which batches it holds already; those are not run again.
    rows
        Which of those rows are watched; all of them by default. Whose rows they are, and that they are the same each
        time, is proved on the first batch, in three forward passes more; see `network.capture.proofs.proof`. And which
        gradients, where layers are watched for them: a backward pass a draw.
    to_rows
        What the sink takes as rows: numpy arrays by default, or tensors that stay where they are.
    note
        Called with what was found out that one may not expect: layers called several times, or not in sample order.
    onward
        Runs the network on from where an earlier pass left it, as far as the last of `layers`; nothing is proved then.
    probed
        Called with what the network gives for a made-up sample, before the first batch that is run is written: another
        network than before shows there, whatever makes it another. One forward pass of one sample.
    share_from
        What this process loads of the batches from a number on, where several share them; those of others are skipped
        with the digest `UNSEEN`. A loader that cannot give single batches (see `network.loaders`) gives all.

    Raises NonFiniteError (layer, batch and count named; nothing of that batch reaches the sink), UnsupportedLayerError
    for a layer that a forward pass never calls, or not as often as the first one did, InvalidInputError for train mode,
    an empty loader or weights on the meta device.
    """
    by_blocks = onward is not None and onward.by_blocks
    if not by_blocks:  # a pass may only take the batches further then, and weights come and go
        require_layers(layers)
        require_numbers(model)
    require_batches(batches)
    require_eval(model)
    rule, batch_done = rule_of(rows), batch_done or _ignore_batch
    held = sink.held if can_resume(batches) else ()
    first = max(len(held) - 1, 0)  # the last one is loaded again: a loader that begins in the wrong place is noticed
    for samples in held[:first]:
        batch_done(samples, True)  # noqa: FBT003  # a Callable has no keywords
    seen = sum(held[:first])
    taker = RowTaker(model, layers, rule, onward=onward)
    compared = not isinstance(sink, ComparingSink) or sink.compares
    with without_gradients():
        for number, batch in enumerate(_loaded(batches, first, share_from), start=first):
            samples, masks, digest = _identity(batch, rule, compared=compared)
            skipped = sink.skip(number, samples, digest)
            if not skipped:
                with refusals_explained(batch, f"capture: batch {number}"):
                    taken = taker.take(batch, samples, seen, masks, number=number) if samples else {}
                if probed is not None and samples and rule.prove:
                    probe, once = probe_of(model, batch, samples), probed
                    probed = None
                    if probe is not None:
                        once(probe)
                sink.write(_row_batch(samples, digest, taken, number, to_rows))
                taken = {}  # else they would be there until those of the next batch are too
            seen += samples
            batch_done(samples, skipped)
    if seen == 0:
        raise InvalidInputError("capture: the loader gave no sample: check the data set, its split and its filters")
    sink.finish()
    if note is not None:
        for line in taker.notes:
            note(line)


def require_eval(model: nn.Module, place: str = "capture") -> None:
    """Raise InvalidInputError where a part of the network is in train mode."""
    training = [name or "the network" for name, module in model.named_modules() if module.training]
    if training:
        raise InvalidInputError(
            f"{place}: the network must be in eval mode, '{training[0]}' is in train mode: call model.eval()"
        )


def _loaded(batches: Iterable[Any], first: int, share_from: Callable[[int], Share] | None) -> Iterable[Any]:
    if share_from is not None and can_deal(batches):
        return dealt(batches, first, share_from)
    return beginning_at(batches, first) if first else batches


def require_layers(layers: Sequence[LayerSpec]) -> None:
    """Raise InvalidInputError for no layers, or for what is not from `select_layers`."""
    if not layers:
        raise InvalidInputError("capture: needs at least one layer")
    strange = next((layer for layer in layers if not isinstance(layer, LayerSpec)), None)
    if strange is not None:
        raise InvalidInputError(f"capture: layers come from select_layers(model, patterns), got {strange!r} among them")


def require_batches(batches: Iterable[Any]) -> None:
    """Raise InvalidInputError for what holds no batches."""
    if not holds_batches(batches):
        raise InvalidInputError(
            f"capture: batches must be a list of batches, a DataLoader or the like, got a {type(batches).__name__}"
        )


def batch_identities(batches: Iterable[Any], rule: RowRule) -> Iterator[tuple[int, str]]:
    """Yield the samples and the digest of each batch, as a sink is given them, and run no network."""
    for batch in batches:
        samples, _, digest = _identity(batch, rule)
        yield samples, digest


def _row_batch(samples: int, digest: str, taken: Mapping[str, Taken], batch: int, to_rows: ToRows) -> RowBatch:
    """Turn what was taken into what the sink folds; NonFiniteError."""
    distinct = {id(one): one.rows for one in taken.values()}
    converted = {key: to_rows(tensor) for key, tensor in distinct.items()}
    rows = {name: converted[id(one)] for name, one in taken.items()}
    _require_finite({name: rows[name] for name, one in taken.items() if not one.finite}, batch)
    counts = {name: one.counts for name, one in taken.items() if one.counts is not None}
    return RowBatch(samples, digest, rows, counts)


def _require_finite(rows: Mapping[str, Any], batch: int) -> None:
    shared = same_as_before(rows)
    for name, block in ((name, block) for name, block in rows.items() if name not in shared):
        finite = block.isfinite() if isinstance(block, torch.Tensor) else np.isfinite(block)
        if not finite.all():
            described = describe_non_finite(to_host(block))
            raise NonFiniteError(
                f"layer '{name}', batch {batch}: activations must be finite, got {described}; "
                "nothing of this batch was committed: look for overflow in half precision or bad inputs"
            )


def _ignore_batch(samples: int, skipped: bool) -> None:  # noqa: FBT001  # a BatchDone
    """Take no note of a batch."""


def _identity(batch: Any, rule: RowRule, *, compared: bool = True) -> tuple[int, BatchMasks | None, str]:
    """Return samples, masks and digest of a batch; of one that is loaded elsewhere the samples alone are known."""
    if isinstance(batch, Elsewhere):
        return batch.samples, None, UNSEEN
    samples = samples_in(batch)
    masks = rule.masks_of(batch, samples)
    return samples, masks, _digest(batch, masks, rule) if compared else UNSEEN


def _digest(batch: Any, masks: BatchMasks | None, rule: RowRule) -> str:
    """SHA-256 of what decides the rows of a batch: what the network sees, the masks, and labels where these count."""
    by_labels = rule.gradients is not None and rule.gradients.by_labels
    seen = digest_of_inputs({"": batch} if by_labels else batch)
    return seen if masks is None else hashlib.sha256(f"{seen}:{masks.digest}".encode()).hexdigest()
