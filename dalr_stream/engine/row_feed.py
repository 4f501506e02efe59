"""What makes the rows of a pass over the batches, and what folds them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from dalr_stream.progress import Progress
from dalr_stream.storage.contents import NetworkRecord
from dalr_stream.storage.places.place import Place
from dalr_stream.streaming.fold_sink import FoldSink
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.ranks.segment_sink import SegmentSink
from dalr_stream.streaming.ranks.strip_sink import StripSink

Folds = FoldSink | SegmentSink | StripSink
"""What folds the rows of a pass: by lanes, by segments, or strips of either."""


Begun = Mapping[tuple[str, ...], bool]
"""Streams of each pass that an earlier run began, and whether it was done with it."""


class StripGroup(tuple[str, ...]):
    """The streams of a pass in which ranks share the sums of each."""

    __slots__ = ()


class RowFeed(Protocol):
    """What makes the rows of some streams, batch after batch."""

    @property
    def streams(self) -> Sequence[str]:
        """Their names, in order."""

    @property
    def batches(self) -> Iterable[Any]:
        """What the rows are made of."""

    @property
    def choice(self) -> str:
        """Which rows are taken, in words."""

    def network(self) -> NetworkRecord:
        """Return what identifies the network, or the two of them, and the streams."""

    def keep_weights(self, root: Place, network: NetworkRecord) -> None:
        """Write the weights of the streams' layers to a store, where they are not there yet."""

    def groups(self, folding: Folding, begun: Begun | None = None) -> Sequence[Collection[str]]:
        """Return the streams of each pass, as a `StripGroup` where ranks share their sums.

        Passes that were `begun` come first, as they were; one that was not done by then may be done in another way,
        with those after it. Raises MemoryLimitError where one stream alone does not fit.
        """

    def send(self, streams: Collection[str], sink: Folds, folding: Folding, progress: Progress) -> None:
        """Send the rows of these streams to `sink`, in one pass over the batches."""

    def finish(self) -> None:
        """Remove what the rows were made of, where that is on disk: their moments are kept."""
