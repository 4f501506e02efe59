"""Batches dealt to several processes: each loads its own ones alone, and knows how many samples the others have.

So every row keeps its number. A data set that is another one in another process, files listed in another order say,
must still be found out: the first batch is loaded by all, and so is one now and then (`Share.own`); their digests are
compared where the work of the processes is joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, Sampler

from dalr_stream.errors import FingerprintMismatchError
from dalr_stream.network.capture.batches import samples_in
from dalr_stream.network.capture.loaders import Dealable, beginning_at, in_plain_order, loader_like
from dalr_stream.numerics.rows.share import Share


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A batch that another process loads."""

    samples: int


def can_deal(batches: Iterable[Any]) -> bool:
    """Tell whether a loader can give single batches."""
    return isinstance(batches, Dealable) or in_plain_order(batches)


def dealt(batches: Iterable[Any], first: int, share_from: Callable[[int], Share]) -> Iterator[Any]:
    """Yield the batches from number `first` on, those that are not this process's as `Elsewhere`.

    Batch `first` is always loaded: it shows whether the loader's batches have the samples that it says. Where they have
    not, as with a collator that makes several of one, all processes load all.

    `share_from` is asked for a share when all batches before it were taken.

    Raises FingerprintMismatchError for a later batch of another number of samples, or where the loader ends early.
    """
    loader = batches if isinstance(batches, Dealable) else _PlainOrder(batches)
    sizes = loader.batch_sizes()
    begun = next(iter(loader.only([first])), None) if first < len(sizes) else None
    if begun is None or samples_in(begun) != sizes[first]:
        yield from beginning_at(batches, first)
        return
    yield begun
    number = first + 1
    while number < len(sizes):
        share = share_from(number)
        stop = min(share.stop, len(sizes))
        own = [each for each in share.own if number <= each < stop]
        yield from _a_share(loader, range(number, stop), own, sizes)
        number = stop


def _a_share(loader: Dealable, numbers: range, own: Sequence[int], sizes: Sequence[int]) -> Iterator[Any]:
    loaded, mine = iter(loader.only(own)) if own else iter(()), frozenset(own)
    for number in numbers:
        if number not in mine:
            yield Elsewhere(sizes[number])
            continue
        batch = next(loaded, None)
        if batch is None or samples_in(batch) != sizes[number]:
            found = "is not there" if batch is None else f"has {samples_in(batch)} samples"
            raise FingerprintMismatchError(
                f"batch {number} {found}, the loader said that it has {sizes[number]}: let no collator drop or add "
                "samples, or wrap the loader in a generator (batches = (batch for batch in loader)), then every rank "
                "loads all batches"
            )
        yield batch
    next(loaded, None)  # a loader with workers of its own ends its pass there


class _Chosen(Sampler[list[int]]):
    """The samples of the batches that are asked for."""

    def __init__(self, samples: int, batch_size: int) -> None:
        self._samples = samples
        self._batch_size = batch_size
        self.numbers: Sequence[int] = ()

    def __iter__(self) -> Iterator[list[int]]:
        for number in self.numbers:
            begin = number * self._batch_size
            yield list(range(begin, min(begin + self._batch_size, self._samples)))

    def __len__(self) -> int:
        return len(self.numbers)


class _PlainOrder:
    """A torch loader that `in_plain_order` knows, whose batches can be asked for; its workers stay."""

    def __init__(self, loader: Iterable[Any]) -> None:
        assert isinstance(loader, DataLoader)  # noqa: S101  # for the type checker: `can_deal` has looked
        assert isinstance(loader.batch_sampler, BatchSampler)  # noqa: S101
        self._count, self._batch = len(loader.dataset), loader.batch_sampler.batch_size  # type: ignore[arg-type]
        self._whole = len(loader)
        self._sampler = _Chosen(self._count, self._batch)
        self._loader = loader_like(loader, self._sampler, persistent_workers=loader.num_workers > 0)

    def batch_sizes(self) -> Sequence[int]:
        return [min(self._batch, self._count - number * self._batch) for number in range(self._whole)]

    def only(self, numbers: Sequence[int]) -> Iterable[Any]:
        self._sampler.numbers = numbers
        return self._loader
