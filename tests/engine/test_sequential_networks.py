"""Compressing layer after layer holds one network besides the one it is made of, whatever the number of passes."""

import gc
import warnings

import pytest
import torch
from notes import Notes
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.sequential.passes import last_of, sequential_passes
from dalr_stream.errors import ParameterIncreaseWarning

BLOCKS = 5
FACTORS, NODES = ("dalr_anchored_affine", 3), ("spectral", 6)


class Blocks(nn.Module):
    """Two layers a block, on a stream."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.up = nn.ModuleList(nn.Linear(6, 10) for _ in range(BLOCKS))
            self.down = nn.ModuleList(nn.Linear(10, 6) for _ in range(BLOCKS))

    def forward(self, x):
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.relu(up(x)))
        return x


class Census(Notes):
    """Counts the networks there are whenever a layer is solved."""

    def __init__(self):
        super().__init__()
        self.networks = []

    def note(self, text):
        super().note(text)
        if "of which it inherited" in text:
            gc.collect()
            self.networks.append(sum(type(one) is Blocks for one in gc.get_objects()))


def choices(kind):
    names = [f"up.{number}" for number in range(BLOCKS)]
    if kind is FACTORS:
        names = [name for up in names for name in (up, up.replace("up", "down"))]
    return {name: ds.LayerChoice(*kind) for name in names}


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        yield


@pytest.fixture
def batches():
    return torch.randn(200, 6, generator=torch.Generator().manual_seed(1)).split(40)


@pytest.mark.parametrize("target", ["outputs", "stream"])
@pytest.mark.parametrize("kind", [FACTORS, NODES])
def test_the_original_and_the_one_compressed_so_far_are_all_there_is(kind, target, batches):
    census, model = Census(), Blocks().eval()
    ds.compress_sequentially(model, batches, choices(kind), target=target, progress=census)
    first, *later = census.networks
    assert len(later) >= BLOCKS - 1
    assert first == 1
    assert set(later) == {2}


def test_what_an_earlier_run_left_goes_as_soon_as_the_next_network_is_there(batches):
    census, model = Census(), Blocks().eval()
    begun = sequential_passes(model, batches, choices(FACTORS))
    states = sequential_passes(
        model, batches, choices(FACTORS), begun=[next(begun) for _ in range(4)][-1], progress=census
    )
    begun.close()
    assert len(last_of(states).layers) == 2 * BLOCKS
    assert set(census.networks) == {2}
