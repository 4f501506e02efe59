"""The passes that prove whose rows are whose, through the blocks together: they find what they find one by one."""

import pytest
import torch
from block_networks import WIDTH, Block, Tower, batches, made, same_files
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import DalrStreamError
from dalr_stream.network.blocks.walk import BlockWalk

ROWS = ds.RowRule(mask="mask")


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


class Changed(Tower):
    """A tower of which the second block is another one."""

    def __init__(self, block):
        super().__init__(3)
        self.blocks[1] = block()


class Mixing(Block):
    """Samples are mixed before `up`."""

    def forward(self, x, bias):
        return super().forward(x + x.mean(0), bias)


class Unmasked(Block):
    """Its attention goes by no mask."""

    def forward(self, x, bias):
        return super().forward(x, torch.zeros_like(bias))


def accumulate(model, store, **options):
    layers = ds.watch(model, ["blocks.*", "head"])
    return ds.accumulate(model, batches(), layers, store=store, rows=ROWS, **options)


@pytest.mark.parametrize("block", [Mixing, Unmasked])
def test_what_is_refused_whole_is_refused_in_the_same_words(block, tmp_path):
    model, said = made(lambda: Changed(block)), []
    for options in ({}, {"blocks": True}):
        with pytest.raises(DalrStreamError) as refused:
            accumulate(model, tmp_path / str(len(said)), **options)
        said.append(str(refused.value))
    assert said[0] == said[1]
    assert "blocks.1" in said[0]


class Sized(nn.Module):
    """Calls a module more for batches of many samples, of which nothing comes."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(3))
        self.many = nn.Identity()

    def forward(self, x):
        for block in self.blocks:
            x = block(self.many(x)) if len(x) > 8 else block(x)
        return x


def test_few_samples_that_go_another_way_go_through_the_network_whole(tmp_path, monkeypatch):
    model, walked, real = made(Sized), [], BlockWalk.__call__
    monkeypatch.setattr(BlockWalk, "__call__", lambda *given: walked.append(real(*given)) or walked[-1])
    data = list(torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(2)).split(10))
    for name, options in (("whole", {}), ("blocks", {"blocks": True})):
        ds.accumulate(model, data, ds.watch(model, ["blocks.*.0"]), store=tmp_path / name, **options)
    assert walked == [None]
    assert same_files(tmp_path / "whole", tmp_path / "blocks") == []
