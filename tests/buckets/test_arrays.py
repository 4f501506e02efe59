"""Arrays in a bucket, against zarr's own; and stores that are copied from one kind of place to the other."""

import shutil
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from stores_in_buckets import accumulate, capture, contents, job, network

import dalr_stream as ds
from dalr_stream.numerics.statistics.fold_rule import Strip
from dalr_stream.numerics.statistics.folding import LaneState
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.storage.arrays import create_array, open_array
from dalr_stream.storage.places.place import place_of
from dalr_stream.storage.records.moments import load_moments, save_moments
from dalr_stream.storage.store import ActivationStore
from dalr_stream.storage.strips import load_strip, save_strips


@st.composite
def changes(draw):
    """A shape, and parts of it to write and to read, each a range of rows and one of columns."""
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 5)))
    ranges = [st.tuples(st.integers(0, length), st.integers(0, length)).map(sorted) for length in shape]
    parts = st.tuples(*ranges).map(lambda pair: tuple(slice(*one) for one in pair))
    return shape, draw(st.integers(1, 5)), draw(st.lists(parts, max_size=6)), draw(parts)


@given(changes(), st.sampled_from([np.float64, np.float32, np.int64]))
def test_parts_are_read_and_written_as_zarr_does(tmp_path_factory, case, dtype):
    shape, chunk_rows, writes, part = case
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("arrays") / "array"
    places = [folder, place_of(f"memory://arrays/{folder.parent.name}/array")]
    arrays = [
        create_array(place, shape, np.dtype(dtype), dimensions=("row", "column"), chunk_rows=chunk_rows)
        for place in places
    ]
    for where in writes:
        values = rng.integers(0, 99, size=[one.stop - one.start for one in where]).astype(dtype)
        for array in arrays:
            array[where] = values
    opened = [open_array(place) for place in places]
    for which in (..., part, part[0]):
        one, other = (np.asarray(array[which]) for array in opened)
        assert np.array_equal(one, other, equal_nan=dtype is not np.int64)
    assert opened[0].chunks == opened[1].chunks
    shutil.rmtree(folder.parent)


@pytest.mark.parametrize("length", [1, 7, 8])
def test_one_dimension_too(in_memory, length):
    array = create_array(place_of(in_memory) / "a", (length,), np.dtype(np.int64), dimensions=("row",), chunk_rows=3)
    array[1:length] = np.arange(1, length)
    assert list(array[...]) == [-1, *range(1, length)]


def test_chunks_have_the_bytes_that_zarr_gives_them(in_memory, tmp_path):
    capture(in_memory)
    capture(tmp_path)
    for path in (tmp_path / "activations").rglob("c/*/0"):
        assert (place_of(in_memory) / path.relative_to(tmp_path)).read_bytes() == path.read_bytes()


def test_rows_whose_samples_vary_come_back(in_memory, tmp_path):
    """A mask leaves each sample another number of rows, and each row its sample."""
    model, layers = network(), ds.network.select_layers(network(), ["*"])
    tokens = [torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    rule = ds.RowRule(mask=lambda batch: batch[:, :, 0] > 0)
    for root in (in_memory, tmp_path):
        ds.capture(model, tokens, layers, root, domain="target", rows=rule)
        accumulate(root)
    assert ActivationStore(in_memory).rows("target", "0").rows_per_sample == 0
    assert contents(in_memory) == contents(tmp_path)


def test_moments_are_written_and_read_strip_by_strip(in_memory):
    rows = np.random.default_rng(0).normal(size=(50, 9))
    root, whole = place_of(in_memory), Moments.of(rows)
    save_moments(root / "whole", whole, {})
    cut = [Strip(first, min(first + 4, 9)) for first in range(0, 9, 4)]
    sums = (LaneState(load_strip(root / "whole", strip), None) for strip in cut)
    save_strips({"training": root / "moments/strips/training"}, 9, sums, {})
    assert load_moments(root / "moments/strips/training").same_bits(load_moments(root / "whole"))


def test_a_store_is_copied_to_a_folder_and_back_by_any_tool(in_memory, tmp_path):
    job(in_memory)
    copied, back = tmp_path / "copied.zarr", in_memory.replace("store.zarr", "back.zarr")
    copy_to_folder(place_of(in_memory), copied)
    assert contents(copied) == contents(in_memory)
    accumulate(copied, shards=2)  # records are replaced by those of a folder
    capture(copied, domain="source", seed=2)
    copy_to_bucket(copied, place_of(back))
    assert contents(back) == contents(copied)
    accumulate(back, domain="source")
    job(back)
    assert not ds.open_store(back).verify().findings


def copy_to_folder(root, folder):
    for key in root.bucket.keys(root.key):
        path = folder / key.removeprefix(f"{root.key}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(root.bucket.read(key))


def copy_to_bucket(folder, root):
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            (root / path.relative_to(folder)).write_bytes(path.read_bytes())
