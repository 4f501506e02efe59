"""What ranks, processes of one job, tell one another: facts in plain values, and arrays.

Rank 0 talks to every other rank. Sums take another way, in a tree, so that rank 0 receives those of log2(R) of R ranks:

    0 <- 1, 0 <- 2 <- 3, 0 <- 4 <- 5, 4 <- 6 <- 7

Whoever sends has joined what was sent to it, so what arrives is the sum of neighbours. How bytes get across is the
engine's business (`engine.ranks`); a process of its own has a link to nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Message:
    """Facts as JSON has them, and arrays of numbers, to be gone through once."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    arrays: Iterable[NDArray[Any]] = ()


@dataclass(slots=True)
class Traffic:
    """What a rank received so far."""

    array_bytes: int = 0
    messages: int = 0
    """That had arrays."""


def rank_above(rank: int) -> int:
    """Return the rank to which one other than 0 sends its sums: its number without the lowest bit that is set."""
    return rank & (rank - 1)


def ranks_below(rank: int, ranks: int) -> list[int]:
    """Return the ranks that send their sums to this one, ascending: each has those up to the next one's below it."""
    lowest = rank & -rank or ranks
    steps = (1 << power for power in range(ranks.bit_length()))
    return [rank + step for step in steps if step < lowest and rank + step < ranks]


class Link(Protocol):
    """The place of this process among the ranks."""

    @property
    def rank(self) -> int:
        """Its number; 0 writes the store."""

    @property
    def ranks(self) -> int:
        """How many there are."""

    @property
    def traffic(self) -> Traffic:
        """What was received so far."""

    def send(self, rank: int, message: Message) -> None:
        """Send to another rank; raises ResourceError where one was lost or stopped."""

    def receive(self, rank: int) -> Message:
        """Wait for what another rank sends; raises ResourceError where one was lost or stopped.

        Its arrays may arrive only as they are gone through, which must be before the next message.
        """

    def check(self) -> None:
        """Raise ResourceError where a rank was lost, or stopped with an error."""


class Alone:
    """One process, which talks to nobody."""

    rank = 0
    ranks = 1

    def __init__(self) -> None:
        self.traffic = Traffic()

    def send(self, rank: int, message: Message) -> None:
        """There is nobody."""

    def receive(self, rank: int) -> Message:
        """There is nobody."""
        raise ValueError(f"there is no rank {rank}")

    def check(self) -> None:
        """Nobody can be lost."""


def tell(link: Link, facts: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return rank 0's facts, on every rank; the others give None."""
    if link.rank:
        return link.receive(0).facts
    told = {} if facts is None else facts
    for rank in range(1, link.ranks):
        link.send(rank, Message(told))
    return told
