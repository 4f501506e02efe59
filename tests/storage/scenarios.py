"""What is done to a small store, and what must be true of it at any instant: shared by the crash and the failure tests.

Everything goes through `dalr_stream`'s public functions; tiles are small (`stores.small_tiles`), so a few rows are many
commits. The network has layers of other widths, so their tiles end in different batches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from stores import files_of
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.errors import StoreNotFoundError
from dalr_stream.storage.records.catalogue import records
from dalr_stream.storage.records.moments import load_moments
from dalr_stream.storage.records.weights import load_layer_weights
from dalr_stream.storage.removal import delete_activations, forget_domain
from dalr_stream.storage.store import ActivationStore
from dalr_stream.streaming.folding import Threads

SAMPLES = {"target": 11, "source": 7}


@cache
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 2)).eval()


def batches(domain):
    """Cut the domain's samples into batches of awkward sizes."""
    inputs = torch.randn(SAMPLES[domain], 24, generator=torch.Generator().manual_seed(SAMPLES[domain]))
    return torch.tensor_split(inputs, (3, 4, 5, 9))


def capture(root, domain="target"):
    ds.capture(network(), batches(domain), ds.network.select_layers(network(), ["*"]), root, domain=domain)


def accumulate(root, domain="target", share=0.3):
    accumulate_stored(root, domain=domain, layers=["0"], folding=ds.Folding(ds.HoldoutRule(share), Threads(1)))


@dataclass(frozen=True)
class Scenario:
    """`act` is done to a store that `prepare` made; done again after any crash, it ends in the same files."""

    prepare: Callable[[Path], None]
    act: Callable[[Path], None]


def _nothing(_root):
    pass


def _captured(root):
    capture(root)


def _accumulated(root):
    capture(root)
    accumulate(root)


def _two_domains(root):
    capture(root)
    capture(root, "source")


def _deleted(root):
    capture(root)
    accumulate(root)
    delete_activations(root)


SCENARIOS = {
    "first capture": Scenario(_nothing, capture),
    "second domain": Scenario(_captured, lambda root: capture(root, "source")),
    "new moments": Scenario(_captured, accumulate),
    "moments replaced": Scenario(_accumulated, lambda root: accumulate(root, share=0.6)),
    "a domain forgotten": Scenario(_two_domains, lambda root: forget_domain(root, "source")),
    "activations deleted": Scenario(_accumulated, delete_activations),
    "captured again": Scenario(_deleted, capture),
}


class Truth:
    """What a reader may see: the rows of either end of a scenario, and the records of both."""

    def __init__(self, *roots):
        self._rows, self._moments, self._weights = {}, {}, {}
        for root in roots:
            if root.exists():
                self._note(root)

    def _note(self, root):
        store = ActivationStore(root)
        for domain, record in store.manifest.domains.items():
            for layer in record.layers:
                if store.has_rows(domain, layer):
                    self._rows[domain, layer] = _rows(store, domain, layer)
        for path in records(root):
            name = path.relative_to(root)
            if name.parts[0] == "moments":
                self._moments.setdefault(name, []).append(load_moments(path))
            elif name.parts[0] == "weights":
                self._weights[name.parts[1]] = load_layer_weights(root, name.parts[1])

    def assert_held_by(self, root):
        """A reader sees a committed state, whole: every committed tile reads back, every record that is there does."""
        before = files_of(root)
        try:
            store = ActivationStore(root)
        except StoreNotFoundError:
            assert not (root / "manifest.json").exists()
            return
        for domain, record in store.manifest.domains.items():
            for layer in record.layers:
                if store.has_rows(domain, layer):
                    rows = _rows(store, domain, layer)
                    assert np.array_equal(rows, self._rows[domain, layer][: len(rows)])
                    assert not record.complete or len(rows) == len(self._rows[domain, layer])
        for path in records(root):
            name = path.relative_to(root)
            if name.parts[0] == "moments":
                assert any(load_moments(path).same_bits(moments) for moments in self._moments[name])
            else:
                known = self._weights[name.parts[1]]
                assert all(
                    np.array_equal(a, b) for a, b in zip(load_layer_weights(root, name.parts[1]), known, strict=True)
                )
        now = files_of(root)
        assert {n for n in {*now, *before} if now.get(n) != before.get(n)} == set()


def _rows(store, domain, layer):
    record = store.rows(domain, layer)
    tiles = [store.read_tile(domain, layer, tile).rows for tile in range(store.tiles(domain, layer))]
    rows = np.concatenate([np.empty((0, record.features), record.dtype), *tiles])
    assert len(rows) == record.rows
    return rows
