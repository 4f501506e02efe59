"""A DataLoader over a stream has a `__len__` that raises: wherever batches go in it does what a list of them does."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import dalr_stream as ds
from dalr_stream.engine.estimate import estimate
from dalr_stream.errors import InvalidInputError


class Stream(IterableDataset):
    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


@pytest.fixture
def samples():
    return torch.randn(70, 6, generator=torch.Generator().manual_seed(1))


def moments(statistics):
    return statistics["2"].inputs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"folding": ds.Folding(segment_batches=2)},
        {"folding": ds.Folding(memory_limit_bytes=2**27)},
        {"blocks": True},
    ],
    ids=["lanes", "segments", "limit", "blocks"],
)
def test_a_stream_gives_the_moments_of_a_list(net, samples, tmp_path, options):
    layers = ds.watch(net, ["*"])
    known = moments(ds.accumulate(net, list(samples.split(16)), layers, store=tmp_path / "list", **options))
    loader = DataLoader(Stream(samples), batch_size=16)
    assert moments(ds.accumulate(net, loader, layers, store=tmp_path / "stream", **options)).same_bits(known)


def test_a_stream_is_captured_and_compressed_in_turn_as_a_list_is(net, samples, tmp_path):
    loader, batches = DataLoader(Stream(samples), batch_size=16), list(samples.split(16))
    for name, given in (("list", batches), ("stream", loader)):
        ds.capture(net, given, ds.watch(net, ["*"]), tmp_path / name, domain="target")
    known, found = (moments(ds.accumulate(tmp_path / name)) for name in ("list", "stream"))
    assert found.same_bits(known)
    choices = {name: ds.LayerChoice(ds.Method.DALR_ANCHORED_AFFINE, 2) for name in ("0", "2")}
    one, other = (ds.compress_sequentially(net, given, choices).network for given in (batches, loader))
    assert torch.equal(one(samples), other(samples))


def test_what_has_to_know_the_length_beforehand_names_the_remedy(net, samples):
    layers, loader = ds.watch(net, ["*"]), DataLoader(Stream(samples), batch_size=16)
    with pytest.raises(InvalidInputError, match=r"domains\.target\.batches: .* give it, or its data set, __len__"):
        estimate(net, {"target": loader}, layers, ds.Folding())
