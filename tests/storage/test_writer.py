"""Rows to disk and back: nothing lost, nothing doubled, nothing taken for something else."""

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import (
    WIDTHS,
    Killed,
    assert_holds,
    batches_of,
    capture,
    files_of,
    network,
    rows_for,
)

from dalr_stream.errors import (
    InvalidInputError,
    StoreError,
    StoreNotFoundError,
)
from dalr_stream.storage.manifest import Manifest
from dalr_stream.storage.removal import delete_activations, forget_domain, forget_moments
from dalr_stream.storage.store import ActivationStore
from dalr_stream.storage.writer import open_writer

pytestmark = pytest.mark.usefixtures("quick_stores")


sizes = st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any)


@settings(max_examples=8)
@given(sizes, st.integers(1, 120), st.sampled_from([1, 3]), st.sampled_from([np.float32, np.float64]))
def test_what_was_written_is_read_back_and_the_batches_leave_no_trace(scratch, sizes, samples, per_sample, dtype):
    rows = rows_for(samples, per_sample, dtype=dtype)
    one, whole = scratch(), scratch()
    capture(one, batches_of(rows, sizes, per_sample))
    capture(whole, batches_of(rows, [samples], per_sample))
    assert_holds(one, rows)
    files, twin = files_of(one), files_of(whole)
    del files["manifest.json"], twin["manifest.json"]  # which knows the batches
    assert files == twin
    record, other = ActivationStore(one).domain("target"), ActivationStore(whole).domain("target")
    assert record.layers == other.layers
    assert record.complete
    assert record.samples == record.committed_samples == samples


def test_a_tile_of_full_size_is_one_chunk(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dalr_stream.numerics.rows.tiling.MIN_TILE_ROWS", 256)
        patch.setattr("dalr_stream.numerics.rows.tiling.MAX_TILE_ROWS", 4096)
        patch.setattr("dalr_stream.numerics.rows.tiling.MAX_TILE_BYTES", 32 * 2**20)
        rows = rows_for(9000, layers=["fc6"])
        capture(tmp_path, batches_of(rows, [700]), net=network(layers=["fc6"]))
        assert_holds(tmp_path, rows)
        array = zarr.open_array(tmp_path / "activations" / "target" / "fc6", mode="r")
    assert array.chunks == (4096, 3)
    assert sorted(path.name for path in (tmp_path / "activations/target/fc6/c").iterdir()) == ["0", "1", "2"]
    assert np.array_equal(array[...], rows["fc6"])


def test_xarray_opens_a_domain_by_names(tmp_path):
    rows = rows_for(50)
    capture(tmp_path, batches_of(rows, [16]))
    with xarray.open_zarr(tmp_path / "activations" / "target", consolidated=False) as data:
        assert set(data) == set(WIDTHS)
        assert data["fc6"].dims == ("fc6.row", "fc6.feature")
        assert np.array_equal(data["classifier.0"].values, rows["classifier.0"])


def test_no_file_of_a_store_needs_pickle(tmp_path):
    capture(tmp_path, batches_of(rows_for(50), [16]))
    kinds = {array.dtype.kind for _, array in zarr.open_group(tmp_path / "activations/target", mode="r").arrays()}
    assert kinds == {"f"}
    assert not any(b"pickle" in data for data in files_of(tmp_path).values())


def test_two_domains_live_side_by_side(tmp_path):
    target, source = rows_for(40), rows_for(60, seed=1)
    capture(tmp_path, batches_of(target, [7]))
    capture(tmp_path, batches_of(source, [9]), domain="source")
    assert_holds(tmp_path, target)
    assert_holds(tmp_path, source, "source")


def test_a_second_domain_may_watch_other_layers(tmp_path):
    capture(tmp_path, batches_of(rows_for(40, layers=["fc6"]), [7]), net=network(layers=["fc6"]))
    capture(tmp_path, batches_of(rows_for(40), [7]), domain="source")
    assert set(Manifest.read(tmp_path).network.layers) == set(WIDTHS)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "-"])
def test_a_domain_that_is_no_plain_name_is_refused(tmp_path, name):
    with pytest.raises(InvalidInputError, match="domain: a name is letters"), open_writer(tmp_path, name, network()):
        pass


def test_what_is_not_there_is_named_with_what_is(tmp_path):
    with pytest.raises(StoreNotFoundError, match="is not a dalr_stream store"):
        ActivationStore(tmp_path)
    capture(tmp_path, batches_of(rows_for(10), [7]))
    store = ActivationStore(tmp_path)
    with pytest.raises(StoreNotFoundError, match="no domain 'birds': it has target"):
        store.domain("birds")
    with pytest.raises(StoreNotFoundError, match=r"no layer 'fc7' on 'target': it has fc6, classifier.0"):
        store.rows("target", "fc7")


def test_a_file_in_the_way_of_a_store_is_an_error_of_the_store(tmp_path):
    (tmp_path / "birds.zarr").write_text("no")
    with pytest.raises(StoreError, match="a file is in its way"):
        capture(tmp_path / "birds.zarr", [])


# --- deleted and forgotten --------------------------------------------------------------------------------------------


def test_deleted_activations_can_be_captured_again(full):
    before = files_of(full)
    delete_activations(full)
    assert "target" in Manifest.read(full).domains
    assert capture(full, batches_of(rows_for(100), [10])) == 0
    assert files_of(full) == before


def test_a_recapture_that_was_stopped_at_once_does_not_pass_for_the_old_complete_one(full):
    delete_activations(full)
    batches = list(batches_of(rows_for(100), [2]))
    with pytest.raises(Killed):
        capture(full, batches, stop_after=1)
    assert capture(full, batches) == 0
    assert_holds(full, rows_for(100))


def test_a_forgotten_domain_leaves_the_others(full):
    capture(full, batches_of(rows_for(20, seed=1), [10]), domain="source")
    forget_domain(full, "target")
    assert set(Manifest.read(full).domains) == {"source"}
    assert not (full / "activations/target").exists()
    assert_holds(full, rows_for(20, seed=1), "source")
    other = rows_for(30, seed=2)
    capture(full, batches_of(other, [4]))
    assert_holds(full, other)


@pytest.mark.parametrize("forget", [forget_domain, forget_moments])
@pytest.mark.parametrize("name", ["../victim", "..", ""])
def test_what_is_no_domain_is_not_removed(full, forget, name):
    victim = full / "victim"
    victim.mkdir()
    with pytest.raises(InvalidInputError, match=r"domain '.*': is the name of a folder in a store"):
        forget(full, name)
    assert victim.is_dir()
    assert_holds(full, rows_for(100))


def test_forgetting_where_there_is_no_store_makes_none(tmp_path):
    forget_domain(tmp_path / "nothing", "target")
    assert list(tmp_path.iterdir()) == []
