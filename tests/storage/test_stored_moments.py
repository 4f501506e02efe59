"""Wide moments stay on disk: the same bits as from memory, by products; damage and replacement are found."""

import shutil

import numpy as np
import pytest

from dalr_stream.errors import FingerprintMismatchError, StoreDamagedError, StoreNotFoundError
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.statistics.products import ByRows
from dalr_stream.storage.records.moments import features_of_moments, load_moments, save_moments
from dalr_stream.storage.records.record import REMEDY
from dalr_stream.storage.records.stored_moments import StoredMoments, open_moments

WIDTH = 2100  # more than one chunk
ROWS = np.random.default_rng(0).normal(size=(50, WIDTH)) + 2.0


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    path = tmp_path_factory.mktemp("moments") / "target" / "fc" / "training"
    path.parent.mkdir(parents=True)
    save_moments(path, Moments.of(ROWS), {})
    return path


def test_the_matrix_is_read_when_it_is_asked_for_and_gives_the_same_bits(record):
    opened, loaded = open_moments(record), load_moments(record)
    left = np.random.default_rng(1).normal(size=(3, WIDTH))
    zero = np.zeros(WIDTH)
    assert isinstance(opened, StoredMoments)
    for centre in (zero, loaded.mean):
        assert np.array_equal(opened.products.times(left, centre), loaded.products.times(left, centre))
        assert np.array_equal(opened.products.congruence(left, centre), loaded.products.congruence(left, centre))
        assert np.array_equal(opened.products.diagonal(centre), loaded.products.diagonal(centre))
    with pytest.raises(AttributeError):
        object.__getattribute__(opened, "scatter")  # nothing so far needed it whole
    assert opened.same_bits(loaded)
    assert opened.scatter is opened.scatter


def test_a_matrix_of_one_chunk_is_read_at_once(tmp_path):
    path = tmp_path / "target" / "fc" / "training"
    path.parent.mkdir(parents=True)
    save_moments(path, Moments.of(ROWS[:, :9]), {})
    assert not isinstance(open_moments(path), StoredMoments)
    save_moments(path, Moments.empty(WIDTH), {})
    assert open_moments(path).count == 0


def test_few_rows_stand_in_for_the_matrix_and_many_do_not(record):
    few = open_moments(record, lambda: [ROWS[:20], ROWS[20:]])
    assert isinstance(few.products, ByRows)
    left = np.random.default_rng(1).normal(size=(3, WIDTH))
    by_matrix = load_moments(record).products.congruence(left, few.mean)
    np.testing.assert_allclose(few.products.congruence(left, few.mean), by_matrix, rtol=1e-9)


def test_damage_and_replacement_are_told_apart(record, tmp_path):
    path = tmp_path / "target" / "fc" / "training"
    path.parent.mkdir(parents=True)
    save_moments(path, Moments.of(ROWS), {})
    opened, left = open_moments(path), np.ones((1, WIDTH))
    save_moments(path, Moments.of(2.0 * ROWS), {})
    with pytest.raises(FingerprintMismatchError, match="was replaced since it was opened"):
        opened.products.times(left, opened.mean)
    opened = open_moments(path)
    chunk = path / "scatter" / "c" / "1" / "0"
    chunk.write_bytes((record / "scatter" / "c" / "1" / "0").read_bytes())
    with pytest.raises(StoreDamagedError, match="'scatter' does not match its digest"):
        opened.products.times(left, opened.mean)
    chunk.write_bytes(b"nothing")
    with pytest.raises(StoreDamagedError, match="'scatter' is damaged"):
        _ = opened.scatter


def product_of(path):
    opened = open_moments(path)
    return opened.products.times(np.ones((1, WIDTH)), opened.mean)


@pytest.fixture
def copied(record, tmp_path):
    return shutil.copytree(record, tmp_path / "target" / "fc" / "training")


@pytest.mark.parametrize("kind", ["deleted", "cut", "flipped"])
@pytest.mark.parametrize("name", ["zarr.json", "mean/zarr.json", "mean/c/0", "scatter/zarr.json", "scatter/c/1/0"])
def test_damage_names_the_record_and_what_to_do(copied, name, kind):
    path = copied / name
    data = path.read_bytes()
    path.unlink()
    if kind != "deleted":
        half = len(data) // 2
        path.write_bytes(data[:half] if kind == "cut" else data[:half] + bytes([data[half] ^ 4]) + data[half + 1 :])
    with pytest.raises(StoreDamagedError) as error:
        product_of(copied)
    assert str(error.value).startswith(f"'{copied}")
    assert str(error.value).endswith(REMEDY)
    shutil.rmtree(copied)
    with pytest.raises(StoreNotFoundError, match="run the step that makes it"):
        features_of_moments(copied)


def test_a_record_that_goes_or_gives_way_between_two_reads_is_no_damage(copied):
    opened = open_moments(copied)
    save_moments(copied, Moments.of(ROWS[:, :9]), {})
    with pytest.raises(FingerprintMismatchError, match="was replaced since it was opened"):
        opened.products.times(np.ones((1, WIDTH)), opened.mean)
    shutil.rmtree(copied)
    with pytest.raises(StoreNotFoundError, match="run the step that makes it"):
        _ = opened.scatter
