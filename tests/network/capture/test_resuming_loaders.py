"""A resumed pass loads nothing that it has, where the loader lets it, and still notices a loader in the wrong place."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, WeightedRandomSampler

from dalr_stream.network.capture.hooks import capture_rows
from dalr_stream.network.capture.loaders import beginning_at, can_resume, length_of
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.spec import select_layers


class Numbers(Dataset):
    """Sample i is i; remembers which were loaded."""

    def __init__(self, samples=23):
        self.samples, self.loaded = samples, []

    def __len__(self):
        return self.samples

    def __getitem__(self, index):
        self.loaded.append(index)
        return torch.full((2, 3), float(index)), index


class Restoring:
    """A loader of one's own that can begin anywhere."""

    def __init__(self, batches):
        self.batches, self.begun = batches, []

    def __iter__(self):
        self.begun.append(0)
        return iter(self.batches)

    def starting_at(self, batch):
        self.begun.append(batch)
        return self.batches[batch:]


class Holding:
    """A RowSink that claims to hold the first batches, and remembers what it is asked."""

    def __init__(self, held):
        self.held, self.asked, self.rows = held, [], []

    def skip(self, batch, samples, digest):
        self.asked.append((batch, samples, digest))
        return batch < len(self.held)

    def write(self, batch):
        self.rows.append(batch.rows["0"])

    def finish(self):
        pass


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(3, 2)).eval()


def run(net, loader, held, **options):
    sink, done = Holding(held), []
    layers = select_layers(net, ["0"])
    capture_rows(net, loader, layers, sink, batch_done=lambda n, spared: done.append((n, spared)), **options)
    return sink, done


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch", [0, 1, 4, 5, 9])
def test_a_torch_loader_in_plain_order_begins_anywhere_and_loads_nothing_before(batch, drop_last):
    data = Numbers()
    loader = DataLoader(data, batch_size=5, drop_last=drop_last)
    whole = list(loader)
    data.loaded.clear()
    assert can_resume(loader)
    later = beginning_at(loader, batch)
    assert len(later) == max(len(whole) - batch, 0)
    rest = list(later)
    assert len(rest) == len(whole[batch:])
    for (x, y), (other, label) in zip(rest, whole[batch:], strict=True):
        assert torch.equal(x, other)
        assert torch.equal(y, label)
    assert data.loaded == list(range(batch * 5, 20 if drop_last else 23))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.zeros(4, 3))


class LongStream(Stream):
    def __len__(self):
        return 12


@pytest.mark.parametrize(
    ("loader", "length"),
    [
        (DataLoader(Numbers(), batch_size=5), 5),
        (DataLoader(Stream(), batch_size=2), None),  # torch's own has a length, and raises
        (DataLoader(LongStream(), batch_size=5), 3),
        ([torch.zeros(2, 3)], 1),
        ((torch.zeros(2, 3) for _ in range(2)), None),
    ],
    ids=["map", "stream", "stream that knows", "list", "generator"],
)
def test_the_length_of_a_loader_is_known_or_not(loader, length):
    assert length_of(loader) == length


def first_of(samples):
    return samples[0][0]


def test_a_torch_loader_with_workers_begins_anywhere():
    loader = DataLoader(Numbers(), batch_size=5, num_workers=1, collate_fn=first_of)
    (last,) = list(beginning_at(loader, 4))
    assert last.tolist() == torch.full((2, 3), 20.0).tolist()


class OwnLoader(DataLoader):
    pass


@pytest.mark.parametrize(
    "loader",
    [
        [torch.zeros(2, 3)],
        (torch.zeros(2, 3) for _ in range(2)),
        DataLoader(Numbers(), shuffle=True),
        DataLoader(Numbers(), sampler=WeightedRandomSampler([1.0] * 23, 5)),
        DataLoader(Numbers(), batch_size=None),
        DataLoader(Stream()),
        OwnLoader(Numbers()),
    ],
    ids=["list", "generator", "shuffled", "weighted", "unbatched", "stream", "subclass"],
)
def test_what_cannot_be_put_forward_is_not(loader):
    assert not can_resume(loader)


def test_only_the_last_batch_that_is_held_is_loaded_again_and_compared(net):
    data = Numbers()
    sink, done = run(net, DataLoader(data, batch_size=5), held=[5, 5, 5])
    assert data.loaded == list(range(10, 23))
    assert [asked[:2] for asked in sink.asked] == [(2, 5), (3, 5), (4, 3)]
    assert done == [(5, True), (5, True), (5, True), (5, False), (3, False)]
    assert np.concatenate(sink.rows)[::2, 0].tolist() == list(range(15, 23))


def test_a_loader_of_ones_own_is_asked_to_begin_there(net):
    batches = list(torch.randn(9, 3).split(2))
    loader = Restoring(batches)
    sink, _ = run(net, loader, held=[2, 2, 2])
    assert loader.begun == [2]
    assert [batch for batch, _, _ in sink.asked] == [2, 3, 4]
    fresh, _ = run(net, Restoring(batches), held=[])
    assert [digest for _, _, digest in sink.asked] == [digest for _, _, digest in fresh.asked][2:]


def test_positions_are_chosen_by_the_samples_that_were_not_loaded_too(net):
    rule = RowRule(most_per_sample=1, seed=4)
    tokens = torch.arange(18 * 7.0).reshape(18, 7, 1).expand(18, 7, 3)
    whole, _ = run(net, Restoring(tokens.split(5)), held=[], rows=rule)
    later, _ = run(net, Restoring(tokens.split(5)), held=[5, 5], rows=rule)
    assert np.array_equal(np.concatenate(later.rows), np.concatenate(whole.rows)[10:])
