"""One block's turn on the way back: its forward pass once more, from what was kept before it, and gradients through it.

For each batch the gradients by what the block began with are on disk before its rows are folded, as what it gives is on
the way forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from dalr_stream.network.capture.gradients.crossing import (
    BlockRun,
    Crossing,
    Gradients,
    Place,
    needing_the_last_block_alone,
)
from dalr_stream.network.capture.order import Orders
from dalr_stream.network.capture.resuming.calls import Call
from dalr_stream.network.capture.resuming.kept_states import State
from dalr_stream.network.capture.resuming.onward import ForwardRun
from dalr_stream.network.capture.taken import Taken


class Kept(Protocol):
    """Where what one pass left of each batch lies, by the number of its first sample."""

    def state(self, key: int) -> State | None:
        """Return what the pass before left; None where there is none before."""

    def keep(self, key: int, given: Mapping[Call, Any] | None) -> None:
        """Leave something for the next pass."""


@dataclass(slots=True)
class BackwardPass:
    """One block on every batch, and back: a `ResumedPass`."""

    stream: Kept
    """Where the batches were on the way forward, before this block."""
    gradients: Kept
    """By what the block gave, and by what it began with."""
    before: Place | None
    after: Place | None
    orders: Orders | None
    by_blocks: bool = True

    def take(self, rows: Callable[[ForwardRun], dict[str, Taken]], key: int) -> dict[str, Taken]:
        """Return the rows of a batch, and keep the gradients by what the block began with."""
        state, later = self.stream.state(key), self.gradients.state(key)
        by_outputs: Gradients = {} if later is None else later.given
        run = BlockRun(Crossing({} if state is None else state.given, self.before, self.after, by_outputs))
        with needing_the_last_block_alone():
            taken = rows(run)
        self.gradients.keep(key, run.crossing.carried())
        return taken
