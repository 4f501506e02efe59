"""Cross moments of two stores' rows: the bits of those made while both networks run, however they are folded."""

import dataclasses

import numpy as np
import oracles
import pytest
import torch
from pairs import compressed_of, data, network
from rows_of_two_stores import both, two_stores
from stopping import StopAfter, StoppedError

import dalr_stream as ds
from dalr_stream.engine.cross.accumulate import accumulate_cross
from dalr_stream.engine.cross.from_stores import accumulate_cross_stored
from dalr_stream.engine.stores.merge import merge
from dalr_stream.engine.stores.verify import verify_store
from dalr_stream.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    LayerNotFoundError,
    MemoryLimitError,
    StoreDamagedError,
)
from dalr_stream.storage.manifest import Manifest
from dalr_stream.streaming.lanes import Pace

HELD = ds.Folding(ds.HoldoutRule(0.2, seed=3), ds.Threads(1))
LATER = ["2", "4"]


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def original():
    return network()


@pytest.fixture
def compressed(original):
    return compressed_of(original)


def captured(original, compressed, folder, batches, *, names=LATER, domain="target"):
    """The two stores: outputs of the original, inputs of the compressed network."""
    outputs = ds.network.select_layers(original, names, side="outputs")
    inputs = ds.network.select_layers(compressed, names)
    ds.capture(original, batches, outputs, folder / "original", domain=domain)
    ds.capture(compressed, batches, inputs, folder / "compressed", domain=domain)
    return folder / "original", folder / "compressed"


def same(one, other):
    assert list(one) == list(other)
    parts = [(one, other), (one.heldout, other.heldout)]
    return all(mine[name].same_bits(its[name]) for mine, its in parts for name in one)


def test_they_are_the_bits_and_the_store_of_those_made_while_both_run(original, compressed, tmp_path):
    batches = data().split(70)
    stores = captured(original, compressed, tmp_path, batches)
    found = accumulate_cross_stored(*stores, tmp_path / "c", folding=HELD)
    layers = ds.network.select_layers(original, LATER)
    direct = accumulate_cross(original, compressed, batches, layers, store=tmp_path / "d", folding=HELD)
    assert same(found, direct)
    kept, made = (Manifest.read(tmp_path / name) for name in "cd")
    assert kept.domains == made.domains
    assert kept.network.fingerprint == made.network.fingerprint
    assert {name: dataclasses.astuple(one) for name, one in kept.network.layers.items()} == {
        name: dataclasses.astuple(one) for name, one in made.network.layers.items()
    }
    assert verify_store(tmp_path / "c").findings == ()
    merge([tmp_path / "c"], tmp_path / "one")
    assert same(ds.open_store(tmp_path / "one").cross(), found)
    with pytest.raises(InvalidInputError, match="hold the same rows, which would count twice"):
        merge([tmp_path / "c", tmp_path / "d"], tmp_path / "all")


@pytest.mark.parametrize("widths", [(20, 12), (1300, 900)])
def test_the_numbers_are_the_twins_for_any_workers_strips_and_shards(widths, tmp_path):
    x, z = both(600, *widths)
    stores = two_stores(tmp_path, x, z)
    found = accumulate_cross_stored(*stores, tmp_path / "c", folding=HELD)["fc"]
    training = ~HELD.holdout.mask(np.arange(600))
    about_zero, about_means = oracles.cross_moments(x[training].T.astype(float), z[training].T.astype(float))
    scale = np.abs(about_zero).max()
    np.testing.assert_allclose(found.cross_gram, about_zero, rtol=1e-10, atol=1e-12 * scale)
    np.testing.assert_allclose(found.cross_scatter, about_means, rtol=1e-7, atol=1e-10 * np.abs(about_means).max())
    threads = dataclasses.replace(HELD, workers=ds.Threads(3))
    assert accumulate_cross_stored(*stores, tmp_path / "t", folding=threads)["fc"].same_bits(found)
    sharded = accumulate_cross_stored(*stores, tmp_path / "s", folding=dataclasses.replace(HELD, shards=2))
    assert (sharded.shards["fc"][0] + sharded.shards["fc"][1]).same_bits(sharded["fc"])
    assert sharded["fc"].count == found.count


def test_within_a_limit_they_are_folded_in_strips_to_the_same_bits_or_refused(tmp_path):
    stores = two_stores(tmp_path, *both(600, 1300, 900))
    whole = accumulate_cross_stored(*stores, tmp_path / "c", folding=HELD)["fc"]
    notes = StopAfter(10**6)
    limited = dataclasses.replace(HELD, memory_limit_bytes=150 * 2**20)
    cut = accumulate_cross_stored(*stores, tmp_path / "l", folding=limited, progress=notes)["fc"]
    assert any("passes over the rows, to stay within the limit" in line for line in notes.said)
    assert cut.same_bits(whole)
    with pytest.raises(MemoryLimitError, match=r"layer 'fc@cross': folding 2,200 features .* the narrowest strips"):
        accumulate_cross_stored(*stores, tmp_path / "r", folding=dataclasses.replace(HELD, memory_limit_bytes=2**20))


def test_a_cluster_gives_the_same_bits(original, compressed, tmp_path):
    stores = captured(original, compressed, tmp_path, data().split(70))
    here = accumulate_cross_stored(*stores, tmp_path / "c", folding=HELD)
    with ds.open_cluster(workers=2) as cluster:
        there = accumulate_cross_stored(*stores, tmp_path / "w", folding=dataclasses.replace(HELD, workers=cluster))
        assert same(here, there)


