"""Whatever is done to a store in a bucket has the bits that it has in a folder."""

import numpy as np
import pytest
from stores_in_buckets import accumulate, batches, capture, contents, job, names, network

import dalr_stream as ds
from dalr_stream.errors import FingerprintMismatchError, StoreError, StoreNotFoundError
from dalr_stream.storage.metadata import read_metadata, write_metadata
from dalr_stream.storage.places.place import place_of
from dalr_stream.storage.removal import delete_activations, forget_domain, forget_moments, forget_store
from dalr_stream.storage.store import ActivationStore


def test_a_job_has_the_bits_of_the_same_job_in_a_folder(store, tmp_path):
    job(store)
    job(tmp_path)
    assert contents(store) == contents(tmp_path)
    assert not ds.open_store(store).verify().findings


@pytest.mark.parametrize("threads", [1, 2])
def test_shards_and_threads_make_no_difference(in_memory, tmp_path, threads):
    for root in (in_memory, tmp_path):
        capture(root)
        accumulate(root, threads=threads, shards=3)
    assert contents(in_memory) == contents(tmp_path)


def test_the_same_command_again_changes_nothing(store):
    job(store)
    root = place_of(store)
    before = {name: root.bucket.version(f"{root.key}/{name}") for name in names(store) if name.endswith("zarr.json")}
    job(store)
    assert before == {name: root.bucket.version(f"{root.key}/{name}") for name in before}


def test_other_data_are_refused(store):
    capture(store)
    with pytest.raises(FingerprintMismatchError, match="is not the batch captured before"):
        capture(store, seed=2)


def test_solutions_come_back(store):
    from dalr_stream.storage.records.solutions import load_solution, save_solution

    job(store)
    factors = ds.dalr(ds.open_store(store).layer("2"))
    save_solution(place_of(store), "2", factors, {})
    again = load_solution(place_of(store), "2", factors.method)
    assert np.array_equal(again.at_rank(2).down, factors.at_rank(2).down)
    assert ds.open_store(store).methods("2") == (factors.method,)
    held = names(store)
    save_solution(place_of(store), "2", factors, {})
    assert names(store) == held  # of the one that was there nothing stays


def test_stores_anywhere_merge_to_one_anywhere(in_memory, tmp_path):
    other = in_memory.replace("store.zarr", "other.zarr")
    parts = {}
    for number, root in enumerate((in_memory, other, str(tmp_path / "folder.zarr"))):
        capture(root, seed=number)
        accumulate(root)
        parts[number] = root
    merged = ds.merge([parts[0], parts[1], parts[2]], in_memory.replace("store.zarr", "merged.zarr"))
    local = ds.merge([parts[2], parts[1], parts[0]], tmp_path / "merged.zarr")
    assert contents(merged.root) == contents(local.root)
    assert not ds.open_store(merged.root).verify().findings
    fewer = ds.merge([merged.root], merged.root, without=[merged.shards[0].name])
    assert len(fewer.shards) == 2
    assert not ds.open_store(merged.root).verify().findings


def test_what_is_removed_is_gone_and_nothing_else(store):
    job(store)
    capture(store, domain="source", seed=3)
    delete_activations(place_of(store))
    opened = ActivationStore(store)
    assert not opened.has_rows("target", "0")
    with pytest.raises(StoreNotFoundError, match="is gone"):
        opened.read_tile("target", "0", 0)
    assert ds.open_store(store).moments()["0"].count
    forget_domain(place_of(store), "source")
    assert ds.open_store(store).domains == ("target",)
    forget_moments(place_of(store), "target")
    assert not any(name.startswith("moments") for name in names(store))
    forget_store(place_of(store))
    assert names(store) == ["zarr.json"]
    job(store)


def test_a_place_with_other_objects_is_no_store(store):
    root = place_of(store)
    root.bucket.put(f"{root.key}/holiday.jpg", b"sun")
    with pytest.raises(StoreError, match="is not a store"):
        capture(store)
    assert names(store) == ["holiday.jpg"]


def test_damage_is_found_and_named(store):
    job(store)
    root = place_of(store)
    name = next(name for name in names(store) if name.startswith("activations/target/0/c/2"))
    data = bytearray(root.bucket.read(f"{root.key}/{name}"))
    data[len(data) // 2] ^= 1
    root.bucket.put(f"{root.key}/{name}", bytes(data))
    (finding,) = ds.open_store(store).verify().findings
    assert "tile 2 of layer '0'" in str(finding)


def test_a_lost_tile_is_damage_and_no_end_of_the_rows(store):
    job(store)
    root = place_of(store)
    root.bucket.delete([(root / "activations/target/0/c/1/0").key])
    assert "tile 1 of layer '0'" in str(ds.open_store(store).verify().findings[0])


def test_zarr_reads_the_rows_from_the_bucket(in_memory):
    import zarr

    capture(in_memory)
    root = place_of(in_memory)
    array = zarr.open_array(
        zarr.storage.ObjectStore(root.bucket.client), path=f"{root.key}/activations/target/0", mode="r"
    )
    store = ActivationStore(in_memory)
    assert np.array_equal(array[:8], store.read_tile("target", "0", 0).rows)
    assert array.shape == (store.rows("target", "0").rows, 6)


def test_a_tile_is_one_put_and_one_get(in_s3, s3):
    s3.requests.clear()
    capture(in_s3)
    tiles = {(layer, number) for layer in ("0", "2") for number in range(ActivationStore(in_s3).tiles("target", layer))}
    for layer, number in tiles:
        assert s3.counted(f"/activations/target/{layer}/c/{number}/0") == {"PUT": 1}
    s3.requests.clear()
    accumulate(in_s3)
    for layer, number in tiles:
        assert s3.counted(f"/activations/target/{layer}/c/{number}/0") == {"GET": 1}
    assert not s3.counted("?list")


def test_direct_accumulation_keeps_no_rows(store, tmp_path):
    layers = ds.network.select_layers(network(), ["*"])
    for root in (store, tmp_path):
        ds.accumulate(network(), batches(), layers, store=root)
    assert contents(store) == contents(tmp_path)
    assert not any("/c/" in name for name in names(store) if name.startswith("activations"))


def test_layer_after_layer_keeps_its_moments_there(in_memory, tmp_path):
    choices = {"0": ds.LayerChoice("dalr_anchored_affine", size=3), "2": ds.LayerChoice("svd_bc", size=2)}
    made = [ds.compress_sequentially(network(), batches(), choices, store=root) for root in (in_memory, tmp_path)]
    again = ds.compress_sequentially(network(), batches(), choices, store=in_memory)
    states = [one.network.state_dict() for one in (*made, again)]
    assert all(np.array_equal(state[name], states[0][name]) for state in states for name in states[0])


@pytest.mark.parametrize("at", ["../../../../other.zarr", "..", "", 7, "at-1"])
def test_a_record_that_names_another_place_is_damage_and_nothing_there_is_touched(in_memory, at):
    job(in_memory)
    root = place_of(in_memory)
    other = root.parent / "other.zarr" / "mean" / "zarr.json"
    other.write_bytes(b"of another")
    path = root / "moments/target/0/training"
    document = read_metadata(path)
    write_metadata(path, {**document, "attributes": {**document["attributes"], "at": at}})
    assert any("cannot lie at" in str(finding) for finding in ds.open_store(in_memory).verify().findings)
    accumulate(in_memory, shards=2)
    assert other.read_bytes() == b"of another"
    assert not ds.open_store(in_memory).verify().findings
