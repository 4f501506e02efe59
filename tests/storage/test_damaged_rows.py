"""Damage to stored rows is found and named."""

import numpy as np
import pytest
from stores import (
    flipped,
    read_back,
)

from dalr_stream.errors import (
    StoreDamagedError,
    StoreNotFoundError,
)
from dalr_stream.storage.metadata import read_metadata, write_metadata
from dalr_stream.storage.removal import delete_activations
from dalr_stream.storage.store import ActivationStore

pytestmark = pytest.mark.usefixtures("quick_stores")


def chunk(root, layer="fc6", tile=1):
    return root / "activations" / "target" / layer / "c" / str(tile) / "0"


def test_a_flipped_bit_anywhere_in_a_tile_is_found_and_the_tile_named(full):
    whole = chunk(full).read_bytes()
    store = ActivationStore(full)
    for position in range(0, len(whole), 3):
        flipped(chunk(full), position, bit=position % 8)
        with pytest.raises(StoreDamagedError, match="tile 1 of layer 'fc6' on 'target' is damaged"):
            store.read_tile("target", "fc6", 1)
        chunk(full).write_bytes(whole)
    assert store.read_tile("target", "fc6", 1).rows.shape == (32, 3)


def test_bytes_put_in_place_of_a_tile_are_found_though_they_decode(full):
    """Another tile's chunk is a whole zstd frame with a valid checksum."""
    chunk(full).write_bytes(chunk(full, tile=0).read_bytes())
    with pytest.raises(StoreDamagedError, match=r"tile 1 of layer 'fc6' .* digest does not match"):
        read_back(full, "fc6")


def test_a_lost_chunk_is_loud(full):
    chunk(full).unlink()
    with pytest.raises(StoreDamagedError, match="tile 1 of layer 'fc6'"):
        read_back(full, "fc6")


@pytest.mark.filterwarnings("default")  # zarr warns of some spoilt metadata before it fails
def test_a_flipped_bit_in_an_arrays_metadata_is_found_or_harmless(full):
    path = full / "activations/target/fc6/zarr.json"
    whole, expected = path.read_bytes(), read_back(full, "fc6")
    found = 0
    for position in range(0, len(whole), 2):
        flipped(path, position, bit=position // 2 % 7)
        try:
            assert np.array_equal(read_back(full, "fc6"), expected)
        except StoreDamagedError as error:
            assert "of layer 'fc6' on 'target' is damaged" in str(error)  # noqa: PT017
            found += 1
        path.write_bytes(whole)
    assert found > len(whole) // 10


@pytest.mark.parametrize(
    "changed",
    [{"shape": [64, 4]}, {"shape": [8, 3]}, {"data_type": "float64"}, {"dimension_names": ["fc7.row", "fc7.feature"]}],
    ids=["features", "rows", "type", "layer"],
)
def test_the_metadata_of_another_array_are_found_though_they_are_whole(full, changed):
    folder = full / "activations/target/fc6"
    write_metadata(folder, {**read_metadata(folder), **changed})
    with pytest.raises(StoreDamagedError, match=r"tile 0 of layer 'fc6' .*its metadata are those of another"):
        read_back(full, "fc6")


def test_rows_deleted_by_hand_are_gone_not_damaged(full):
    delete_activations(full)
    with pytest.raises(StoreNotFoundError, match="activations were deleted; capture again"):
        read_back(full, "fc6")
