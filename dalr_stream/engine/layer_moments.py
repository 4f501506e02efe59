"""Moments by stream, as an accumulation leaves them: in memory, or in a store until one is asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar, overload

from dalr_stream.errors import LayerNotFoundError
from dalr_stream.numerics.statistics.folding import SplitMoments
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.storage.places.place import Place
from dalr_stream.storage.records.moments import load_moments, moments_count, moments_path, shard_parts
from dalr_stream.storage.records.stored_moments import open_moments
from dalr_stream.storage.schema import HELDOUT, TRAINING

K = TypeVar("K", bound=str)
V_co = TypeVar("V_co", covariant=True)


@dataclass(frozen=True, slots=True)
class OnDemand(Mapping[K, V_co]):
    """Values by name, each fetched whenever it is asked for; none is held."""

    names: Collection[K]
    fetch: Callable[[K], V_co]

    def __getitem__(self, name: K) -> V_co:
        if name not in self.names:
            raise KeyError(name)
        return self.fetch(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[K]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, slots=True)
class LayerMoments(Mapping[str, Moments]):
    """Moments of the training rows, by layer name; `heldout` has those of the rows kept apart, where any were.

    `shards` has the records that a layer's training moments are the sum of, where they were asked for.
    """

    training: Mapping[str, Moments]
    heldout: Mapping[str, Moments] = field(default_factory=dict)
    shards: Mapping[str, Sequence[Moments]] = field(default_factory=dict)

    @classmethod
    def of(cls, split: Mapping[str, SplitMoments]) -> LayerMoments:
        """Gather the two parts of each layer; a part of no rows is left out."""
        return cls(
            {name: part.training for name, part in split.items()},
            {name: part.heldout for name, part in split.items() if part.heldout.count},
            {name: part.shards for name, part in split.items() if part.shards},
        )

    @classmethod
    def stored(cls, root: Place, domain: str, homes: Mapping[str, str], shards: int) -> LayerMoments:
        """Read each record from a store whenever it is asked for, and hold none; `shards` as in `Folding`.

        `homes` has the layers, each with the one under whose name its record lies (`DomainRecord.home`).
        """

        def read(part: str, name: str) -> Moments:
            return open_moments(moments_path(root, domain, homes[name], part))

        heldout = [name for name in homes if moments_count(moments_path(root, domain, homes[name], HELDOUT))]
        by_layer = {
            name: StoredRecords([moments_path(root, domain, home, part) for part in shard_parts(shards)])
            for name, home in homes.items()
            if shards > 1
        }
        return cls(OnDemand(tuple(homes), partial(read, TRAINING)), OnDemand(heldout, partial(read, HELDOUT)), by_layer)

    def __getitem__(self, layer: str) -> Moments:
        try:
            return self.training[layer]
        except KeyError:
            raise LayerNotFoundError(f"there are no moments of layer '{layer}': of {', '.join(self)} only") from None

    def __contains__(self, stream: object) -> bool:
        return stream in self.training

    def __iter__(self) -> Iterator[str]:
        return iter(self.training)

    def __len__(self) -> int:
        return len(self.training)


@dataclass(frozen=True, slots=True)
class StoredRecords(Sequence[Moments]):
    """Moment records on disk until one is asked for, so that a sum over all of them holds few at a time."""

    paths: Sequence[Place]

    @overload
    def __getitem__(self, number: int) -> Moments: ...
    @overload
    def __getitem__(self, number: slice) -> StoredRecords: ...
    def __getitem__(self, number: int | slice) -> Moments | StoredRecords:
        if isinstance(number, slice):
            return StoredRecords(self.paths[number])
        return load_moments(self.paths[number])

    def __len__(self) -> int:
        return len(self.paths)
