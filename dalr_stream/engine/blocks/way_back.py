"""The way back through the blocks: where the gradients between two of them lie, and when they and the stream go.

    unfinished/<domain>/@stream-<pass>/      what the blocks gave: those before a block are there until its turn
    unfinished/<domain>/@back-<pass>/        gradients by what they gave, of two places at most

Killed, it goes on in that block, as on the way forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from dalr_stream.engine.blocks.groups import BlockOrder
from dalr_stream.network.blocks.backward_proof import BackwardPlaces
from dalr_stream.network.capture.gradients.block_passes import BackwardPass, FollowedPass
from dalr_stream.network.capture.order import Orders
from dalr_stream.network.capture.resuming.calls import Call
from dalr_stream.network.capture.resuming.stored_states import BACK, StoredStream
from dalr_stream.storage.places.place import Place


@dataclass(frozen=True, slots=True)
class WayBack:
    """How the blocks of one domain are run on the way back."""

    root: Place
    domain: str
    facts: Mapping[str, Any]
    """What identifies the network, its blocks and the gradients."""
    order: BlockOrder
    places: BackwardPlaces
    removes: bool = True
    """Whether what nothing reads any more is removed here: of several ranks by the first."""

    def forward(self, stream: StoredStream, network: nn.Module, orders: Orders | None) -> FollowedPass:
        """Return the pass of the block that reads `stream` in which nothing goes back."""
        before, after = self.places.before(stream.number), self.places.after(stream.number)
        return FollowedPass(network, self.order.followed[stream.number], stream, before, after, orders)

    def backward(self, stream: StoredStream, orders: Orders | None, *, again: bool) -> BackwardPass:
        """Return the pass of the block that reads `stream`, and remove what neither it nor a later pass reads.

        What it hands on to the block before is there already where it is run `again`.
        """
        number = stream.number
        gradients = self._gradients(number, writes=number > self.turn and not again)
        stream.drop_unread()
        gradients.drop_spent()
        return BackwardPass(stream, gradients, self.places.before(number), self.places.after(number), orders)

    @property
    def turn(self) -> int:
        """The block at which it ends."""
        return self.order.back[-1]

    def _gradients(self, number: int, *, writes: bool) -> StoredStream:
        turn = len(self.places.places) - number  # the last block's is the first
        return StoredStream(
            self.root,
            self.domain,
            turn,
            list(self._left()),
            self.facts,
            writes=writes,
            removes=self.removes,
            name=BACK,
        )

    def _left(self) -> Iterator[Mapping[Call, int | None]]:
        """Yield what each pass leaves, in the order of the way back: all that is known of a place, itself."""
        for turn, place in enumerate(reversed(self.places.places)):
            yield dict.fromkeys(place.followed, turn)
