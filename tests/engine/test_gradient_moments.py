"""Moments of gradients are moments like any other: by either way, interrupted, merged, taken out, verified."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from stopping import StopAfter, StoppedError
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import NetworkRows
from dalr_stream.engine.stores.verify import verify_store
from dalr_stream.errors import DalrStreamError, FingerprintMismatchError, MemoryLimitError
from dalr_stream.streaming.lanes import Pace

SAMPLES, DRAWS = 900, 2
FOLDING = ds.Folding(ds.HoldoutRule(0.2), ds.Threads(1), shards=2)
OFTEN = dataclasses.replace(FOLDING, pace=lambda: Pace(every_tiles=1))
ROWS = ds.RowRule(gradients=ds.GradientRule(draws=DRAWS, seed=5, clip=3.0))

pytestmark = pytest.mark.usefixtures("low_tiles")


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 12), nn.ReLU(inplace=True), nn.Linear(12, 5)).eval()


def batches(size=100):
    return list(torch.randn(SAMPLES, 8, generator=torch.Generator().manual_seed(1)).split(size))


def watched(model):
    return ds.watch(model, ["0", "2"], gradients=["0", "2"])


def accumulated(model, root=None, some=None, **options):
    options = {"rows": ROWS, "folding": FOLDING, **options}
    return ds.accumulate(model, batches() if some is None else some, watched(model), store=root, **options)


@pytest.fixture(scope="module")
def expected(model):
    return accumulated(model)


def assert_same(found, expected):
    for layer in ("0", "2"):
        assert found[layer].gradients.same_bits(expected[layer].gradients)
        assert found[layer].inputs.same_bits(expected[layer].inputs)
        stream = f"{layer}@gradients"
        assert found.by_stream.heldout[stream].same_bits(expected.by_stream.heldout[stream])
        shards = zip(found.by_stream.shards[stream], expected.by_stream.shards[stream], strict=True)
        assert all(one.same_bits(other) for one, other in shards)


def test_a_layer_has_a_row_for_each_draw_of_each_sample(expected):
    assert list(expected) == ["0", "2"]
    for layer, features in (("0", 12), ("2", 5)):
        gradients, heldout = expected[layer].gradients, expected.by_stream.heldout[f"{layer}@gradients"]
        assert gradients.features == features
        assert gradients.samples == expected[layer].inputs.samples
        assert gradients.count == DRAWS * gradients.samples
        assert gradients.count + heldout.count == DRAWS * SAMPLES


def test_through_a_store_and_directly_they_are_the_same_bits(model, expected, tmp_path):
    ds.capture(model, batches(), watched(model), tmp_path / "rows", domain="target", rows=ROWS)
    assert_same(ds.accumulate(tmp_path / "rows", folding=FOLDING), expected)
    assert_same(accumulated(model, tmp_path / "direct"), expected)
    opened = ds.open_store(tmp_path / "direct").layer("0", target="target")
    assert opened.gradients.same_bits(expected["0"].gradients)
    for name in ("rows", "direct"):
        assert verify_store(tmp_path / name).findings == ()


@pytest.mark.parametrize("reports", [2, 7])
def test_stopped_anywhere_they_end_in_the_same_bits(model, expected, tmp_path, reports):
    with pytest.raises(StoppedError):
        accumulated(model, tmp_path / "direct", folding=OFTEN, progress=StopAfter(reports))
    assert_same(accumulated(model, tmp_path / "direct"), expected)
    arguments = (model, batches(), watched(model), tmp_path / "rows")
    with pytest.raises(StoppedError):
        ds.capture(*arguments, domain="target", rows=ROWS, progress=StopAfter(reports))
    ds.capture(*arguments, domain="target", rows=ROWS)
    assert_same(ds.accumulate(tmp_path / "rows", folding=FOLDING), expected)


def test_a_loader_that_begins_in_the_middle_draws_what_it_would_have(model, expected, tmp_path):
    class Resuming(list):
        def starting_at(self, batch):
            return self[batch:]

    with pytest.raises(StoppedError):
        accumulated(model, tmp_path, Resuming(batches()), folding=OFTEN, progress=StopAfter(5))
    assert_same(accumulated(model, tmp_path, Resuming(batches())), expected)


def test_batches_of_another_size_have_the_same_draws(model, expected):
    found = accumulated(model, some=batches(170))
    for layer in ("0", "2"):
        one, other = found[layer].gradients.second_moment, expected[layer].gradients.second_moment
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * np.abs(other).max())


def fits(feed, folding):
    try:
        feed.groups(folding)
    except MemoryLimitError:
        return False
    return True


def test_under_a_memory_limit_gradients_are_taken_in_passes_of_their_own(model, expected):
    feed = NetworkRows(model, batches(), watched(model), ROWS)
    limits = (dataclasses.replace(FOLDING, memory_limit_bytes=eighths * 2**17) for eighths in range(1, 100))
    limited = next(folding for folding in limits if fits(feed, folding))  # the least
    titles = StopAfter(0)
    found = accumulated(model, folding=limited, progress=titles)
    assert len(titles.titles) > 1
    assert_same(found, expected)


def test_parts_add_up_and_can_be_taken_out_again(model, tmp_path):
    parts = (batches()[:4], batches()[4:])
    alone = [accumulated(model, tmp_path / str(number), part) for number, part in enumerate(parts)]
    ds.merge([tmp_path / "0", tmp_path / "1"], tmp_path / "both")
    both, single = ds.open_store(tmp_path / "both").layer("2", target="target"), [part["2"].gradients for part in alone]
    assert both.gradients.count == sum(part.count for part in single)
    np.testing.assert_allclose(both.gradients.scatter, (single[0] + single[1]).scatter, rtol=1e-12)
    less = both.gradients - single[1]
    np.testing.assert_allclose(less.second_moment, single[0].second_moment, rtol=1e-9)
    assert verify_store(tmp_path / "both").findings == ()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"draws": 3}, "3 (random vectors|rows) a sample"),
        ({"seed": 6}, "2 random vectors a sample by seed 6"),
        ({"clip": None}, "by seed 5"),
        ({"metric": "values"}, "gradients of values"),
        ({"estimator": "sampled"}, "2 sampled labels a sample"),
    ],
)
def test_other_settings_are_neither_resumed_nor_merged(model, tmp_path, setting, words):
    other = ds.RowRule(gradients=dataclasses.replace(ROWS.gradients, **setting))
    first, second = tmp_path / "first", tmp_path / "second"
    accumulated(model, first, batches()[:2])
    accumulated(model, second, batches()[2:4], rows=other)
    with pytest.raises(FingerprintMismatchError, match=words):
        accumulated(model, first, batches()[:2], rows=other)
    with pytest.raises(DalrStreamError, match=words):
        ds.merge([first, second], tmp_path / "both")


def test_settings_of_gradients_mean_nothing_where_none_are_watched(model, tmp_path):
    layers = ds.watch(model, ["0"])
    ds.accumulate(model, batches(), layers, store=tmp_path, rows=ROWS)
    ds.accumulate(model, batches(), layers, store=tmp_path)
    with pytest.raises(DalrStreamError, match=r"layer '0': .* gradients are needed"):
        _ = ds.open_store(tmp_path).layer("0", target="target").known_gradients


def test_other_labels_are_other_batches(model, tmp_path):
    def labelled(first):
        return [(batch, torch.arange(first, first + len(batch)) % 5) for batch in batches()]

    rows = ds.RowRule(gradients=ds.GradientRule(estimator="labels"))
    ds.capture(model, labelled(0), watched(model), tmp_path, domain="target", rows=rows)
    with pytest.raises(FingerprintMismatchError, match="batch 0 is not the batch captured before"):
        ds.capture(model, labelled(1), watched(model), tmp_path, domain="target", rows=rows)


@pytest.mark.gpu
def test_on_a_cuda_device_they_have_the_same_draws(cuda, model, expected):
    """Layers round otherwise there: the draws are the same, and so are the moments to float32's rounding."""
    there = copy.deepcopy(model).to(cuda)
    found = accumulated(there, folding=dataclasses.replace(FOLDING, device=cuda.type))
    again = accumulated(there, folding=dataclasses.replace(FOLDING, device=cuda.type))
    for layer in ("0", "2"):
        one, other = found[layer].gradients, expected[layer].gradients
        assert (one.count, one.samples) == (other.count, other.samples)
        assert one.same_bits(again[layer].gradients)
        np.testing.assert_allclose(
            one.second_moment, other.second_moment, rtol=0, atol=1e-4 * np.abs(other.second_moment).max()
        )
        weighted = ds.dalr(found[layer], variant="weighted")
        assert weighted.losses(found[layer].inputs, one)[-1] < 1e-9
