"""A direct run in several passes, under a memory limit: all of them see the same batches, or it is refused."""

import dataclasses
import shutil

import pytest
import torch
from notes import Notes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_into, accumulate_stream
from dalr_stream.engine.estimate import BatchMemory, estimate, load_of
from dalr_stream.engine.fold_passes import direct_plan
from dalr_stream.errors import FingerprintMismatchError, InvalidInputError, LayerNotFoundError
from dalr_stream.network.capture import hooks
from dalr_stream.streaming.lanes import Pace

FREE = ds.Folding(ds.HoldoutRule(0.2, seed=3), ds.Threads(1))


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


@pytest.fixture
def layers(net):
    return ds.network.select_layers(net, ["0", "2"])


@pytest.fixture
def limited(net, layers):
    """As much as one layer takes, and not two."""
    one, two = (
        estimate(net, {"t": data(0)}, watched, FREE, direct=True).peak_bytes for watched in (layers[:1], layers)
    )
    return dataclasses.replace(FREE, memory_limit_bytes=(one + two) // 2)


@pytest.fixture
def limited_blindly(layers):
    """The same where the number of batches is not known, so that rows may fill every lane."""
    loads = [load_of(layer, 0, BatchMemory()) for layer in layers]
    one, two = (direct_plan(some, FREE).peak_bytes for some in (loads[:1], loads))
    return dataclasses.replace(FREE, memory_limit_bytes=(one + two) // 2)


def data(seed):
    return list(torch.randn(50, 6, generator=torch.Generator().manual_seed(seed)).split(10))


def folds(net, layers, folding, store):
    """Both ways to fold directly."""
    yield lambda batches: accumulate_stream(net, batches, layers, folding=folding)
    yield lambda batches: accumulate_into(store, net, batches, layers, domain="t", folding=folding)


def test_several_passes_give_the_bits_of_one(net, layers, limited, tmp_path):
    expected = accumulate_stream(net, data(1), layers, folding=FREE)
    for fold in folds(net, layers, limited, tmp_path):
        found = fold(data(1))
        assert all(found[name].same_bits(expected[name]) for name in ("0", "2"))


def test_batches_are_hashed_where_another_pass_or_run_may_have_to_see_the_same(
    net, layers, limited, tmp_path, monkeypatch
):
    hashed = []
    monkeypatch.setattr(hooks, "_digest", lambda *_: hashed.append("") or "0" * 64)
    for folding, store, times in ((FREE, None, 0), (limited, None, 10), (FREE, tmp_path, 5)):
        hashed.clear()
        ds.accumulate(net, data(1), layers, folding=folding, **({} if store is None else {"store": store}))
        assert len(hashed) == times


def test_a_layer_that_has_no_moments_is_named_with_those_that_have(net, layers, tmp_path):
    for fold in folds(net, layers, FREE, tmp_path):
        found = fold(data(1))
        with pytest.raises(LayerNotFoundError, match=r"^there are no moments of layer 'fc': of 0, 2 only$"):
            found["fc"]
        with pytest.raises(KeyError):
            found["fc"]
        assert "fc" not in found
        assert found.get("fc") is None


def test_what_can_be_gone_through_once_is_refused_for_several_passes_and_whole_in_one(
    net, layers, limited_blindly, tmp_path
):
    for fold in folds(net, layers, limited_blindly, tmp_path):
        with pytest.raises(InvalidInputError, match="several passes go through them, a generator allows one"):
            fold(batch for batch in data(1))
    for fold in folds(net, layers, FREE, tmp_path):
        found = fold(batch for batch in data(1))
        assert found.training["0"].count + found.heldout["0"].count == 50


def test_a_loader_that_shuffles_is_refused(net, layers, limited, tmp_path):
    torch.manual_seed(4)
    loader = DataLoader(TensorDataset(torch.cat(data(1))), batch_size=10, shuffle=True)
    for fold in folds(net, layers, limited, tmp_path):
        with pytest.raises(FingerprintMismatchError, match=r"other batches than the first \(from batch 0 on\)"):
            fold(loader)


class Passes:
    """Another list of batches for every pass, the first of them given to whoever looks at one batch."""

    def __init__(self, *passes):
        self._left = [passes[0], *passes]

    def __len__(self):
        return len(data(1))

    def __iter__(self):
        return iter(self._left.pop(0))


def test_where_few_rows_are_known_to_come_more_layers_share_a_pass(net, layers, limited_blindly):
    class Counted(list):
        passes = 0

        def __iter__(self):
            self.passes += 1
            return super().__iter__()

    class Unsized:
        def __init__(self, batches):
            self.batches = batches

        def __iter__(self):
            return iter(self.batches)

    sized, unsized = Counted(data(1)), Counted(data(1))
    one = accumulate_stream(net, sized, layers, folding=limited_blindly)
    other = accumulate_stream(net, Unsized(unsized), layers, folding=limited_blindly)
    assert unsized.passes == sized.passes + 1
    assert all(one[name].same_bits(other[name]) for name in ("0", "2"))


@pytest.mark.parametrize("second", [data(1)[:-1], [*data(1), data(2)[0]], [*data(1)[:3], *data(2)[3:]]])
def test_a_pass_that_ends_or_differs_anywhere_is_refused(net, layers, limited, tmp_path, second):
    for fold in folds(net, layers, limited, tmp_path):
        with pytest.raises(FingerprintMismatchError, match="other batches than the first"):
            fold(Passes(data(1), second))


class Stopped(Exception):  # noqa: N818  # no error
    """The user stopped it."""


def stopping():
    yield from data(1)[:2]
    raise Stopped


def test_a_run_stopped_in_its_second_pass_goes_on_with_the_same_data_alone(net, layers, limited, tmp_path):
    def fold(batches):
        return accumulate_into(tmp_path, net, batches, layers, domain="t", folding=limited)

    with pytest.raises(Stopped):
        fold(Passes(data(1), stopping()))
    with pytest.raises(FingerprintMismatchError, match="where the data changed since the run was stopped, restore"):
        fold(data(2))
    expected = accumulate_stream(net, data(1), layers, folding=FREE)
    found = fold(data(1))
    assert all(found[name].same_bits(expected[name]) for name in ("0", "2"))


@pytest.mark.parametrize("then", ["limited", "free"])
def test_passes_that_were_begun_stay_as_they_were_also_where_more_fits_now(net, layers, limited, tmp_path, then):
    often = dataclasses.replace(limited, pace=lambda: Pace(every_tiles=1))
    notes = Notes()
    with pytest.raises(Stopped):
        accumulate_into(tmp_path, net, Passes(data(1), stopping()), layers, domain="t", folding=often)
    folding = often if then == "limited" else dataclasses.replace(often, memory_limit_bytes=None)
    expected = accumulate_stream(net, data(1), layers, folding=FREE)
    found = accumulate_into(tmp_path, net, data(1), layers, domain="t", folding=folding, progress=notes)
    assert all(found[name].same_bits(expected[name]) for name in ("0", "2"))
    assert "domain 't': resuming after 2 folded batches" in notes.said


def test_a_second_pass_is_not_gone_on_with_where_the_first_began_anew_on_other_data(net, layers, limited, tmp_path):
    often = dataclasses.replace(limited, pace=lambda: Pace(every_tiles=1))
    with pytest.raises(Stopped):
        accumulate_into(tmp_path, net, Passes(data(1), stopping()), layers, domain="t", folding=often)
    unfinished = tmp_path / "unfinished" / "t"
    assert (unfinished / "@direct-1" / "index").is_dir()
    shutil.rmtree(unfinished / "@direct-0")
    with pytest.raises(FingerprintMismatchError, match="delete the store's folder 'unfinished' to start over"):
        accumulate_into(tmp_path, net, Passes(data(2), data(2)), layers, domain="t", folding=often)
