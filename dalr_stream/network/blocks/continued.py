"""A network of which one block is in memory, called as the whole one is: by a metric, or to compare its outputs.

    before the last pass    a call runs the block from where the pass before left this call, keeps what it gives, and
                            ends whoever made it: there are no outputs yet (`NoOutputsYetError`)
    in the last pass        a call gives what the whole network gives

So whoever uses a network, in whatever way, takes it through its blocks: the calls are its own, with its settings of
torch, and are known by what the network is called with. In the end it is asked once more, and this time gets outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from dalr_stream.errors import DalrStreamError, FingerprintMismatchError
from dalr_stream.network.blocks.block_network import in_place, put
from dalr_stream.network.blocks.passes import BlockPasses
from dalr_stream.network.capture.batches import arguments_copied
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.capture.resuming.calls import Call
from dalr_stream.network.capture.resuming.given import UsedError
from dalr_stream.network.capture.resuming.kept_states import KeptStream
from dalr_stream.network.capture.resuming.onward import ForwardRun
from dalr_stream.network.layers.identity import digest_of_member


class NoOutputsYetError(BaseException):
    """A call was taken one block further. No caller's own `except Exception` takes it."""


@dataclass(slots=True)
class KnownCalls:
    """What a network is called with: numbered as it first came, known by its digest."""

    numbers: dict[str, int] = field(default_factory=dict)
    complete: bool = False
    """Whether all of them have come: in the first pass they do."""
    failed: DalrStreamError | None = None
    """What a call raised, if one did."""

    def number(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> int:
        """Return that of a call; raises FingerprintMismatchError for one that the first pass did not have."""
        digest = digest_of_member([arguments, keywords])
        if self.complete and digest not in self.numbers:
            raise FingerprintMismatchError(
                "blocks: a network is called with what it was not called with in the first pass: batches must be the "
                "same in every pass, so turn off random augmentation, and call the network once for each batch"
            )
        return self.numbers.setdefault(digest, len(self.numbers))

    def require_sound(self) -> None:
        """Raise what a call raised, whatever the caller made of it."""
        if self.failed is not None:
            raise self.failed


@dataclass(slots=True)
class CountedPass:
    """What is counted in one pass, in all calls of all networks."""

    weights: Mapping[str, tuple[int, int]]
    """Of each layer that is counted: outputs, and all weights that reach them."""
    samples: int = 0
    """By the first tensor of each call."""
    macs: dict[str, int] = field(default_factory=dict)
    """Multiply-adds, by layer."""

    def called(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        """Count a call's samples."""
        tensors = [one for one in (*arguments, *keywords.values()) if isinstance(one, torch.Tensor)]
        self.samples += len(tensors[0]) if tensors and tensors[0].ndim else 0

    def ran(self, name: str, given: Any) -> None:
        """Count what a module took for what it gave."""
        if name in self.weights:
            outputs, weights = self.weights[name]
            self.macs[name] = self.macs.get(name, 0) + given.numel() // outputs * weights


class ContinuedNetwork(nn.Module):
    """The pieces of one pass, under the names that they have in the whole network; see the module."""

    def __init__(
        self,
        host: nn.Module,
        passes: BlockPasses,
        number: int,
        stream: KeptStream,
        calls: KnownCalls,
        own: Mapping[str, nn.Module] | None = None,
        counted: CountedPass | None = None,
    ) -> None:
        """Take the pieces of pass `number` of `host`, those in `own` in their places; `stream` has what was left."""
        super().__init__()
        self._run = _Run(host, passes, number, stream, calls, counted or CountedPass({}))
        for piece in passes.pieces[number]:
            put(self, piece, (own or {}).get(piece, host.get_submodule(piece)))
        self.eval()

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        """Take a call one block further, or give what the network gives."""
        run = self._run
        try:
            own = {name: self.get_submodule(name) for name in run.passes.pieces[run.number]}
            return run(own, arguments, keywords)
        except DalrStreamError as error:
            run.calls.failed = error
            raise


@dataclass(frozen=True, slots=True)
class _Run:
    """What takes a call further: no part of what the network holds."""

    host: nn.Module
    passes: BlockPasses
    number: int
    stream: KeptStream
    calls: KnownCalls
    counted: CountedPass

    def __call__(self, own: Mapping[str, nn.Module], arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
        key = self.calls.number(arguments, keywords)
        self.counted.called(arguments, keywords)
        state = self.stream.state(key)
        given = {} if state is None else state.given
        with in_place(self.host, own):
            try:
                if self.number == len(self.passes) - 1:
                    last = ForwardRun(given, {}, ran=self.counted.ran)
                    return last.called(self.host, partial(self.host, *arguments, **keywords))
                kept = self._kept(given, arguments, keywords)
            except UsedError:
                self.stream.forget()  # says why it is refused
                raise
        self.stream.keep(key, kept)
        raise NoOutputsYetError

    def _kept(
        self, given: Mapping[Call, Any], arguments: tuple[Any, ...], keywords: Mapping[str, Any]
    ) -> Mapping[Call, Any] | None:
        """Return what the next pass needs of a call; None where not all of it came to be."""
        run = ForwardRun(given, self.passes.done[self.number], until_kept=True, ran=self.counted.ran)
        with without_gradients():
            copies, named = arguments_copied(arguments, keywords)
            run.called(self.host, partial(self.host, *copies, **named))
        return run.kept if run.is_complete else None
