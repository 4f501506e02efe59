"""Towards the stream from kept moments, killed, begun again, on other threads: the same bits."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from notes import Notes
from stream_blocks import DALR, MIXED, compressed, data, made, plan_of, same

import dalr_stream as ds
from dalr_stream.engine.sequential.passes import sequential_passes
from dalr_stream.engine.sequential.targets import Target
from dalr_stream.engine.stores.verify import verify_store


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


def test_kept_or_not_onward_or_from_the_inputs_the_network_is_the_same(tmp_path, monkeypatch):
    model, x, notes = made(dtype=torch.float32), data(dtype=torch.float32), Notes()
    found = compressed(model, x, MIXED, folding=None, progress=notes)
    assert not [line for line in notes.said if "from its inputs" in line]
    assert same(compressed(model, x, MIXED, folding=None, store=tmp_path / "s"), found)
    assert all(verify_store(store).findings == () for store in (tmp_path / "s").iterdir())
    again = Notes()
    assert same(compressed(model, x, MIXED, folding=None, store=tmp_path / "s", progress=again), found)
    assert sum("kept from an earlier pass" in line for line in again.said) == len(MIXED)
    with monkeypatch.context() as patched:
        patched.setattr("dalr_stream.engine.sequential.pass_plan.KEPT_BYTES", 0)
        assert same(compressed(model, x, MIXED, folding=None), found)


def test_moments_of_either_target_lie_side_by_side_and_are_not_mistaken(tmp_path):
    model, x = made(dtype=torch.float32), data(dtype=torch.float32)
    plans = {target: compressed(model, x, plan_of(DALR), target=target) for target in Target}
    for target in (*Target, *Target):
        again = compressed(model, x, plan_of(DALR), target=target, store=tmp_path / "s")
        assert same(again, plans[target])


def test_begun_again_after_any_pass_it_ends_in_the_same_bits():
    model, x = made(dtype=torch.float32), data(dtype=torch.float32).split(50)
    choices = {name: ds.LayerChoice(*choice) for name, choice in MIXED.items()}
    states = list(sequential_passes(model, x, choices, target="stream"))
    for begun in states[:-1]:
        *_, last = sequential_passes(model, x, choices, target="stream", begun=begun)
        assert same(last, states[-1])


DEADLY = """
import os, signal, sys, torch
sys.path[:0] = sys.argv[1:3]
import dalr_stream as ds
from stream_blocks import MIXED, data, made

class Deadly:
    def __init__(self, left):
        self.left = left

    def __iter__(self):
        for batch in data(dtype=torch.float32).split(50):
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            yield batch

choices = {name: ds.LayerChoice(*choice, ridge=1e-2, restore_ridge=1e-2) for name, choice in MIXED.items()}
batches = Deadly(int(sys.argv[4]))
ds.compress_sequentially(made(dtype=torch.float32), batches, choices, target="stream", store=sys.argv[3])
"""


@pytest.mark.parametrize("batches", [17])
def test_killed_within_a_pass_it_ends_in_the_same_bits(tmp_path, batches):
    model, x, here = made(dtype=torch.float32), data(dtype=torch.float32), Path(__file__).parent
    words = [sys.executable, "-c", DEADLY, str(here), str(here.parent), str(tmp_path / "s"), str(batches)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603  # our own
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert list((tmp_path / "s").iterdir())
    again = compressed(model, x, MIXED, folding=None, store=tmp_path / "s")
    assert same(again, compressed(model, x, MIXED, folding=None))


def test_other_threads_and_batches_fold_to_the_same_bits():
    model, x = made(dtype=torch.float32), data(dtype=torch.float32)
    one = compressed(model, x, MIXED, folding=ds.Folding())
    assert same(compressed(model, x, MIXED, folding=ds.Folding(workers=ds.Threads(1))), one)
