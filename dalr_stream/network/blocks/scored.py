"""A network scored block by block: a metric of the user's own takes every batch through one block after the other.

All that is asked of a metric is that it calls the network once for each batch. For each block it is given every batch
by itself, and its call takes that batch one block further; in the end it is given all of them, and outputs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from dalr_stream.errors import DalrStreamError, DiskSpaceError, UnsupportedLayerError
from dalr_stream.network.blocks.continued import CountedPass, NoOutputsYetError
from dalr_stream.network.blocks.passes import BlockPasses, Blocks
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.blocks.proof import prove_blocks
from dalr_stream.network.blocks.side_by_side import Question, SideBySide, Variant
from dalr_stream.network.blocks.uncached import uncached
from dalr_stream.network.capture.loaders import length_of
from dalr_stream.network.layers.kinds import matrix_of
from dalr_stream.network.measure.macs import is_counted
from dalr_stream.progress import Progress

_NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)

METRIC = "a metric"

Metric = Callable[[nn.Module, Iterable[Any]], float]


@dataclass(frozen=True, slots=True)
class Scored:
    """What a metric gave."""

    value: float
    macs: Mapping[str, float]
    """Multiply-adds of a sample, by layer."""


def scored_by_blocks(
    model: nn.Module,
    metric: Metric,
    batches: Iterable[Any],
    folder: Path,
    *,
    blocks: Blocks,
    made_from: str | None,
    progress: Progress,
) -> Scored:
    """Return what `metric(model, batches)` gives, each block read once for all batches, and what was computed.

    `folder` is for what blocks give; with the same `made_from` a call that was killed goes on in its block. Raises
    UnsupportedLayerError where the metric does more with a network than call it once for each batch, or the network
    does not go block by block; FingerprintMismatchError where batches are not the same each time; before the first
    block, DiskSpaceError where what blocks give of all batches does not fit.
    """
    pieces, first = Pieces.of(model), first_call(model, metric, batches)
    with uncached(model):
        passes = BlockPasses.of(model, first, pieces, blocks)
        kept = prove_blocks(model, first, passes, pieces)
    _require_disk(folder, kept.sample_bytes * kept.samples * (length_of(batches) or 1))
    counted = [CountedPass(_weights(model)) for _ in range(len(passes))]
    together = SideBySide(model, passes, pieces, folder, progress, "evaluate: blocks", made_from, counted)
    (outcome,) = together.outcomes([Variant()], [question_of(metric, batches)])
    if isinstance(outcome, UnsupportedLayerError):
        raise outcome
    macs: dict[str, float] = {}
    for one in counted:
        macs |= {name: macs.get(name, 0.0) + count / one.samples for name, count in one.macs.items() if one.samples}
    return Scored(float(outcome[0]), {name: macs[name] for name, _ in model.named_modules() if name in macs})


def question_of(metric: Metric, batches: Iterable[Any], name: str = METRIC) -> Question:
    """Return what a metric asks of networks: its value, on all batches. `name` is what messages call it."""

    def call(network: nn.Module, batch: Any) -> None:
        with _no_more_than_calls(name):
            metric(network, [batch])

    def answer(network: nn.Module, _: nn.Module) -> float:
        with _no_more_than_calls(name):
            return metric(network, batches)

    return Question(batches, call, answer)


def first_call(model: nn.Module, metric: Metric, batches: Iterable[Any], name: str = METRIC) -> Any:
    """Return what a metric calls a network with for the first batch, as a batch; raises UnsupportedLayerError."""
    overheard = _Overheard(Pieces.of(model).device)
    for batch in batches:
        with suppress(NoOutputsYetError), _no_more_than_calls(name):
            metric(overheard, [batch])
        break
    if overheard.call is None:
        raise _more_than_calls(name, "it does not call the network on the first batch")
    arguments, keywords = overheard.call
    if len(arguments) == 1 and not keywords and isinstance(arguments[0], torch.Tensor):
        return arguments[0]
    names = [name for name, one in signature(model.forward).parameters.items() if one.kind in _NAMED]
    if len(names) < len(arguments):
        raise _more_than_calls(name, "it gives the network arguments that have no name")
    return {**dict(zip(names, arguments, strict=False)), **keywords}


class _Overheard(nn.Module):
    """Takes note of its first call."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros((), device=device))
        self.call: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def forward(self, *arguments: Any, **keywords: Any) -> NoReturn:
        self.call = arguments, keywords
        raise NoOutputsYetError


@contextmanager
def _no_more_than_calls(name: str) -> Iterator[None]:
    """Say that a metric asks more of a network than that it is called: whatever it raises may come of that."""
    try:
        yield
    except DalrStreamError:
        raise
    except Exception as error:
        raise _more_than_calls(name, f"{type(error).__name__}: {error}") from error


def _more_than_calls(name: str, reason: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"{name} may do no more with a network than call it once for each batch, as it goes block by block: {reason}: "
        "change that, or run the network whole"
    )


def _require_disk(folder: Path, needed: int) -> None:
    """Raise DiskSpaceError where what blocks give does not fit."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise DiskSpaceError(
            f"'{folder}': what the blocks give of all batches takes {needed / 2**30:,.1f} GiB of disk, and "
            f"{free / 2**30:,.1f} GiB are free: free some, or score on fewer samples"
        )


def _weights(model: nn.Module) -> dict[str, tuple[int, int]]:
    layers = {name: matrix_of(module) for name, module in model.named_modules() if is_counted(module)}
    return {name: (len(weight), weight.numel()) for name, weight in layers.items()}
