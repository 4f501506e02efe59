"""Bits depend on the BLAS and its kernel for a CPU, and on the order of additions: records and checkpoints say which.

No two are mixed unasked.
"""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from capture_jobs import job, network

import dalr_stream as ds
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.engine.stores.merge import merge
from dalr_stream.errors import ResourceError
from dalr_stream.numerics.linalg.rank_k import blas_build
from dalr_stream.numerics.statistics.fold_rule import ANY_BLAS, SUMMATION
from dalr_stream.storage.records.moments import load_moments, moments_path, save_moments
from dalr_stream.storage.records.record import provenance_of
from dalr_stream.storage.removal import delete_activations
from dalr_stream.streaming import folding as folding_module
from dalr_stream.streaming import lanes
from dalr_stream.streaming.lanes import LaneTask, Pace, fold_lane

pytestmark = pytest.mark.usefixtures("unsynced", "low_tiles")
OTHER = "openblas 0.0.1 AbacusX"


class StoppedError(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def elsewhere(monkeypatch):
    """This process becomes one on a machine with another CPU."""

    def move():
        for module in (folding_module, lanes):
            monkeypatch.setattr(module, "blas_build", lambda: OTHER)

    return move


def record(root, layer="0", part="training"):
    return moments_path(root, "target", layer, part)


def with_blas(root, blas):
    """Let a store's records say that they were folded by another BLAS; or, as those of 0.1, by none, in no order."""
    for layer in ("0", "2"):
        for part in ("training", "heldout"):
            path = record(root, layer, part)
            made_from = provenance_of(path)
            gone = ("blas",) if blas else ("blas", "summation")
            rule = {name: value for name, value in made_from["rule"].items() if name not in gone}
            rule |= {"blas": blas} if blas else {}
            save_moments(path, load_moments(path), {**made_from, "rule": rule})


def test_the_build_names_library_version_and_kernel():
    library, version, kernel = blas_build().split()[:3]
    assert (library, version[0].isdigit(), bool(kernel)) == ("openblas", True, True)


def test_another_kernel_is_another_build():
    script = "from dalr_stream.numerics.linalg.rank_k import blas_build; print(blas_build())"
    builds = {
        subprocess.run(  # noqa: S603
            [sys.executable, "-c", script],
            env={**os.environ, "OPENBLAS_CORETYPE": kernel},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for kernel in ("Haswell", "Nehalem")
    }
    assert len(builds) == 2


def test_records_say_which_blas_folded_them(tmp_path):
    root = job(tmp_path / "a", "a")
    for part in ("training", "heldout"):
        assert provenance_of(record(root, part=part))["rule"]["blas"] == blas_build()


@pytest.mark.parametrize("blas", ["", OTHER])
def test_moments_of_another_machine_or_of_0_1_are_used_again(tmp_path, blas):
    root = job(tmp_path / "a", "a")
    before = load_moments(record(root))
    with_blas(root, blas)
    delete_activations(root)  # so that nothing could be folded again
    assert accumulate_stored(root, domain="target")["0"].same_bits(before)


def test_a_lane_is_not_folded_where_another_blas_is(tmp_path, elsewhere):
    root = job(tmp_path / "a", "a")
    task = LaneTask(root, "target", "0", ds.Folding().rule(12))
    expected = fold_lane(task).moments().training
    elsewhere()
    message = f"takes products with {OTHER}, this run with {blas_build()}: .* or accept it with any_blas=True"
    with pytest.raises(ResourceError, match=message):
        fold_lane(task)
    accepted = dataclasses.replace(task, rule=ds.Folding(any_blas=True).rule(12))
    assert accepted.rule.blas == ANY_BLAS
    assert fold_lane(accepted).moments().training.same_bits(expected)


@pytest.mark.parametrize("moved", ["", "machine", "version"])
def test_a_checkpoint_is_resumed_on_the_same_blas_and_in_the_same_order_only(tmp_path, monkeypatch, elsewhere, moved):
    root, model = tmp_path / "a", network()
    data = list(torch.randn(2000, 12).split(100))
    ds.capture(model, data, ds.network.select_layers(model, ["0"]), root, domain="target")
    folded = []

    def stop(tile, real=lanes.LaneFold.update):
        def update(self, one):
            folded.append(one.number)
            if tile is not None and len(folded) == tile:
                raise StoppedError
            return real(self, one)

        return update

    options = ds.Folding(workers=ds.Threads(1), pace=lambda: Pace(every_tiles=1))
    with monkeypatch.context() as patch:
        patch.setattr(lanes.LaneFold, "update", stop(4))
        with pytest.raises(StoppedError):
            accumulate_stored(root, domain="target", layers=["0"], folding=options)
    first = folded[:3]
    if moved == "machine":
        elsewhere()
    elif moved == "version":
        monkeypatch.setattr(folding_module, "SUMMATION", "row by row")
    folded.clear()
    monkeypatch.setattr(lanes.LaneFold, "update", stop(None))
    accumulate_stored(root, domain="target", layers=["0"], folding=options)
    assert (set(first) & set(folded) == set(first)) is bool(moved)
    rule = provenance_of(record(root))["rule"]
    assert rule["blas"] == (OTHER if moved == "machine" else blas_build())
    assert rule["summation"] == ("row by row" if moved == "version" else SUMMATION)


def test_captures_of_other_machines_are_merged_and_the_sum_says_so(tmp_path):
    stores = [job(tmp_path / part, part) for part in ("a", "b")]
    merge(stores, tmp_path / "same")
    assert provenance_of(record(tmp_path / "same"))["rule"]["blas"] == blas_build()
    with_blas(stores[1], OTHER)
    merge(stores, tmp_path / "mixed")
    rule = provenance_of(record(tmp_path / "mixed"))["rule"]
    assert (rule["blas"], rule["summation"]) == (ANY_BLAS, SUMMATION)
    assert load_moments(record(tmp_path / "mixed")).same_bits(load_moments(record(tmp_path / "same")))


def test_a_network_folded_directly_says_it_too(tmp_path):
    import torch

    model = network()
    layers = ds.network.select_layers(model, ["0"])
    ds.accumulate(model, [torch.randn(40, 12)], layers, store=tmp_path)
    assert provenance_of(record(tmp_path))["rule"]["blas"] == blas_build()
