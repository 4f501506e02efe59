"""What makes the rows of a pass over the batches, and what folds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

from dalr_stream.progress import Progress
from dalr_stream.storage.contents import NetworkRecord
from dalr_stream.storage.places.place import Place
from dalr_stream.streaming.fold_sink import FoldSink
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.ranks.segment_sink import SegmentSink
from dalr_stream.streaming.ranks.strip_sink import StripSink

Folds = FoldSink | SegmentSink | StripSink
"""What folds the rows of a pass: by lanes, by segments, or strips of either."""


Begun = Sequence[tuple[tuple[str, ...], bool]]
"""Streams of each pass that an earlier run began, and whether it was done with it."""


@dataclass(frozen=True, slots=True)
class Group(Sequence[str]):
    """The streams that are folded in one pass; none where a block only takes the batches further."""

    streams: tuple[str, ...]
    in_strips: bool = False
    """Whether ranks share the sums of each."""
    block: int | None = None
    """The number of the block that is run, of a network that goes block by block."""
    again: bool = False
    """Whether that block ran before for other streams, and what it gives is there."""
    back: bool = False
    """Whether gradients go back through it."""

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return self.streams[index]

    def __len__(self) -> int:
        return len(self.streams)

    def with_shared(self, streams: Iterable[str], shared: Mapping[str, str]) -> Group:
        """Return those of `streams` that are in it, or of which `shared` says that one in it has their rows."""
        return dataclasses.replace(self, streams=tuple(name for name in streams if shared.get(name, name) in self))

    @property
    def plain(self) -> dict[str, Any]:
        """What other ranks are told of it."""
        return {**dataclasses.asdict(self), "streams": list(self.streams)}

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> Group:
        """Return what `plain` gave."""
        return cls(**{**plain, "streams": tuple(plain["streams"])})


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

    def groups(self, folding: Folding, begun: Begun = ()) -> Sequence[Group]:
        """Return the streams of each pass.

        Passes that were `begun` come first, as they were; one that was not done by then may be done in another way,
        with those after it. Raises MemoryLimitError where one stream alone does not fit.
        """

    def send(self, group: Group, sink: Folds, folding: Folding, progress: Progress) -> None:
        """Send the rows of these streams to `sink`, in one pass over the batches."""

    def finish(self) -> None:
        """Remove what the rows were made of, where that is on disk: their moments are kept."""
