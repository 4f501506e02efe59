"""A loader that gives single batches is asked for a process's own, and is held to its word."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from dalr_stream.errors import FingerprintMismatchError
from dalr_stream.network.capture.dealt import Elsewhere, can_deal, dealt
from dalr_stream.network.capture.loaders import beginning_at, can_resume
from dalr_stream.numerics.rows.share import Share


class Numbers(Dataset):
    """Sample i is i; remembers which were loaded."""

    def __init__(self, samples=23):
        self.samples, self.loaded = samples, []

    def __len__(self):
        return self.samples

    def __getitem__(self, index):
        self.loaded.append(index)
        return torch.full((3,), float(index))


class Dealing:
    """A loader of one's own, which may not keep its word."""

    def __init__(self, batches, sizes=None):
        self.batches, self.sizes, self.given = batches, sizes, []

    def __iter__(self):
        return iter(self.batches)

    def batch_sizes(self):
        return self.sizes or [len(batch) for batch in self.batches]

    def only(self, numbers):
        self.given.extend(numbers)
        return (self.batches[number] for number in numbers if number < len(self.batches))


def every_third(span):
    """Batches 1, 4, 7 and so on are one's own; told for `span` batches at a time."""
    return lambda first: Share(first + span, [number for number in range(first, first + span) if number % 3 == 1])


def shown(batches):
    return [each.samples if isinstance(each, Elsewhere) else each[:, 0].tolist() for each in batches]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("span", [1, 2, 100])
def test_torchs_loader_gives_a_process_its_own_batches_and_the_first(span, workers):
    data = Numbers()
    loader = DataLoader(data, batch_size=4, num_workers=workers)
    given = shown(dealt(loader, 0, every_third(span)))
    assert given == [[0, 1, 2, 3], [4, 5, 6, 7], 4, 4, [16, 17, 18, 19], 3]
    if not workers:
        assert data.loaded == [*range(8), *range(16, 20)]


def test_it_begins_where_it_is_told_to():
    loader = DataLoader(Numbers(), batch_size=4, drop_last=True)
    assert shown(dealt(loader, 3, every_third(2))) == [[12, 13, 14, 15], [16, 17, 18, 19]]
    assert shown(dealt(loader, 5, every_third(2))) == []


def test_a_loader_of_ones_own_is_asked_for_its_batches():
    loader = Dealing(list(torch.arange(20.0).reshape(10, 2).split(2)))
    assert can_deal(loader)
    assert can_resume(loader)
    assert shown(beginning_at(loader, 4)) == [[16.0, 18.0]]
    loader.given.clear()
    assert shown(dealt(loader, 0, every_third(100))) == [[0.0, 2.0], [4.0, 6.0], 2, 2, [16.0, 18.0]]
    assert loader.given == [0, 1, 4]


def test_where_the_first_batch_has_other_samples_every_process_loads_all():
    batches = [torch.zeros(8, 2) for _ in range(3)]
    assert shown(dealt(Dealing(batches, sizes=[2, 2, 2]), 0, every_third(2))) == [[0.0] * 8] * 3


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([2, 3, 2], "batch 1 has 2 samples, the loader said that it has 3"),
        ([2] * 5, "batch 4 is not there, the loader"),
    ],
)
def test_a_loader_that_does_not_keep_its_word_is_named(sizes, said):
    loader = Dealing([torch.zeros(2, 2) for _ in range(4 if len(sizes) == 5 else 3)], sizes)
    with pytest.raises(FingerprintMismatchError, match=said):
        list(dealt(loader, 0, every_third(2)))


def test_a_list_is_not_dealt():
    assert not can_deal([torch.zeros(2, 2)])
    assert not can_deal(DataLoader(Numbers(), shuffle=True))
