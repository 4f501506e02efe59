"""A metric of one's own, block by block: the value that it gives of the whole network, each block read once."""

import sys
from contextlib import nullcontext, suppress
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from notes import Notes
from stopping import StopAfter, StoppedError
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import DiskSpaceError, FingerprintMismatchError, UnsupportedLayerError
from dalr_stream.network.blocks.scored import scored_by_blocks
from dalr_stream.network.measure.macs import watched_calls
from dalr_stream.network.saved.shards import Shards

sys.path.insert(0, str(Path(__file__).parents[2] / "engine" / "blocks"))
from block_networks import Tower, batches, in_shards, made

Small = partial(Tower, 3)


def likelihood(model, data):
    """Scores words by the ones before them, under autocast, as a language model's perplexity is taken."""
    total = 0.0
    for batch in data:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(batch["words"], mask=batch["mask"])
        chosen = logits.float().log_softmax(-1)[:, :-1].gather(2, batch["words"][:, 1:, None])
        total += float(chosen.sum())
    return total


def opened(tmp_path, build=Small):
    model = made(build)
    return model, ds.open_network(build, in_shards(model, tmp_path / "weights"))


def by_blocks(network, metric, data, folder, *, made_from=None, progress=None):
    options = {"blocks": True, "made_from": made_from, "progress": progress or Notes()}
    return scored_by_blocks(network, metric, data, folder, **options)


def test_it_is_the_value_of_the_whole_network_and_what_its_layers_computed(tmp_path):
    model, network = opened(tmp_path)
    with watched_calls(model) as calls:
        expected = likelihood(model, batches())
    found = by_blocks(network, likelihood, batches(), tmp_path / "stream")
    assert found.value == expected
    assert found.macs == {name: count / calls.samples for name, count in calls.macs.items()}
    assert list(found.macs) == [name for name, _ in model.named_modules() if name in calls.macs]
    assert not (tmp_path / "stream").exists()
    assert all(parameter.is_meta for parameter in network.blocks.parameters())


def test_every_block_is_read_as_often_for_many_batches_as_for_one(tmp_path, monkeypatch):
    read, tensor = [], Shards.tensor
    monkeypatch.setattr(Shards, "tensor", lambda self, name: read.append(name) or tensor(self, name))
    _, network = opened(tmp_path)
    counts = []
    for number in (1, 5):
        del read[:]
        by_blocks(network, likelihood, batches(number), tmp_path / "stream")
        counts.append(read.count("blocks.1.up.weight"))
    assert counts[0] == counts[1] == 4  # which blocks there are, proved against the whole network; and the pass itself


def test_killed_anywhere_it_goes_on_in_that_block(tmp_path, monkeypatch):
    _, network = opened(tmp_path)
    expected = by_blocks(network, likelihood, batches(3), tmp_path / "other")
    seen = []
    for block in (1, 2):
        stopping = StopAfter(block + 1)  # the first report says where it begins
        with pytest.raises(StoppedError):
            by_blocks(network, likelihood, batches(3), tmp_path / "stream", made_from="x", progress=stopping)
    forward = Tower.forward
    counted = wraps(forward)(lambda *given, **named: seen.append(1) or forward(*given, **named))
    monkeypatch.setattr(Tower, "forward", counted)
    found = by_blocks(network, likelihood, batches(3), tmp_path / "stream", made_from="x")
    assert found == expected
    assert len(seen) == 8 + 3  # looked at and proved; the last block alone
    with pytest.raises(StoppedError):
        by_blocks(network, likelihood, batches(3), tmp_path / "stream", made_from="x", progress=StopAfter(3))
    other = by_blocks(network, likelihood, batches(5), tmp_path / "stream", made_from="y")
    assert other == by_blocks(
        network, likelihood, batches(5), tmp_path / "other"
    )  # under other settings it begins anew


def test_a_network_in_memory_goes_the_same_way(tmp_path):
    model = made(Small)
    assert by_blocks(model, likelihood, batches(), tmp_path).value == likelihood(model, batches())


@torch.no_grad()
def generating(model, data):
    return sum(float(model.generate(batch["words"]).sum()) for batch in data)


@torch.no_grad()
def twice(model, data):
    flipped = ({**batch, "words": batch["words"].flip(1)} for batch in data)
    return sum(float(model(**one).sum()) for pair in zip(data, flipped, strict=True) for one in pair)


