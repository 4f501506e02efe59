"""What a launcher has to say, and which networks and loaders ranks take."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import dalr_stream as ds
from dalr_stream.engine.ranks.meeting import Place
from dalr_stream.engine.ranks.ranks import Ranks
from dalr_stream.network.capture.wrapped import plain_network
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.ranks.link import rank_above, ranks_below

SET = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node-0", "MASTER_PORT": "29500"}


def net():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()


def test_a_place_is_what_the_launcher_says():
    assert Place.of(SET) == Place(1, 4, "node-0", 29500)
    assert Place.of({}) is None
    assert Place.of({**SET, "RANK": "0", "WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 and RANK and MASTER_ADDR and MASTER_PORT not set"),
        ({**SET, "RANK": "4"}, "RANK must lie in 0..3, WORLD_SIZE is 4, got 4"),
        ({**SET, "MASTER_PORT": "http"}, "MASTER_PORT must be numbers: .*'http'"),
    ],
)
def test_what_a_launcher_does_not_say_is_named(environment, message):
    with pytest.raises(ds.errors.InvalidInputError, match=f"ranks: .*{message}"):
        Place.of(environment)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 7, 8, 13, 64])
def test_sums_reach_rank_0_by_way_of_neighbours(ranks):
    def held(rank):  # what a rank holds when those below it have sent, in the order in which it takes it
        return [rank, *(each for below in ranks_below(rank, ranks) for each in held(below))]

    assert held(0) == list(range(ranks))
    for rank in range(ranks):
        assert held(rank) == list(range(rank, rank + len(held(rank))))  # neighbours, as the tree needs them
        assert all(rank_above(below) == rank for below in ranks_below(rank, ranks))
    assert len(ranks_below(0, ranks)) == (ranks - 1).bit_length()


def test_ranks_that_do_not_come_are_one_line(monkeypatch):
    for name, value in {**SET, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    message = "ranks: not all 4 ranks came to 127.0.0.1:1 within 1 s"
    with pytest.raises(ds.errors.ResourceError, match=message), ds.open_ranks(timeout_seconds=1):
        pass


def test_without_a_launcher_there_is_one_rank(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with ds.open_ranks() as ranks:
        assert (ranks.rank, ranks.ranks, ranks.first) == (0, 1, True)
        batches = [torch.randn(30, 4) for _ in range(5)]
        model, folding = net(), Folding(segment_batches=2)
        layers = ds.watch(model, ["2"])
        one = ds.accumulate(model, batches, layers, folding=folding, ranks=ranks)["2"].inputs
    assert one.same_bits(ds.accumulate(model, batches, layers, folding=folding)["2"].inputs)


def test_a_sampler_that_deals_samples_to_ranks_is_refused(tmp_path):
    data, model = TensorDataset(torch.randn(20, 4)), net()
    loader = DataLoader(data, batch_size=5, sampler=DistributedSampler(data, num_replicas=2, rank=0))
    layers, folding = ds.watch(model, ["2"]), Folding(segment_batches=2)
    for use in (
        lambda: ds.accumulate(model, loader, layers, folding=folding, ranks=Ranks(0, 2)),
        lambda: ds.capture(model, loader, layers, tmp_path, domain="t", ranks=Ranks(0, 2)),
    ):
        with pytest.raises(ds.errors.InvalidInputError, match="has a DistributedSampler, which gives each of 2 ranks"):
            use()


def test_a_network_split_over_processes_is_refused():
    class FSDPModule:
        """What FSDP2 adds to a module's classes, by its name."""

    class Split(nn.Linear, FSDPModule):
        pass

    model = nn.Sequential(Split(4, 6), nn.ReLU()).eval()
    with pytest.raises(ds.errors.UnsupportedLayerError, match="layer '0': is split over processes by FSDPModule"):
        ds.watch(model, ["0"])


def test_a_network_of_which_some_tensors_are_split_is_refused_for_several_ranks(tmp_path):
    class DTensor(torch.Tensor):
        """What tensor parallelism makes of a parameter, by its name."""

    model = net()
    model[0].weight = nn.Parameter(torch.zeros(6, 4).as_subclass(DTensor))
    batches, layers = [torch.zeros(5, 4)], ds.watch(model, ["2"])
    message = "layer '0': its tensors are split over processes"
    for use in (
        lambda: ds.accumulate(model, batches, layers, folding=Folding(segment_batches=2), ranks=Ranks(0, 2)),
        lambda: ds.capture(model, batches, layers, tmp_path, domain="t", ranks=Ranks(0, 2)),
    ):
        with pytest.raises(ds.errors.UnsupportedLayerError, match=message):
            use()


def test_the_wrapper_of_distributed_training_is_taken_off():
    model = net()
    wrapped = DistributedDataParallel.__new__(DistributedDataParallel)  # made as usual it asks for a group of processes
    nn.Module.__init__(wrapped)
    wrapped.module = model
    assert plain_network(wrapped) is model
    assert ds.watch(wrapped, ["2"])[0].name == "2"
    spread = nn.DataParallel(model)
    assert plain_network(spread) is spread  # of one process, which runs every batch: a module like any other


def test_segments_are_not_for_the_rows_of_a_store(tmp_path):
    model = net()
    ds.capture(model, [torch.randn(30, 4)], ds.watch(model, ["2"]), tmp_path / "s", domain="target")
    with pytest.raises(ds.errors.InvalidInputError, match="segment_batches is for rows that are folded as a network"):
        ds.accumulate(tmp_path / "s", folding=Folding(segment_batches=2))
