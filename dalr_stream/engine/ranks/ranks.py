"""The verb `open_ranks`: the place of this process among those of one job.

No process group is needed, and one that is there is left alone: sums lie in the memory of the processes, whatever
devices their networks run on.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from dalr_stream.engine.ranks.meeting import Place, meeting
from dalr_stream.engine.ranks.neighbours import meet_neighbours
from dalr_stream.engine.ranks.pulse import Pulse
from dalr_stream.engine.ranks.wire import ClosedError, receive_message, send_message
from dalr_stream.errors import DalrStreamError, ResourceError
from dalr_stream.streaming.ranks.link import Message, Traffic

_WORD_SECONDS = 5.0
"""How long to wait for the reason why a connection was closed."""


@dataclass(slots=True, eq=False, repr=False)
class Ranks:
    """The processes of one job, as one of them sees them; from `open_ranks`.

    Attributes
    ----------
    rank
        Number of this process. Rank 0 alone writes the store and has the results.
    ranks
        How many processes there are; 1 where no launcher started several.
    traffic
        What this process received so far.

    Examples
    --------
    >>> import dalr_stream as ds
    >>> with ds.open_ranks() as ranks:  # one process, where no launcher started several
    ...     print(ranks)
    rank 0 of 1
    """

    rank: int = 0
    ranks: int = 1
    traffic: Traffic = field(default_factory=Traffic)
    _data: Mapping[int, socket.socket] = field(default_factory=dict)
    _pulse: Pulse | None = None

    def __repr__(self) -> str:
        return f"rank {self.rank} of {self.ranks}"

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def send(self, rank: int, message: Message) -> None:
        """Send to another rank; raises ResourceError where one was lost or stopped."""
        try:
            send_message(self._data[rank], message, self.check)
        except ClosedError:
            raise self._gone(rank) from None

    def receive(self, rank: int) -> Message:
        """Wait for what another rank sends; raises ResourceError where one was lost or stopped.

        Its arrays arrive as they are gone through, which must be before the next message.
        """
        try:
            message = receive_message(self._data[rank], self.traffic, self.check)
        except ClosedError:
            raise self._gone(rank) from None
        return Message(message.facts, self._arriving(rank, message.arrays))

    def check(self) -> None:
        """Raise ResourceError where a rank was lost, or stopped with an error."""
        if self._pulse is not None and self._pulse.lost is not None:
            raise ResourceError(self._pulse.lost)

    def _arriving(self, rank: int, arrays: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        try:
            yield from arrays
        except ClosedError:
            raise self._gone(rank) from None

    def _gone(self, rank: int) -> ResourceError:
        """Return what to raise where a connection was closed: the pulse mostly knows why, or will in a moment."""
        if self._pulse is not None and self._pulse.noticed.wait(_WORD_SECONDS):
            return ResourceError(str(self._pulse.lost))
        return ResourceError(f"ranks: rank {rank} is gone: run the same command again, on any number of ranks")


@contextmanager
def open_ranks(*, timeout_seconds: float = 300.0) -> Iterator[Ranks]:
    """Connect the processes that a launcher started; one process where none did.

    Every process of the job runs the same program. `capture` and `accumulate` with `ranks=` then run the network on a
    share of the batches in each of them, to the bits of one process. Where one is lost or stops with an error, the
    others stop within seconds.

    Parameters
    ----------
    timeout_seconds
        How long to wait for the others to start.

    Yields
    ------
    Ranks
        This process's place among them.

    Raises
    ------
    InvalidInputError
        Where RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are not what a launcher sets.
    ResourceError
        Where the others do not come; and, from whatever is done in the block, where one was lost or stopped.

    See Also
    --------
    open_cluster : workers that fold what lies in a store.

    Examples
    --------
    >>> import dalr_stream as ds
    >>> with ds.open_ranks() as ranks:  # started by: torchrun --nproc-per-node 4 job.py  # doctest: +SKIP
    ...     folding = ds.Folding(segment_batches=32)
    ...     statistics = ds.accumulate(model, batches, layers, store="birds.zarr", folding=folding, ranks=ranks)
    ...     if ranks.first:
    ...         print(ds.dalr(statistics["fc6"]).at_rank(64))
    """
    place = Place.of(os.environ)
    if place is None:
        yield Ranks()
        return
    with meeting(place, timeout_seconds) as met, ExitStack() as stack:
        pulse = Pulse(met.pulses, met.names)
        ranks = Ranks(place.rank, place.ranks, Traffic(), met.data, pulse)
        error: str | None = "interrupted"
        try:
            meet_neighbours(met, place, stack, ranks.check)
            yield ranks
            error = None
        except Exception as caught:
            error = str(caught) if isinstance(caught, DalrStreamError) else f"{type(caught).__name__}: {caught}"
            raise
        finally:
            pulse.end(error)
