"""Fine-tuning: a compressed network learns what its compression lost, from labels or from the original's outputs.

MoMaSP's setting is the default (section 5.1): Adam at 1e-4, weight decay 5e-4, fully connected layers alone. The batch
size is the loader's, 50 in the paper; the paper leaves the number of epochs to its supplement, and ten is our choice.
torch's Adam adds the decay to the gradient: it is L2 regularisation, not AdamW's decoupled decay. Dropout is off, as
for the selections of section 5.3, whose dropout layers are narrower; the text names no such change for DALR.

What is not trained stays as it is, bit for bit: the other parameters are frozen, and every module is in eval mode, so
batch norm keeps its statistics. The order of the batches is the loader's; what it draws from torch's generator is
seeded anew for each epoch, and what the network draws for each batch, so the epochs that follow depend on the number of
those that are done and on nothing else. With a checkpoint after each epoch, an interrupted call resumes to the same
bits. On a GPU that holds as far as its kernels are deterministic.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from dalr_stream.errors import FingerprintMismatchError, InvalidInputError, NonFiniteError
from dalr_stream.network.capture.batches import call, digest_of_inputs, inputs_copied, refusals_explained, samples_in
from dalr_stream.network.layers.identity import digest_of_member
from dalr_stream.network.training.epochs import Epochs, EpochsFile, Trained
from dalr_stream.network.training.seeding import own_generator, seed
from dalr_stream.network.training.setting import FineTuning
from dalr_stream.network.training.trainable import only_trained

EpochDone = Callable[[int, float], None]
"""Called with the number of an epoch, from 1, and the mean loss of its samples."""


@runtime_checkable
class Numbered(Protocol):
    """A loader that is told the number of each epoch, from 0, and needs no other memory of those before."""

    def set_epoch(self, epoch: int) -> Any:
        """Make the next iteration that of epoch number `epoch`."""


def finetune(
    model: nn.Module,
    batches: Iterable[Any],
    options: FineTuning | None = None,
    *,
    checkpoint: str | Path | None = None,
    epoch_done: EpochDone | None = None,
) -> nn.Module:
    """Return a fine-tuned copy of `model`, with its dtype, device, modes and plan; `model` is left as it is.

    Parameters
    ----------
    model
        From `compress` or `load`, or any other network.
    batches
        Re-iterable, of pairs (inputs, labels); inputs as `capture` takes them. Towards the original's outputs, with an
        `OutputLoss`, batches as `capture` takes them. Never the test split.
    options
        The setting of the MoMaSP paper by default.
    checkpoint
        A file for weights and Adam's state after each epoch, left in place. Where it exists, training resumes from it:
        batches of finished epochs are loaded again without training, so that a loader with a memory is where it was,
        and those of the last one are compared; a loader with `set_epoch(number)` is asked for the last one alone.
    epoch_done
        Called with each epoch's number, from 1, and its mean loss; those of an earlier call first.

    Returns
    -------
    torch.nn.Module
        The fine-tuned copy.

    Raises
    ------
    NonFiniteError
        For a loss or weights that are NaN or Inf; names epoch and batch.
    InvalidInputError
        For a loader that gives nothing, or no pairs; for outputs that cannot be compared with the original's.
    LayerNotFoundError, UnsupportedLayerError
        For patterns that match nothing, or nothing that can be trained.
    FingerprintMismatchError, StoreDamagedError
        For a checkpoint of other weights, options or batches, or a damaged one.

    See Also
    --------
    FineTuning : the options.
    OutputLoss : a loss without labels.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
    >>> pairs = [(torch.randn(32, 6), torch.randint(3, (32,)))]
    >>> epochs = []
    >>> tuned = ds.finetune(model, pairs, ds.FineTuning(epochs=2), epoch_done=lambda epoch, loss: epochs.append(epoch))
    >>> epochs, torch.equal(tuned[0].weight, model[0].weight)
    ([1, 2], False)
    """
    options, epoch_done = options or FineTuning(), epoch_done or _ignore_epoch
    tuned = copy.deepcopy(model)
    with (
        only_trained(tuned, options.layers, options.train, dropout=options.dropout) as trained,
        own_generator(tuned),
        torch.enable_grad(),
    ):
        descent = torch.optim.Adam(trained.values(), lr=options.rate, weight_decay=options.decay)
        epochs_file = None if checkpoint is None else EpochsFile(Path(checkpoint), options.made_from(model))
        done = Epochs() if epochs_file is None else epochs_file.restore(trained, descent)
        _go_through_again(batches, options, done)
        for number, loss in enumerate(done.losses, start=1):
            epoch_done(number, loss)
        for epoch in range(done.count, options.epochs):
            pairs, digest = _pairs(batches, options, epoch), hashlib.sha256()
            loss = _epoch(tuned, pairs if epochs_file is None else _digested(pairs, digest), descent, options, epoch)
            _require_finite(trained, epoch, options)
            done = Epochs((*done.losses, loss), digest.hexdigest())
            if epochs_file is not None:
                epochs_file.save(done, trained, descent)
            epoch_done(done.count, loss)
    return tuned


def _pairs(batches: Iterable[Any], options: FineTuning, epoch: int) -> Iterator[tuple[Any, Any]]:
    """Yield the batches of one epoch as inputs and labels; without labels, as inputs and the batch itself.

    What the loader draws on the way is decided by the epoch's number alone.
    """
    seed(options.seed, epoch)
    if isinstance(batches, Numbered):
        batches.set_epoch(epoch)
    for batch in batches:
        if options.without_labels:
            yield inputs_copied(batch), batch
        elif isinstance(batch, tuple | list) and len(batch) == 2:
            yield batch[0], batch[1]
        else:
            raise InvalidInputError(
                f"fine-tuning: batches must be (inputs, labels) pairs, got {type(batch).__name__}: give the labels too"
            )


def _digested(pairs: Iterator[tuple[Any, Any]], digest: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the batches, each after `digest` has it: what is compared when a checkpoint is resumed."""
    for inputs, labels in pairs:
        digest.update(_digest(inputs, labels))
        yield inputs, labels