def test_stopped_it_resumes_and_done_it_is_not_done_again(tmp_path):
    stores = two_stores(tmp_path, *both(9000, 6, 4))
    expected = accumulate_cross_stored(*stores, tmp_path / "c", folding=HELD)
    often = dataclasses.replace(HELD, pace=lambda: Pace(every_tiles=1))
    with pytest.raises(StoppedError):
        accumulate_cross_stored(*stores, tmp_path / "k", folding=often, progress=StopAfter(3))
    resumed = StopAfter(10**6)
    found = accumulate_cross_stored(*stores, tmp_path / "k", folding=often, progress=resumed)
    assert same(found, expected)
    again = StopAfter(1)
    assert same(accumulate_cross_stored(*stores, tmp_path / "k", folding=often, progress=again), expected)
    assert again.said == ["cross moments of 'fc' on 'target' are up to date"]


def test_stores_of_other_samples_are_refused_by_the_first_batch_that_differs(original, compressed, tmp_path):
    batches = data().split(60)
    first, second = captured(original, compressed, tmp_path, batches)
    outputs = ds.network.select_layers(original, LATER, side="outputs")
    cases = {
        "order": ([batches[1], batches[0], *batches[2:]], "batch 0 has other inputs"),
        "number": (batches[:-1], "they hold 5 and 4 batches"),
        "digest": ([*batches[:3], batches[3] + 1.0, batches[4]], "batch 3 has other inputs"),
        "size": (data().split(50), "batch 0 has 60 and 50 samples"),
    }
    for name, (other, message) in cases.items():
        ds.capture(original, other, outputs, tmp_path / name, domain="target")
        with pytest.raises(FingerprintMismatchError, match=f"cannot be paired: {message}"):
            accumulate_cross_stored(tmp_path / name, second, tmp_path / "c")
    rule = ds.RowRule(most_per_sample=1)
    ds.capture(original, batches, outputs, tmp_path / "choice", domain="target", rows=rule)
    with pytest.raises(FingerprintMismatchError, match=r"cannot be paired: they hold .*: choose the same rows"):
        accumulate_cross_stored(tmp_path / "choice", second, tmp_path / "c")
    assert not (tmp_path / "c").exists()
    assert first.exists()


def test_layers_that_are_missing_or_do_not_fit_are_named(original, compressed, tmp_path):
    batches = data().split(60)
    first, second = captured(original, compressed, tmp_path, batches)
    with pytest.raises(LayerNotFoundError, match=r"layer '0': '.*compressed' has no inputs of it on 'target'"):
        accumulate_cross_stored(first, second, tmp_path / "c", layers=["0"])
    with pytest.raises(LayerNotFoundError, match=r"has inputs of no layer, .* outputs of no layer: capture both sides"):
        accumulate_cross_stored(second, first, tmp_path / "c")
    small = network(widths=(6, 8, 4, 3))
    ds.capture(small, batches, ds.network.select_layers(small, ["2"]), tmp_path / "small", domain="target")
    with pytest.raises(InvalidInputError, match=r"layer '2': reads 8 and gives 4 features .* gives 5 in"):
        accumulate_cross_stored(first, tmp_path / "small", tmp_path / "c")


def test_a_network_that_changed_since_is_named(original, compressed, tmp_path):
    batches = data().split(60)
    stores = captured(original, compressed, tmp_path, batches)
    accumulate_cross_stored(*stores, tmp_path / "c")
    other = compressed_of(original, rank=3)
    inputs = ds.network.select_layers(other, LATER)
    ds.capture(other, batches, inputs, tmp_path / "other", domain="target")
    with pytest.raises(FingerprintMismatchError, match="cross moments of the compressed network with fingerprint"):
        accumulate_cross_stored(stores[0], tmp_path / "other", tmp_path / "c")


def test_a_damaged_tile_of_either_store_is_named(tmp_path):
    for side, layer in (("x", "fc"), ("z", "fc@outputs")):
        folder = tmp_path / side
        folder.mkdir()
        stores = two_stores(folder, *both(600, 6, 4))
        tiles = (folder / side / "activations" / "target" / layer / "c").rglob("*")
        chunk = next(path for path in tiles if path.is_file())
        chunk.write_bytes(chunk.read_bytes()[:-9] + b"\1" * 9)
        with pytest.raises(StoreDamagedError, match=layer):
            accumulate_cross_stored(*stores, folder / "c")


def test_masked_rows_of_varying_number_pair_up(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 4)).eval()
    weight, bias = ds.network.weights_of(model, "0")
    small = ds.compress(model, {"0": ds.truncated_svd(weight, bias).at_rank(2)})
    tokens = torch.randn(40, 6, 5)
    batches = tokens.split(9)
    rule = ds.RowRule(mask=lengths)
    outputs = ds.network.select_layers(model, ["2"], side="outputs")
    ds.capture(model, batches, outputs, tmp_path / "original", domain="target", rows=rule)
    inputs = ds.network.select_layers(small, ["2"])
    ds.capture(small, batches, inputs, tmp_path / "compressed", domain="target", rows=rule)
    found = accumulate_cross_stored(tmp_path / "original", tmp_path / "compressed", tmp_path / "c", folding=HELD)
    layers = ds.network.select_layers(model, ["2"])
    assert same(found, accumulate_cross(model, small, batches, layers, rows=rule, folding=HELD))
    assert verify_store(tmp_path / "c").findings == ()


def lengths(batch):
    """One to six positions of each sample count."""
    counts = (batch[:, 0, 0].abs() * 10).long() % 6 + 1
    return torch.arange(6)[None, :] < counts[:, None]
