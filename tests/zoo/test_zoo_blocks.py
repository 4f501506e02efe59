"""Architectures block by block: the moments of the whole network to the bit, or one line that says why not."""

import logging

import numpy as np
import pytest
from zoo import ARCHITECTURES

import dalr_stream as ds
from dalr_stream.network.capture.batches import samples_in
from dalr_stream.network.capture.proofs.disturbed import with_sample_replaced

QUICK = ("GPT-2", "Llama (GQA)", "T5", "ViT")
CASES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.soak, id=name) for name in ARCHITECTURES]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    logging.disable(logging.WARNING)  # transformers says which kernels it lacks
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", CASES)
def test_moments_are_those_of_the_whole_network(name, tmp_path):
    one = ARCHITECTURES[name]
    net = one.network()
    compare(name, net, ds.watch(net, ["*"]), [ds.RowRule(mask=one.mask)], tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_moments_of_gradients_are_those_of_the_whole_network(name, tmp_path):
    one = ARCHITECTURES[name]
    net = one.network()
    rules = [ds.GradientRule(draws=2), ds.GradientRule(metric="values", outputs="last_hidden_state")]
    rows = [ds.RowRule(mask=one.mask, gradients=rule) for rule in rules]
    compare(name, net, ds.watch(net, ["*"], gradients=["*"]), rows, tmp_path)


def compare(name, net, layers, several, tmp_path):
    """Compare the moments of the whole network, by the first rule that it takes, with those by blocks."""
    one = ARCHITECTURES[name]
    batches = [one.batch, with_sample_replaced(one.batch, samples_in(one.batch)).batch]
    whole, rows, reason = None, None, ""
    for rows in several:  # the first that goes through
        try:
            whole = ds.accumulate(net, batches, layers, rows=rows)
            break
        except ds.DalrStreamError as error:
            reason = reason or str(error)
    if whole is None:
        pytest.skip(f"nor whole: {reason}")
    refusal = ""
    try:
        blocks = ds.accumulate(net, batches, layers, store=tmp_path / "store", rows=rows, blocks=True)
    except ds.DalrStreamError as error:
        refusal = str(error)
    if refusal:
        assert name not in QUICK
        assert refusal.startswith(("blocks: ", "layer '"))
        assert "\n" not in refusal
        return
    assert list(whole.by_stream) == list(blocks.by_stream)
    for stream, moments in whole.by_stream.items():
        for part in ("count", "mean", "scatter", "max_abs", "nonzero"):
            assert np.array_equal(getattr(moments, part), getattr(blocks.by_stream[stream], part)), stream
