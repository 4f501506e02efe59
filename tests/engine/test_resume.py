"""An accumulation that was stopped goes on where it stopped, to the same bits; what it left behind is dropped."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from soaking import in_soak
from stopping import StopAfter, StoppedError
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_into, accumulate_stream
from dalr_stream.engine.estimate import estimate
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.errors import FingerprintMismatchError, MemoryLimitError
from dalr_stream.streaming.lanes import Pace

NARROW, WIDE, SAMPLES = 40, 2_100, 1_500
TWO_STRIPS = 140 * 2**20  # whole, the wide layer needs 163 MiB
EVERY_TILE = ds.Folding(ds.HoldoutRule(0.2), ds.Threads(1), pace=lambda: Pace(every_tiles=1))


def network(width):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(8, NARROW), nn.ReLU(), nn.Linear(NARROW, width), nn.ReLU(), nn.Linear(width, 3)
        ).eval()


def batches(size=100, change=None):
    inputs = torch.randn(SAMPLES, 8, generator=torch.Generator().manual_seed(1))
    if change is not None:
        inputs[change] += 1
    return list(inputs.split(size))


pytestmark = pytest.mark.usefixtures("low_tiles")


@pytest.fixture(scope="module")
def model():
    return network(WIDE)


@pytest.fixture(scope="module")
def layers(model):
    return layers_of(model)


@pytest.fixture(scope="module")
def expected(model, layers):
    return accumulate_stream(model, batches(), layers, folding=ds.Folding(ds.HoldoutRule(0.2), ds.Threads(1)))


@pytest.fixture(scope="module")
def small_model():
    return network(60)


@pytest.fixture(scope="module")
def small_expected(small_model):
    return accumulate_stream(small_model, batches(), layers_of(small_model), folding=EVERY_TILE)


def layers_of(model):
    return ds.network.select_layers(model, ["2", "4"])


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name in expected:
        assert found[name].same_bits(expected[name])
        assert found.heldout[name].same_bits(expected.heldout[name])


@pytest.fixture(scope="module")
def captured(tmp_path_factory, model, layers):
    root = tmp_path_factory.mktemp("captured") / "store"
    ds.capture(model, batches(), layers, root, domain="target")
    return root


@pytest.fixture
def store(tmp_path, captured):
    return shutil.copytree(captured, tmp_path / "store")


@pytest.mark.parametrize(
    ("reports", "memory_limit_bytes"), [(2, TWO_STRIPS), (5, None), *in_soak((2, None), (5, TWO_STRIPS))]
)
def test_an_accumulation_stopped_anywhere_ends_in_the_same_bits(store, expected, reports, memory_limit_bytes):
    """The wide layer has six tiles; under the limit they are folded in strips, a pass each."""
    folding = ds.Folding(ds.HoldoutRule(0.2), ds.Threads(1), memory_limit_bytes, lambda: Pace(every_tiles=1))
    with pytest.raises(StoppedError):
        accumulate_stored(store, domain="target", layers=["4"], folding=folding, progress=StopAfter(reports))
    assert list((store / "unfinished/target/4").iterdir())
    progress = StopAfter(0)
    found = accumulate_stored(store, domain="target", layers=["4"], folding=folding, progress=progress)
    assert progress.units[0] == (reports - 1) * 256  # what was folded before, told at once
    assert sum(progress.units) == SAMPLES * (1 if memory_limit_bytes is None else 2)
    assert found["4"].same_bits(expected["4"])
    assert found.heldout["4"].same_bits(expected.heldout["4"])
    assert not (store / "unfinished/target/4").exists()


def test_a_strip_that_is_done_is_not_folded_again(store, expected):
    folding = ds.Folding(ds.HoldoutRule(0.2), ds.Threads(1), TWO_STRIPS, lambda: Pace(every_tiles=10**9))
    with pytest.raises(StoppedError):
        accumulate_stored(store, domain="target", layers=["4"], folding=folding, progress=StopAfter(8))
    assert [path.name for path in (store / "unfinished/target/4").iterdir()] == ["lane-0-rows-0"]
    progress = StopAfter(0)
    found = accumulate_stored(store, domain="target", layers=["4"], folding=folding, progress=progress)
    assert len(progress.units) == 1 + 6
    assert found["4"].same_bits(expected["4"])


def test_a_checkpoint_of_another_rule_or_a_damaged_one_is_not_used(store, expected):
    with pytest.raises(StoppedError):
        accumulate_stored(store, domain="target", layers=["4"], folding=EVERY_TILE, progress=StopAfter(4))
    other = ds.Folding(ds.HoldoutRule(0.4), ds.Threads(1))
    assert accumulate_stored(store, domain="target", layers=["4"], folding=other)["4"].count < expected["4"].count
    with pytest.raises(StoppedError):
        accumulate_stored(store, domain="target", layers=["4"], folding=EVERY_TILE, progress=StopAfter(4))
    chunk = store / "unfinished/target/4/lane-0/training_vectors/c/0/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-4])
    assert accumulate_stored(store, domain="target", layers=["4"], folding=EVERY_TILE)["4"].same_bits(expected["4"])


def test_a_limit_that_not_even_strips_meet_is_refused_and_the_store_left_alone(store, contents):
    before = contents(store)
    with pytest.raises(MemoryLimitError, match=r"layer '4': folding 2,100 features needs .* the limit is 20 MiB"):
        accumulate_stored(store, domain="target", layers=["4"], folding=ds.Folding(memory_limit_bytes=20 * 2**20))
    assert contents(store) == before


# --- direct -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reports", [1, 9, *in_soak(4, 15)])
def test_a_direct_run_stopped_anywhere_ends_in_the_same_bits(tmp_path, small_model, small_expected, reports):
    arguments = (tmp_path, small_model, batches(), layers_of(small_model))
    with pytest.raises(StoppedError):
        accumulate_into(*arguments, domain="target", folding=EVERY_TILE, progress=StopAfter(reports))
    again = StopAfter(0)
    found = accumulate_into(*arguments, domain="target", folding=EVERY_TILE, progress=again)
    assert again.said[0] == f"domain 'target': resuming after {reports} folded batches"
    assert_same(found, small_expected)
    assert not (tmp_path / "unfinished/target/@direct-0").exists()


def test_groups_of_layers_in_passes_of_their_own_give_the_same_bits(tmp_path, small_model, small_expected):
    passes = []

    class Counted(list):
        def __iter__(self):
            passes.append(len(self))
            return super().__iter__()

    layers = layers_of(small_model)
    needed = estimate(small_model, {"target": batches()}, layers, EVERY_TILE, direct=True).peak_bytes
    data = Counted(batches())
    enough, tight = (dataclasses.replace(EVERY_TILE, memory_limit_bytes=needed - less) for less in (0, 1))
    assert_same(accumulate_stream(small_model, data, layers, folding=enough), small_expected)
    assert len(passes) == 1 + 1  # under a limit one batch is looked at first, for what it takes and what is shared
    assert_same(accumulate_stream(small_model, data, layers, folding=tight), small_expected)
    assert len(passes) == 2 + 3
    stop = StopAfter(20)
    with pytest.raises(StoppedError):
        accumulate_into(tmp_path, small_model, data, layers, domain="target", folding=tight, progress=stop)
    assert_same(accumulate_into(tmp_path, small_model, data, layers, domain="target", folding=tight), small_expected)
    assert len(passes) == 5 + 3 + 2  # the first group is done and not run again


@pytest.mark.parametrize("changed", [batches(50), batches(change=5), batches()[:2]])
def test_batches_that_changed_since_the_checkpoint_are_named(tmp_path, small_model, changed):
    stop = StopAfter(6)
    with pytest.raises(StoppedError):
        accumulate_into(
            tmp_path, small_model, batches(), layers_of(small_model), domain="target", folding=EVERY_TILE, progress=stop
        )
    with pytest.raises(FingerprintMismatchError, match=r"batch 0 is not the one|loader ended after 2"):
        accumulate_into(tmp_path, small_model, changed, layers_of(small_model), domain="target", folding=EVERY_TILE)


def test_moments_of_a_store_are_read_when_asked_for(store, expected):
    found = accumulate_stored(store, domain="target", folding=EVERY_TILE)
    assert_same(found, expected)
    assert found["2"] is not found["2"]
    assert np.array_equal(found["2"].mean, expected["2"].mean)


def test_a_checkpoint_waits_until_it_costs_little():
    now = [0.0]
    pace = Pace(clock=lambda: now[0])
    assert not pace.due()
    now[0] = 49.0
    assert not pace.due()
    now[0] = 50.0
    assert pace.due()
    now[0] = 53.0  # writing it took three seconds
    pace.paid(50.0)
    now[0] = 53.0 + 149.0
    assert not pace.due()
    now[0] = 53.0 + 150.0
    assert pace.due()
