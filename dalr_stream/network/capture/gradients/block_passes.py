"""One block's turns where gradients are watched: on the way forward, and once more on the way back.

    FollowedPass   forward, as the way back will run it: operations may compute otherwise where gradients are followed
    BackwardPass   forward again from what was kept before it, and back from the gradients that the next block left

For each batch what the block gives, and the gradients by what it began with, are on disk before its rows are folded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from dalr_stream.network.capture.gradients.crossing import (
    BlockRun,
    Crossing,
    Entering,
    Gradients,
    Place,
    needing_the_last_block_alone,
)
from dalr_stream.network.capture.gradients.edges import edges_of
from dalr_stream.network.capture.order import Orders
from dalr_stream.network.capture.resuming.calls import Call
from dalr_stream.network.capture.resuming.given import UsedError
from dalr_stream.network.capture.resuming.kept_states import KeptStream
from dalr_stream.network.capture.resuming.onward import ForwardRun
from dalr_stream.network.capture.taken import Taken
from dalr_stream.network.layers.spec import LayerSpec


@dataclass(slots=True)
class FollowedPass:
    """One block on every batch, as far as what it gives: a `ResumedPass`."""

    model: nn.Module
    layers: Sequence[LayerSpec]
    """Those of the block that are watched for gradients."""
    stream: KeptStream
    before: Place | None
    after: Place | None
    orders: Orders | None
    by_blocks: bool = True

    def take(self, rows: Callable[[ForwardRun], dict[str, Taken]], key: int) -> dict[str, Taken]:
        """Return the rows of a batch, and keep what the block gives for it."""
        entering, done = Entering(given_of(self.stream, key), self.before), self.after.done if self.after else {}
        run = ForwardRun(entering.given, done, until_kept=True, handing=entering)
        try:
            with edges_of(self.model, self.layers, (), 0):
                taken = rows(run)
        except UsedError:
            self.stream.forget()
            raise
        if self.after is not None:
            self.stream.keep(key, run.kept if run.is_complete else None)
        return taken


@dataclass(slots=True)
class BackwardPass:
    """One block on every batch, and back: a `ResumedPass`."""

    stream: KeptStream
    """Where the batches were on the way forward, before this block."""
    gradients: KeptStream
    """By what the block gave, and by what it began with."""
    before: Place | None
    after: Place | None
    orders: Orders | None
    by_blocks: bool = True

    def take(self, rows: Callable[[ForwardRun], dict[str, Taken]], key: int) -> dict[str, Taken]:
        """Return the rows of a batch, and keep the gradients by what the block began with."""
        later: Gradients = given_of(self.gradients, key)
        run = BlockRun(Crossing(given_of(self.stream, key), self.before, self.after, later))
        with needing_the_last_block_alone():
            taken = rows(run)
        self.gradients.keep(key, run.crossing.carried())
        return taken


def given_of(kept: KeptStream, key: int) -> Mapping[Call, Any]:
    """Return what a pass begins with; nothing where none was before."""
    state = kept.state(key)
    return {} if state is None else state.given