def _epoch(
    model: nn.Module,
    pairs: Iterator[tuple[Any, Any]],
    descent: torch.optim.Optimizer,
    options: FineTuning,
    epoch: int,
) -> float:
    """Take one step a batch; return the mean loss."""
    total, seen = 0.0, 0
    for number, (inputs, labels) in enumerate(pairs):
        samples = samples_in(inputs)
        if samples:
            with own_generator(model):  # what the network draws must not move what the loader draws
                seed(options.seed, epoch, number)
                loss = _loss(model, inputs, labels, options, f"epoch {epoch + 1}, batch {number}")
            descent.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch annotates it in part
            descent.step()
            total, seen = total + float(loss.detach()) * samples, seen + samples
    if not seen:
        remedy = "check the data set, its split and its filters" if not epoch else "a generator gives its batches once"
        raise InvalidInputError(f"fine-tuning: epoch {epoch + 1}: the loader gave no sample: {remedy}")
    return total / seen


def _loss(model: nn.Module, inputs: Any, labels: Any, options: FineTuning, place: str) -> torch.Tensor:
    device = next(model.parameters()).device
    with refusals_explained((inputs,), f"fine-tuning: {place}"):
        outputs = call(model, inputs)
    loss = options.loss(outputs, labels.to(device) if isinstance(labels, torch.Tensor) else labels)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise InvalidInputError(
            f"fine-tuning: {place}: the loss must be one number that depends on what is trained, got {loss!r}: look at "
            "the loss function, and whether the network uses the layers that are trained"
        )
    if not loss.isfinite().all():
        raise NonFiniteError(
            f"fine-tuning: {place}: the loss must be finite, got {float(loss.detach())}: look for bad inputs or "
            f"overflow in half precision, or lower the rate, {options.rate}"
        )
    return loss


def _require_finite(trained: Trained, epoch: int, options: FineTuning) -> None:
    for name, parameter in trained.items():
        if not parameter.isfinite().all():
            raise NonFiniteError(
                f"fine-tuning: epoch {epoch + 1}: '{name}' must be finite, and is not any more: look for overflow in "
                f"half precision, or lower the rate, {options.rate}"
            )


def _go_through_again(batches: Iterable[Any], options: FineTuning, done: Epochs) -> None:
    """Bring a loader to where it was after the epochs that are done; FingerprintMismatchError for other batches."""
    if not done.count:
        return
    last, digest = done.count - 1, hashlib.sha256()
    for epoch in range(last if isinstance(batches, Numbered) else 0, last):
        for _ in _pairs(batches, options, epoch):
            pass
    for inputs, labels in _pairs(batches, options, last):
        digest.update(_digest(inputs, labels))
    if digest.hexdigest() != done.batches:
        raise FingerprintMismatchError(
            f"fine-tuning: in epoch {done.count} the loader gives other batches than before the interruption: let it "
            "draw from its seed, or from torch's generator, alone; or remove the checkpoint and start over"
        )


def _digest(inputs: Any, labels: Any) -> bytes:
    return f"{digest_of_inputs(inputs)}:{digest_of_member(labels)};".encode()


def _ignore_epoch(epoch: int, loss: float) -> None:
    """Take no note of an epoch."""
