"""A small job whose store may lie anywhere, and what a store holds, in words that do not say where."""

import re
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import dalr_stream as ds
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.numerics.rows import tiling
from dalr_stream.storage.manifest import Manifest
from dalr_stream.storage.metadata import read_metadata
from dalr_stream.storage.places.place import below, place_of
from dalr_stream.storage.records.catalogue import check_record, records
from dalr_stream.storage.store import ActivationStore
from dalr_stream.streaming.folding import Threads

SAMPLES = 60
SECRET = "do-not-keep-or-show-this"  # noqa: S105
_TILES = tiling.MIN_TILE_ROWS, tiling.MAX_TILE_ROWS


@contextmanager
def small_tiles(rows=(4, 8)):
    """Tiles of 8 rows, so that a few batches fill many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "MIN_TILE_ROWS", rows[0])
        patch.setattr(tiling, "MAX_TILE_ROWS", rows[1])
        yield


def whole_tiles():
    """Tiles as users have them: processes of their own know no others."""
    return small_tiles(_TILES)


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.ReLU(), torch.nn.Linear(10, 3)).eval()


def batches(seed=1):
    inputs = torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(seed))
    return torch.split(inputs, 7)


def capture(root, domain="target", seed=1):
    ds.capture(network(), batches(seed), ds.network.select_layers(network(), ["*"]), root, domain=domain)


def accumulate(root, domain="target", threads=1, shards=1):
    folding = ds.Folding(ds.HoldoutRule(0.3), Threads(threads), shards=shards)
    accumulate_stored(root, domain=domain, folding=folding)


def job(root):
    """Capture and accumulate."""
    capture(root)
    accumulate(root)


def contents(root):
    """Return all that a store says, every array of it checked: two stores that say the same hold the same bits."""
    place = place_of(root)
    manifest = Manifest.read(place)
    found = {"manifest": manifest.plain()}
    store = ActivationStore(place, manifest)
    for domain, record in manifest.domains.items():
        for layer in record.layers:
            if store.has_rows(domain, layer):
                tiles = [store.read_tile(domain, layer, number).rows for number in range(store.tiles(domain, layer))]
                found[domain, layer] = np.concatenate(tiles).tobytes()
    for path in records(place):
        check_record(place, path)
        attributes = read_metadata(path)["attributes"]
        attributes["provenance"].get("configuration", {}).pop("run", None)  # which says where the store is
        found[str(below(place, path))] = {name: value for name, value in attributes.items() if name != "at"}
    return found


def names(root):
    """Return the name of every object, those that were drawn by one word, less the claim."""
    place = place_of(root)
    keys = [key.removeprefix(f"{place.key}/") for key in place.bucket.keys(place.key)]
    return sorted(re.sub(r"/at-[0-9a-f]{16}/", "/at/", key) for key in keys if key != "writer.lock")
