"""Passes over a block that an earlier run began stay as they were, whatever fits by then."""

import pytest
from block_networks import Tower, batches, made, same_files
from notes import Notes
from stopping import StopAfter, StoppedError

import dalr_stream as ds
from dalr_stream.engine.estimate import BatchMemory, load_of
from dalr_stream.engine.fold_passes import direct_plan

LAYERS = ["blocks.0.*", "blocks.2.*", "blocks.3.up"]


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


def accumulate(model, store, folding=None, gradients=(), **options):
    layers, rows = ds.watch(model, LAYERS, gradients=gradients), ds.RowRule(gradients=ds.GradientRule(draws=1))
    return ds.accumulate(model, batches(), layers, store=store, rows=rows, folding=folding, **options)


def limited(model):
    """Two passes over a block with all its layers."""
    apart = ds.watch(model, ["re:blocks.0.(q|o|up|down)"])
    needed = direct_plan([load_of(layer, 0, BatchMemory()) for layer in apart], ds.Folding()).peak_bytes
    return ds.Folding(memory_limit_bytes=needed - 1)


@pytest.mark.parametrize("stop", [3, 8, 13, 18, 23, 28])
@pytest.mark.parametrize("then", ["more fits", "less fits"])
def test_stopped_under_one_limit_it_goes_on_under_another(stop, then, tmp_path):
    model = made(Tower)
    accumulate(model, tmp_path / "whole")
    first, second = (limited(model), ds.Folding()) if then == "more fits" else (ds.Folding(), limited(model))
    passes = 2 + 1 + 2 + 1 if then == "more fits" else 4
    if stop > 5 * passes:
        pytest.skip("it ended before that")
    with pytest.raises(StoppedError):
        accumulate(model, tmp_path / "store", first, blocks=True, progress=StopAfter(stop))
    notes = Notes()
    accumulate(model, tmp_path / "store", second, blocks=True, progress=notes)
    assert same_files(tmp_path / "whole", tmp_path / "store") == []
    begun = -(-stop // 5) - 1
    assert len(notes.started) <= 6 - begun  # none that was done is made again


@pytest.mark.parametrize("stop", [8, 22, 33])
def test_with_gradients_too(stop, tmp_path):
    model, followed = made(Tower), ["blocks.2.up"]
    accumulate(model, tmp_path / "whole", gradients=followed)
    with pytest.raises(StoppedError):
        accumulate(model, tmp_path / "store", limited(model), followed, blocks=True, progress=StopAfter(stop))
    accumulate(model, tmp_path / "store", gradients=followed, blocks=True)
    assert same_files(tmp_path / "whole", tmp_path / "store") == []
