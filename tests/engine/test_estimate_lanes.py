"""Lanes that no tile falls to take no memory: what `estimate` counts of known rows, and what a limit relies on."""

import dataclasses

import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.estimate import estimate

FOLDING = ds.Folding(ds.HoldoutRule(0.1), ds.Threads(2))
AMPLE = dataclasses.replace(FOLDING, memory_limit_bytes=2**40)
WIDTH = 1024
LANES, TILE = 8, 4096


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(WIDTH, 4)).eval()


def planned(net, *loaders, folding=FOLDING):
    named = {f"d{number}": loader for number, loader in enumerate(loaders)}
    (layer,) = estimate(net, named, ds.network.select_layers(net, ["0"]), folding, direct=True).layers
    return layer.direct_bytes


def lanes_in(planned_bytes, rows):
    """Two matrices each; beside them there is a tile, and what a batch gives."""
    return round((planned_bytes - min(rows, TILE) * WIDTH * 4) / (2 * 8 * WIDTH**2))


class Batches:
    """So many batches of one form; only the first is ever made."""

    def __init__(self, count, *shape):
        self.count, self.shape = count, shape

    def __len__(self):
        return self.count

    def __iter__(self):
        return (torch.zeros(self.shape) for _ in range(self.count))


@pytest.mark.parametrize("folding", [FOLDING, AMPLE])
@pytest.mark.parametrize(("rows", "lanes"), [(100, 1), (TILE, 1), (TILE + 1, 2), (20 * TILE, LANES)])
def test_a_row_a_sample_fills_as_many_lanes_as_there_are_tiles(net, rows, lanes, folding):
    assert lanes_in(planned(net, Batches(rows, 1, WIDTH), folding=folding), rows) == lanes


def test_it_is_the_longest_domain_that_counts(net):
    short, long = Batches(10, 1, WIDTH), Batches(TILE + 1, 1, WIDTH)
    assert planned(net, short, long) == planned(net, long) > planned(net, short)


def test_within_a_limit_tokens_may_fill_every_lane_since_other_batches_may_have_more(net):
    tokens = Batches(3, 2, 7, WIDTH)
    assert lanes_in(planned(net, tokens), 42) == 1
    assert lanes_in(planned(net, tokens, folding=AMPLE), TILE) == LANES


def test_of_a_first_batch_without_samples_nothing_is_concluded(net):
    assert lanes_in(planned(net, Batches(3, 0, WIDTH)), TILE) == LANES
