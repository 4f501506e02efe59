"""Loaders that can begin in the middle, so that a resumed pass loads nothing that it has, or give single batches.

A loader of one's own begins anywhere by a method `starting_at(batch)`, which returns the batches from that number on,
and gives single ones by `batch_sizes()` and `only(numbers)`, see `Dealable`. A torch `DataLoader` over a map-style data
set in plain order does both by itself: its sampler is put forward without loading a sample. Any other is iterated from
its beginning.

A batch that is not loaded cannot be compared to the one of that number before. The last one that is held is loaded all
the same and compared, so a loader that begins in the wrong place, or draws its random numbers as it goes, is found out;
wrap such a one in a generator (`batches = (batch for batch in loader)`) and it is compared batch for batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler, SequentialSampler

from dalr_stream.network.capture.batches import samples_in


@runtime_checkable
class Restorable(Protocol):
    """A loader that can begin at any batch."""

    def starting_at(self, batch: int) -> Iterable[Any]:
        """Return the batches from number `batch` on, the same as after iterating over those before."""


@runtime_checkable
class Dealable(Protocol):
    """A loader that can give single batches: each of several processes then loads its own ones alone."""

    def batch_sizes(self) -> Sequence[int]:
        """Return how many samples each batch has, in order."""

    def only(self, numbers: Sequence[int]) -> Iterable[Any]:
        """Return the batches of these numbers, which ascend, the same as iterating over all would give."""


def length_of(batches: object) -> int | None:
    """Return how many batches there are; None where that is not known beforehand.

    torch's `DataLoader` has a `__len__` over any data set, and raises where it is a stream.
    """
    try:
        return len(batches) if isinstance(batches, Sized) else None
    except (TypeError, NotImplementedError):
        return None


def most_samples(batches: Iterable[Any]) -> int:
    """Return how many samples there are at most, where there is a length: as many as the first batch has in each."""
    first = next(iter(batches), None)
    return 0 if first is None else samples_in(first) * (length_of(batches) or 1)


def can_resume(batches: Iterable[Any]) -> bool:
    """Tell whether a loader can begin in the middle."""
    return isinstance(batches, Restorable | Dealable) or in_plain_order(batches)


def beginning_at(batches: Iterable[Any], batch: int) -> Iterable[Any]:
    """Return the batches of a loader that `restores` from number `batch` on, without loading those before."""
    if isinstance(batches, Restorable):
        return batches.starting_at(batch)
    if isinstance(batches, Dealable):
        return batches.only(range(batch, len(batches.batch_sizes())))
    if isinstance(batches, DataLoader) and in_plain_order(batches):
        return _put_forward(batches, batch)
    raise TypeError(f"a {type(batches).__name__} cannot begin in the middle")


class _Later(Sampler[list[int]]):
    """The batches of indices that another sampler gives from some number on."""

    def __init__(self, sampler: Iterable[list[int]], first: int) -> None:
        self._all = sampler
        self._first = first

    def __iter__(self) -> Iterator[list[int]]:
        return islice(iter(self._all), self._first, None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def in_plain_order(batches: Iterable[Any]) -> bool:
    """Tell whether this is torch's own loader, over a map-style data set, first sample to last.

    Subclasses may do anything as they iterate.
    """
    return (
        type(batches) is DataLoader
        and not isinstance(batches.dataset, IterableDataset)
        and type(batches.batch_sampler) is BatchSampler
        and type(batches.batch_sampler.sampler) is SequentialSampler
        and getattr(batches, "in_order", True)
    )


def loader_like(loader: DataLoader[Any], batch_sampler: Sampler[list[int]], **options: Any) -> DataLoader[Any]:
    """Return a loader of the same data set in the same way, of the batches that another sampler gives."""
    return DataLoader(
        loader.dataset,
        batch_sampler=batch_sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        **options,
    )


def _put_forward(loader: DataLoader[Any], batch: int) -> DataLoader[Any]:
    assert loader.batch_sampler is not None  # noqa: S101  # for the type checker: `in_plain_order` has looked
    return loader_like(loader, _Later(loader.batch_sampler, batch))
