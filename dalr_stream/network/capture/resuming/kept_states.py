"""What is kept of a network between two passes: by batch, and in memory that several networks share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from dalr_stream.network.capture.resuming.calls import Call, is_in
from dalr_stream.network.capture.resuming.given import tensors_in


@dataclass(slots=True)
class Room:
    """Memory for what is kept, of several networks together."""

    free_bytes: int
    held_bytes: int = 0
    largest_bytes: int = 0
    """Of one batch: its numbers are copied once more while a network runs on from them."""
    refused: bool = False
    """Whether something did not fit."""

    @property
    def spare_bytes(self) -> int:
        """What can still be kept, beside that copy."""
        return max(0, self.free_bytes - self.largest_bytes)

    def take(self, size: int) -> None:
        """Count so much as held; below zero, as given back."""
        self.free_bytes, self.held_bytes = self.free_bytes - size, self.held_bytes + size


@dataclass(frozen=True, slots=True)
class State:
    """What the calls before a place gave for one batch; of what is not used any more, its form."""

    given: Mapping[Call, Any]
    held_bytes: int

    def reaches(self, layers: Collection[str]) -> bool:
        """Tell whether these layers are still to be called."""
        return not any(is_in(layer, [way[-1][0]]) for way in self.given for layer in layers)


class KeptStream(Protocol):
    """Where what is kept of each batch lies between two passes, by the number of its first sample."""

    room: Room

    def state(self, key: int) -> State | None:
        """Return what is kept of a batch."""

    def keep(self, key: int, given: Mapping[Call, Any] | None) -> None:
        """Keep what was given for a batch; None for nothing."""

    def forget(self) -> None:
        """Begin at the inputs again."""


@dataclass(slots=True)
class Stream:
    """What is kept of one network's pass over the batches, by the number of each one's first sample."""

    room: Room
    states: dict[int, State] = field(default_factory=dict)

    def state(self, key: int) -> State | None:
        """Return what is kept of a batch."""
        return self.states.get(key)

    def keep(self, key: int, given: Mapping[Call, Any] | None) -> None:
        """Put what was given in the place of what was kept of a batch, where there is room; None for nothing."""
        before = self.states.pop(key, None)
        self.room.take(0 if before is None else -before.held_bytes)
        if given is None:
            return
        held = sum(tensor.nbytes for tensor in tensors_in(tuple(given.values())))
        self.room.largest_bytes = max(self.room.largest_bytes, held)
        if held > self.room.spare_bytes:
            self.room.refused = True
            return
        self.room.take(held)
        self.states[key] = State(given, held)

    def forget(self) -> None:
        """Begin at the inputs again."""
        for key in list(self.states):
            self.keep(key, None)

    def same_as(self, other: Stream) -> None:
        """Begin where another one has got to; what both keep is in memory once and is counted twice."""
        for key, state in other.states.items():
            self.keep(key, state.given)