@torch.no_grad()
def swallowing(model, data):
    total = 0.0
    for batch in data:
        total += float(model(**batch).sum())
        with suppress(Exception):  # what careless metrics do
            total += float(model(**{**batch, "words": batch["words"].flip(1)}).sum())
    return total


@pytest.mark.parametrize(
    ("metric", "error", "words"),
    [
        (generating, UnsupportedLayerError, "a metric may do no more with a network than call it.*: AttributeError"),
        (twice, FingerprintMismatchError, "call the network once for each batch"),
        (swallowing, FingerprintMismatchError, "call the network once for each batch"),
        (lambda _, data: len(data), UnsupportedLayerError, "it does not call the network on the first batch"),
    ],
)
def test_a_metric_that_does_more_than_call_is_refused(metric, error, words, tmp_path):
    _, network = opened(tmp_path)
    with pytest.raises(error, match=words):
        by_blocks(network, metric, batches(2), tmp_path / "stream")


def test_a_disk_without_room_is_refused_before_the_first_block(tmp_path, monkeypatch):
    _, network = opened(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=4000))
    notes = Notes()
    with pytest.raises(DiskSpaceError, match="what the blocks give of all batches takes"):
        by_blocks(network, likelihood, batches(5), tmp_path / "stream", progress=notes)
    assert notes.started == []


class Augmented(list):
    def __iter__(self):
        return ({**batch, "words": torch.randint(0, 30, batch["words"].shape)} for batch in super().__iter__())


def test_batches_that_differ_each_time_are_refused(tmp_path):
    _, network = opened(tmp_path)
    with pytest.raises(FingerprintMismatchError, match="turn off random augmentation"):
        by_blocks(network, likelihood, Augmented(batches(2)), tmp_path / "stream")


class Telling(Tower):
    """Gives what each block gives, beside its scores."""

    def forward(self, words, mask):
        x = self.words(words)
        states = [x := block(x, (1 - mask)[:, None, :] * -1e4) for block in self.blocks]
        return self.head(self.norm(x)), states


@torch.no_grad()
def of_states(model, data):
    return sum(float(model(**batch)[1][0].sum()) for batch in data)


@torch.no_grad()
def of_scores(model, data):
    return sum(float(model(**batch)[0].sum()) for batch in data)


def test_what_an_earlier_block_gives_is_not_there_in_the_end(tmp_path):
    model, network = opened(tmp_path, Telling)
    assert by_blocks(network, of_scores, batches(2), tmp_path / "stream").value == of_scores(model, batches(2))
    with pytest.raises(UnsupportedLayerError, match="let it give its last outputs alone"):
        by_blocks(network, of_states, batches(2), tmp_path / "stream")


class Choosing(Tower):
    """Uses what its first block gives after the last one, for some batches."""

    def forward(self, words, mask):
        x = self.words(words)
        first = None
        for block in self.blocks:
            x = block(x, (1 - mask)[:, None, :] * -1e4)
            first = x if first is None else first
        return self.head(self.norm(x + first if len(words) == 3 else x))


@pytest.mark.parametrize("careless", [False, True])
def test_a_batch_that_goes_another_way_is_refused_whatever_a_metric_makes_of_it(careless, tmp_path):
    _, network = opened(tmp_path, Choosing)
    data = [batches(1)[0], {name: one[:3] for name, one in batches(1)[0].items()}]

    def metric(model, data):
        total = 0.0
        for batch in data:
            with suppress(Exception) if careless else nullcontext():
                total += float(model(**batch).detach().sum())
        return total

    with pytest.raises(UnsupportedLayerError, match="numbers are used that the first batch had no use for"):
        by_blocks(network, metric, data, tmp_path / "stream")


class Repeated(nn.Module):
    """A layer beside the blocks that is called before and after each of them."""

    def __init__(self):
        super().__init__()
        self.beside, self.blocks = nn.Linear(4, 4), nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = self.beside(block(self.beside(x)))
        return x


def test_layers_that_several_blocks_share_count_as_often_as_they_are_run(tmp_path):
    model, network = opened(tmp_path, Repeated)
    data = [torch.randn(5, 4), torch.randn(2, 4)]

    @torch.no_grad()
    def metric(model, data):
        return sum(float(model(x).sum()) for x in data)

    with watched_calls(model) as calls:
        expected = metric(model, data)
    found = by_blocks(network, metric, data, tmp_path / "stream")
    assert found.value == expected
    assert found.macs == {name: count / calls.samples for name, count in calls.macs.items()}
