"""Records come back bit for bit, are replaced whole, and are known when spoilt."""

import numpy as np
import pytest
import zarr
from stores import Killed, flipped, unsynced

from dalr_stream.errors import StoreDamagedError, StoreNotFoundError
from dalr_stream.numerics.diagnostics import Diagnostics
from dalr_stream.numerics.lowrank.factors import LowRankFactors
from dalr_stream.numerics.lowrank.solvers import dalr
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.selection.nodes import ChannelSelection
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.storage import schema
from dalr_stream.storage.arrays import write_array
from dalr_stream.storage.records.catalogue import check_record, records
from dalr_stream.storage.records.moments import load_moments, moments_path, save_moments
from dalr_stream.storage.records.record import provenance_of
from dalr_stream.storage.records.solutions import load_solution, save_solution, solution_path
from dalr_stream.storage.records.weights import load_layer_weights, save_layer_weights, weights_path

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(50, 6))
DIAGNOSTICS = Diagnostics(50, 25, 6, None, 0.1, "eigh", ("a note",))


@pytest.fixture(autouse=True, scope="module")
def _unsynced():
    with unsynced():
        yield


def selection(factor):
    order = np.array([3, 0, 5, 1, 4, 2])
    dead = np.array([2], np.int64) if factor is not None else np.array([], np.int64)
    return ChannelSelection(
        Method.SPECTRAL if factor is not None else Method.PRUNE_MEAN,
        order,
        factor,
        np.linspace(0.2, 1.0, 6),
        ROWS.mean(axis=0),
        dead,
        DIAGNOSTICS,
    )


@pytest.mark.parametrize(
    "moments",
    [
        Moments.of(ROWS, samples=25),
        Moments.of(ROWS) - Moments.of(ROWS[:20]),
        Moments.empty(6),
        Moments.of(ROWS[:1]),
        Moments.of(np.zeros((3, 1))),
    ],
    ids=["generic", "unknown extrema", "no rows", "one row", "one dead feature"],
)
def test_moments_come_back_bit_for_bit(tmp_path, moments):
    path = moments_path(tmp_path, "target", "fc6", "training")
    save_moments(path, moments, {"rows": "abc", "rule": {"lanes": 8}})
    back = load_moments(path)
    assert back.same_bits(moments)
    assert (back.mean.dtype, back.nonzero.dtype) == (np.float64, np.int64)
    assert provenance_of(path) == {"rows": "abc", "rule": {"lanes": 8}}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_weights_come_back_and_a_missing_bias_as_zeros(tmp_path, dtype, bias):
    weight, shift = RNG.normal(size=(4, 6)).astype(dtype), RNG.normal(size=4).astype(dtype)
    assert provenance_of(weights_path(tmp_path, "fc6")) is None
    save_layer_weights(tmp_path, "fc6", weight, shift if bias else None, {})
    assert provenance_of(weights_path(tmp_path, "fc6")) == {}
    found, found_bias = load_layer_weights(tmp_path, "fc6")
    assert np.array_equal(found, weight)
    assert np.array_equal(found_bias, shift if bias else np.zeros(4))
    assert found.dtype == found_bias.dtype == dtype


def test_low_rank_factors_come_back_with_the_stores_weight(tmp_path):
    weight = RNG.normal(size=(4, 6)).astype(np.float32)
    basis, down, center = np.linalg.qr(RNG.normal(size=(4, 4)))[0], RNG.normal(size=(4, 6)), RNG.normal(size=6)
    factors = LowRankFactors(
        Method.DALR_ANCHORED_AFFINE, weight.astype(float), basis, down, center, np.ones(4), np.arange(5.0), DIAGNOSTICS
    )
    save_layer_weights(tmp_path, "fc6", weight, None, {})
    save_solution(tmp_path, "fc6", factors, {})
    back = load_solution(tmp_path, "fc6", Method.DALR_ANCHORED_AFFINE)
    assert isinstance(back, LowRankFactors)
    assert (back.method, back.diagnostics) == (factors.method, DIAGNOSTICS)
    for name in ("weight", "basis", "down", "center", "offset", "objective"):
        assert np.array_equal(getattr(back, name), getattr(factors, name))


def test_the_first_ranks_alone_come_back_bit_for_bit_and_slice(tmp_path):
    weight = RNG.normal(size=(5, 7))
    solved = dalr(weight, None, Moments.of(RNG.normal(size=(40, 7))), variant="optimal", max_rank=3)
    save_layer_weights(tmp_path, "fc6", weight, None, {})
    save_solution(tmp_path, "fc6", solved, {})
    back = load_solution(tmp_path, "fc6", solved.method)
    assert isinstance(back, LowRankFactors)
    assert (back.max_rank, back.diagnostics) == (3, solved.diagnostics)
    for k in (1, 2):
        one, two = solved.at_rank(k), back.at_rank(k)
        assert all(np.array_equal(getattr(one, name), getattr(two, name)) for name in ("up", "down", "bias"))


@pytest.mark.parametrize("factor", [None, RNG.normal(size=(6, 4)), np.zeros((6, 0))], ids=["none", "4", "rank 0"])
def test_selections_come_back_with_and_without_a_factor(tmp_path, factor):
    saved = selection(factor)
    save_solution(tmp_path, "fc6", saved, {})
    back = load_solution(tmp_path, "fc6", saved.method)
    assert isinstance(back, ChannelSelection)
    assert back.diagnostics == DIAGNOSTICS
    for name in ("order", "retention", "center", "not_live"):
        assert np.array_equal(getattr(back, name), getattr(saved, name))
        assert getattr(back, name).dtype == getattr(saved, name).dtype
    assert (back.factor is None) == (factor is None)
    assert factor is None or np.array_equal(back.factor, factor)


