"""Batches that go another way than the first one, through modules whose weights are not there: one clear line."""

import pytest
import torch
from block_networks import WIDTH, Tower, batches, in_shards, made
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import UnsupportedLayerError

ANOTHER_WAY = "blocks: for one of the batches .*: batches go different ways through the network; run it whole"


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


class Backwards(Tower):
    """Takes short batches through its blocks in the other order."""

    def forward(self, words, mask):
        x = self.words(words)
        for block in reversed(self.blocks) if len(words) < 4 else self.blocks:
            x = block(x, mask[:, None])
        return self.head(x)


class MoreBefore(Tower):
    """Takes short batches through one layer more, before its blocks."""

    def __init__(self):
        super().__init__()
        self.more = nn.Linear(WIDTH, WIDTH)

    def forward(self, words, mask):
        x = self.words(words)
        x = self.more(x) if len(words) < 4 else x
        for block in self.blocks:
            x = block(x, mask[:, None])
        return self.head(x)


class MoreBetween(MoreBefore):
    """The same, after the second block."""

    def forward(self, words, mask):
        x = self.words(words)
        for number, block in enumerate(self.blocks):
            x = block(x, mask[:, None])
            x = self.more(x) if len(words) < 4 and number == 1 else x
        return self.head(x)


class BesideTheHead(MoreBefore):
    """The same, before the head."""

    def forward(self, words, mask):
        x = self.words(words)
        for block in self.blocks:
            x = block(x, mask[:, None])
        return self.head(x if len(words) == 4 else self.more(x))


DATA = [*batches(2), batches(1, samples=3)[0]]
NETWORKS = [Backwards, MoreBefore, MoreBetween, BesideTheHead]


def opened(build, tmp_path):
    return ds.open_network(build, in_shards(made(build), tmp_path / "weights"))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("prove", "gradients"), [(True, []), (False, []), (False, ["blocks.*"])])
def test_moments(network, prove, gradients, tmp_path):
    model = opened(network, tmp_path)
    layers = ds.watch(model, ["blocks.*", "head"], gradients=gradients)
    rows = ds.RowRule(prove=prove, gradients=ds.GradientRule() if gradients else None)
    with pytest.raises(UnsupportedLayerError, match=ANOTHER_WAY):
        ds.accumulate(model, DATA, layers, store=tmp_path / "store", rows=rows)
    assert list((tmp_path / "store").rglob("moments/*/head")) == []
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("network", NETWORKS[:3])
def test_layer_after_layer(network, tmp_path):
    choices = {f"blocks.{number}.up": ds.LayerChoice("dalr_anchored_affine", size=3) for number in range(4)}
    with pytest.raises(UnsupportedLayerError, match=ANOTHER_WAY):
        ds.compress_sequentially(opened(network, tmp_path), DATA, choices, store=tmp_path / "store")


def test_called_as_it_is_it_goes_any_way(tmp_path):
    model, whole = opened(MoreBefore, tmp_path), made(MoreBefore)
    assert all(torch.equal(model(**batch), whole(**batch)) for batch in DATA)
