"""What a run takes is worked out from a batch of each domain and a tile of each width, timed by a clock of our own."""

from itertools import count
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.estimate import estimate
from dalr_stream.engine.planning import duration
from dalr_stream.errors import InvalidInputError

WIDTHS = (6, 1500)


@pytest.fixture
def network():
    return nn.Sequential(nn.Linear(6, 1500), nn.ReLU(), nn.Linear(1500, 2)).eval()


def timed(monkeypatch, network, *, limit=None, batches=(3, 5), device=None):
    ticks = count()
    monkeypatch.setattr(duration, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    loaders = {str(number): [torch.randn(4, 6)] * number for number in batches}
    layers, folding = ds.watch(network, ["*"]), ds.Folding(workers=ds.Threads(1), device=device)
    plan = estimate(network, loaders, layers, ds.Folding(workers=ds.Threads(1), memory_limit_bytes=limit), direct=True)
    return duration.duration_of(network, loaders, layers, folding, plan), plan, folding


def test_each_domain_has_its_batches_and_each_width_its_rows(monkeypatch, network):
    found, plan, folding = timed(monkeypatch, network)
    assert len(plan.groups) == 1
    assert found.passes_seconds == 8.0  # a tick a batch
    rows, tile = 8 * 4, [folding.rule(min(width, 1024)).tile_rows for width in WIDTHS]
    assert found.folding_seconds == pytest.approx(rows / tile[0] + rows / tile[1] * (1500 / 1024) ** 2)
    assert found.seconds == found.passes_seconds + found.folding_seconds


def test_a_limit_that_parts_the_layers_takes_a_pass_for_each_part(monkeypatch, network):
    whole = timed(monkeypatch, network)[1]
    found, plan, _ = timed(monkeypatch, network, limit=whole.peak_bytes - 1)
    assert len(plan.groups) == 2
    assert found.passes_seconds == 16.0


def test_an_empty_first_batch_takes_nothing(network):
    layers, folding = ds.watch(network, ["*"]), ds.Folding(workers=ds.Threads(1))
    plan = estimate(network, {"target": [torch.randn(4, 6)]}, layers, folding, direct=True)
    found = duration.duration_of(network, {"target": [torch.zeros(0, 6)]}, layers, folding, plan)
    assert found.passes_seconds == 0.0


@pytest.mark.parametrize("device", ["cupy", "cuda:97"])
def test_what_cannot_fold_here_is_not_timed(monkeypatch, network, device):
    with pytest.raises(InvalidInputError, match=r"not timed|does not exist"):
        timed(monkeypatch, network, device=device)