def test_arrays_are_declared_named_and_explained(tmp_path):
    save_moments(tmp_path / "m", Moments.of(ROWS), {})
    group = zarr.open_group(tmp_path / "m", mode="r")
    for spec in schema.MOMENTS:
        assert group[spec.name].metadata.dimension_names == spec.dimensions
        assert group[spec.name].attrs["meaning"] == spec.meaning
        assert group[spec.name].dtype == spec.dtype
    assert {name for name, _ in group.arrays()} == {spec.name for spec in schema.MOMENTS}


def test_a_record_that_is_not_there_is_named_with_the_step_that_makes_it(tmp_path):
    with pytest.raises(StoreNotFoundError, match=r"no record at .*run the step that makes it"):
        load_moments(tmp_path / "m")
    assert provenance_of(tmp_path / "m") is None


# --- replaced -----------------------------------------------------------------------------------------------------


def test_a_record_that_could_not_be_written_is_the_old_one(tmp_path, monkeypatch):
    old = Moments.of(ROWS)
    save_moments(tmp_path / "m", old, {"made": "first"})
    write = write_array

    def dying(group, spec, values):
        if spec.name == "maximum":
            raise Killed
        write(group, spec, values)

    monkeypatch.setattr("dalr_stream.storage.records.record.write_array", dying)
    with pytest.raises(Killed):
        save_moments(tmp_path / "m", Moments.of(ROWS[:9]), {"made": "second"})
    assert load_moments(tmp_path / "m").same_bits(old)
    assert provenance_of(tmp_path / "m") == {"made": "first"}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_new_record_keeps_nothing_of_the_old_one(tmp_path):
    save_solution(tmp_path, "fc6", selection(np.zeros((6, 2))), {})
    path = solution_path(tmp_path, "fc6", Method.SPECTRAL)
    bare = selection(None)
    object.__setattr__(bare, "method", Method.SPECTRAL)
    save_solution(tmp_path, "fc6", bare, {})
    assert not (path / "factor").exists()
    assert load_solution(tmp_path, "fc6", Method.SPECTRAL).factor is None


def test_records_lists_whole_ones_only_and_each_can_be_checked(tmp_path):
    save_layer_weights(tmp_path, "fc6", np.ones((2, 6)), None, {})
    save_moments(moments_path(tmp_path, "target", "fc6", "training"), Moments.of(ROWS), {})
    save_solution(tmp_path, "fc6", selection(None), {})
    (tmp_path / "weights" / ".tmp-fc7-1").mkdir()
    (tmp_path / "weights" / ".tmp-fc7-1" / "zarr.json").write_text("{}")
    found = [str(path.relative_to(tmp_path)) for path in records(tmp_path)]
    assert found == ["moments/target/fc6/training", "solutions/fc6/prune_mean", "weights/fc6"]
    for path in records(tmp_path):
        check_record(tmp_path, path)
    flipped(tmp_path / "weights/fc6/weight/c/0/0", 12)
    with pytest.raises(StoreDamagedError, match="weights/fc6': array 'weight'"):
        check_record(tmp_path, tmp_path / "weights/fc6")


# --- damage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def record(tmp_path):
    save_moments(tmp_path / "m", Moments.of(ROWS), {"made": "here"})
    return tmp_path / "m"


def read_with_flips(path, read, step):
    """Flip one bit at a time and read: messages of the damage found, and how many flips there were."""
    whole, messages, flips = path.read_bytes(), [], range(0, len(path.read_bytes()), step)
    for position in flips:
        flipped(path, position, bit=position // step % 7)
        try:
            read()  # asserts that what was read is right: zstd frames have a bit that means nothing
        except StoreDamagedError as error:
            messages.append(str(error))
        path.write_bytes(whole)
    return messages, len(flips)


@pytest.mark.parametrize("name", [spec.name for spec in schema.MOMENTS])
def test_a_flipped_bit_in_an_arrays_chunk_is_found_and_the_array_named(record, name):
    def read():
        assert load_moments(record).same_bits(Moments.of(ROWS))

    (chunk,) = [path for path in (record / name / "c").rglob("*") if path.is_file()]
    messages, flips = read_with_flips(chunk, read, step=3)
    assert all(f"m': array '{name}' " in message for message in messages)
    assert flips - 1 <= len(messages) <= flips


@pytest.mark.parametrize("name", ["mean", "nonzero"])
def test_a_lost_chunk_of_a_record_is_loud(record, name):
    next(path for path in (record / name / "c").rglob("*") if path.is_file()).unlink()
    with pytest.raises(StoreDamagedError, match=f"array '{name}'"):
        load_moments(record)


def test_a_lost_array_of_a_record_is_loud(record):
    (record / "max_abs" / "zarr.json").unlink()
    with pytest.raises(StoreDamagedError, match="array 'max_abs'"):
        load_moments(record)


@pytest.mark.filterwarnings("default")  # zarr warns of some spoilt metadata before it fails
@pytest.mark.parametrize("file", ["zarr.json", "scatter/zarr.json"])
def test_a_flipped_bit_in_the_metadata_is_found_or_harmless(record, file):
    def read():
        assert load_moments(record).same_bits(Moments.of(ROWS))
        assert provenance_of(record) == {"made": "here"}

    messages, flips = read_with_flips(record / file, read, step=2)
    assert all(str(record) in message for message in messages)
    assert len(messages) > flips // 5


def test_attributes_changed_by_hand_are_found(record):
    zarr.open_group(record, mode="r+").attrs["count"] = 51
    with pytest.raises(StoreDamagedError, match="its metadata do not match their digest"):
        load_moments(record)
