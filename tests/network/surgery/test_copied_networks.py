"""A network is copied with whatever it holds: locks are shared, and what cannot be copied is named."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.numerics.lowrank.factors import LowRankLayer


class Holding(nn.Module):
    def __init__(self, thing):
        super().__init__()
        self.a = nn.Linear(6, 5)
        self.inner = nn.Module()
        self.inner.thing = thing

    def forward(self, x):
        return self.a(x)


def compressed(thing):
    net = Holding(thing).eval()
    weight, bias = ds.network.weights_of(net, "a")
    return net, ds.compress(net, {"a": LowRankLayer(weight, np.eye(5), bias)})


@pytest.mark.parametrize(
    "thing",
    [
        threading.Lock(),
        threading.RLock(),
        threading.Event(),
        threading.Condition(),
        {"locks": [threading.Lock()]},
        partial(print, threading.Lock()),
        torch.Generator(),
        np.random.default_rng(0),
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_locks_and_generators_of_random_numbers_do_not_hinder(thing):
    net, small = compressed(thing)
    x = torch.randn(3, 6)
    torch.testing.assert_close(small(x), net(x))
    if isinstance(thing, type(threading.Lock())):
        assert small.inner.thing is thing


@pytest.mark.parametrize("kind", ["generator", "file", "pool"])
def test_what_cannot_be_copied_is_named_with_its_place(kind, tmp_path):
    (tmp_path / "file").touch()
    with (tmp_path / "file").open() as file, ThreadPoolExecutor(1) as pool:
        thing = {"generator": (x for x in ()), "file": file, "pool": pool}[kind]
        with pytest.raises(UnsupportedLayerError, match=r"copied for its attribute 'thing' of 'inner' \(cannot"):
            compressed(thing)
