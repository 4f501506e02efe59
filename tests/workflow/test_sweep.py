"""accumulate.keep_moments = false: one sweep over the blocks ends in what the run with all moments ends in."""

import dataclasses
import itertools
import json
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch
from stopping import StopAfter, StoppedError
from tower_run_file import BY_BLOCKS, files, named, write_tower
from typer.testing import CliRunner

import dalr_stream as ds
from dalr_stream.cli.app import app
from dalr_stream.errors import ConfigError, StoreNotFoundError
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.verify import verify_run

SWEPT = [
    "accumulate.keep_moments=false", "evaluate.batches='tower:target'", "evaluate.ranks=[]",
    "solve.methods=['dalr_anchored_affine', 'svd']",
]  # fmt: skip
RATIO = [*SWEPT, 'compress.ratio="40%"']
WEIGHTED = [
    "network.gradients=['blocks.*']", "solve.methods=['dalr_weighted_affine', 'svd']",
    "compress.method='dalr_weighted_affine'",
]  # fmt: skip


class KilledError(BaseException):
    """Stands for the end of the process: nothing on the way may catch it."""


def killed_at(monkeypatch, place):
    """Kill the process just before (even) or just after (odd) one of its renames; counts those there are."""
    count = itertools.count()

    def counting(rename):
        def renamed(self, target):
            number = next(count)
            if 2 * number == place:
                raise KilledError
            result = rename(self, target)
            if 2 * number + 1 == place:
                raise KilledError
            return result

        return renamed

    monkeypatch.setattr(Path, "replace", counting(Path.replace))
    monkeypatch.setattr(Path, "rename", counting(Path.rename))
    return count


@pytest.fixture
def run_file(tmp_path):
    return write_tower(tmp_path / "run")


def opened(run_file, *settings, **options):
    return ds.Run.open(run_file, set=settings, **options)


def made(run):
    """Everything that compressing left, less the store's own time stamps and the journal; JSON by its values."""
    left = {name: data for name, data in files(run.project.output).items() if name != "log.jsonl"}
    return {name: json.loads(data) if name.endswith(".json") else data for name, data in left.items()}


@pytest.mark.parametrize(("sizes", "more"), [("named", []), ("singular values", []), ("ratio", WEIGHTED)])
def test_one_sweep_ends_in_the_same_network_and_curves_and_keeps_no_moments(sizes, more, run_file):
    settings = [*([BY_BLOCKS[sizes]] if BY_BLOCKS[sizes] else named(run_file)), *SWEPT, *more]
    found = []
    for keep in ("true", "false"):
        run = opened(run_file, *settings, f"accumulate.keep_moments={keep}")
        if keep == "true":
            run.accumulate()
            run.evaluate()
        else:
            assert run.all().exists()
        results, compression = run.results, files(run.project.output)["compression.json"]
        found.append((ds.load(run.project.compressed, run.project.code.build).state_dict(), results, compression))
        assert (run.project.store / "moments" / "target").exists() == (keep == "true")
        again = dict(opened(run_file, *settings, f"accumulate.keep_moments={keep}").outlook())
        assert not any(would for step, would in again.items() if step != "report")
        assert not verify_run(run.project).findings
        shown = CliRunner().invoke(app, ["verify", str(run.project.store)]).output
        assert ("holds no records: there is nothing to check" in shown) == (keep == "false")
        shutil.rmtree(run.project.output)
    (kept, results, _), (swept, others, _) = found
    assert all(torch.equal(kept[name], swept[name]) for name in kept)
    for one, other in zip(others.layers, results.layers, strict=True):
        assert dataclasses.replace(one, error_curves=()) == dataclasses.replace(other, error_curves=())
        for curve, before in zip(one.error_curves, other.error_curves, strict=True):  # factors lie otherwise in memory
            assert curve.method == before.method
            assert curve.training == pytest.approx(before.training, abs=1e-12)
            assert curve.heldout == pytest.approx(before.heldout, abs=1e-12)
    assert others.sizes == results.sizes
    assert others.decisions == results.decisions


SELECTIONS = """
[compress]
'blocks.0.up' = { method = "spectral", size = 7 }
'blocks.1.up' = { method = "spectral", retention = 0.8 }
'blocks.2.down' = { method = "dalr_anchored_affine", size = 3 }
"""


def test_selections_and_pairs_in_one_sweep(run_file):
    run_file.write_text(run_file.read_text() + SELECTIONS)
    settings = [*SWEPT, "solve.methods=['spectral', 'dalr_anchored_affine']"]
    states, shown = [], []
    for keep in ("true", "false"):
        run = opened(run_file, *settings, f"accumulate.keep_moments={keep}")
        if keep == "true":
            run.accumulate()
        run.evaluate()
        states.append(ds.load(run.project.compressed, run.project.code.build).state_dict())
        shown.append([layer.retention_curves for layer in run.results.layers])
        shutil.rmtree(run.project.output)
    assert states[0]["blocks.0.up.weight"].shape == (7, 8)
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())
    assert shown[0] == shown[1]
    assert any(shown[0])


def test_a_method_that_does_not_apply_to_a_layer_is_refused_before_anything_is_recorded(run_file):
    run = opened(run_file, *RATIO, "solve.methods=['spectral', 'svd']", "compress.method='spectral'")
    with pytest.raises(ConfigError, match=r"compress.blocks.0.down: 'spectral' was not solved"):
        run.compress()
    assert not (run.project.store / "unfinished").exists()


@pytest.mark.parametrize("settings", [RATIO, [*RATIO, *WEIGHTED]], ids=["forward", "with gradients"])
@pytest.mark.usefixtures("unsynced")
def test_killed_at_any_rename_it_goes_on_and_ends_in_the_same_bytes(settings, run_file, tmp_path, monkeypatch, soak):
    def swept(folder):
        sys.modules.pop("tower", None)
        run = opened(folder / "run.toml", *settings)
        run.compress()
        return made(run)

    with monkeypatch.context() as patch:
        count = killed_at(patch, -1)
        expected = swept(shutil.copytree(run_file.parent, tmp_path / "whole"))
        places = range(2 * next(count))
    late = places[-22::8]  # the network is in its place, what is known of it is not
    for place in places if soak else sorted({*random.Random(1).sample(places, 2), *late}):  # noqa: S311
        folder = shutil.copytree(run_file.parent, tmp_path / f"at-{place}")
        with monkeypatch.context() as patch:
            killed_at(patch, place)
            with pytest.raises(KilledError):
                swept(folder)
        assert swept(folder) == expected, place
        shutil.rmtree(folder)


def test_a_sweep_that_was_stopped_under_other_settings_begins_anew(run_file):
    other = [*RATIO, "solve.ridge=0.5"]
    whole = opened(run_file, *other)
    whole.compress()
    expected = made(whole)
    shutil.rmtree(whole.project.output)
    with pytest.raises(StoppedError):
        opened(run_file, *RATIO, progress=StopAfter(10)).compress()
    opened(run_file, *other).compress()
    assert made(whole) == expected
    with pytest.raises(StoppedError):
        opened(run_file, *other, fresh=True, progress=StopAfter(10)).compress()
    opened(run_file, *other).compress()
    assert made(whole) == expected


def test_a_block_that_was_damaged_meanwhile_needs_a_new_sweep(run_file):
    run = opened(run_file, *RATIO)
    with pytest.raises(StoppedError):
        opened(run_file, *RATIO, progress=StopAfter(10)).compress()
    working = run.project.compressed.with_name("compressed.unfinished") / "network"
    (working / "model-00001-of-00005.safetensors").write_bytes(b"")
    (working / "model-00002-of-00005.safetensors").write_bytes(b"")
    with pytest.raises(StoreNotFoundError, match=r"were given up .* --fresh begins the sweep anew"):
        run.compress()
    opened(run_file, *RATIO, fresh=True).compress()
    assert run.project.compressed.exists()


def test_moments_are_kept_after_a_sweep_that_was_stopped(run_file):
    kept = [*RATIO, "accumulate.keep_moments=true"]
    with pytest.raises(StoppedError):
        opened(run_file, *RATIO, progress=StopAfter(10)).compress()
    run = opened(run_file, *kept)
    run.accumulate()
    run.compress()
    assert not verify_run(run.project).findings
    state = ds.load(run.project.compressed, run.project.code.build).state_dict()
    shutil.rmtree(run.project.output)
    opened(run_file, *RATIO).compress()
    swept = ds.load(run.project.compressed, run.project.code.build).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in swept.items())


def test_another_setting_after_a_finished_sweep_is_another_sweep(run_file):
    run = opened(run_file, *RATIO)
    run.evaluate()
    before = run.results
    anew = opened(run_file, *RATIO, "solve.ridge=0.5")
    assert dict(anew.outlook())["compress"]
    anew.evaluate()
    assert anew.results.layers[0].error_curves != before.layers[0].error_curves
    drop = opened(run_file, *RATIO, "solve.ridge=0.5", "evaluate.drop=0.2")
    assert not dict(drop.outlook())["compress"]
    drop.evaluate()
    assert {layer.drop for layer in drop.results.layers} == {0.2}


def test_moments_that_were_to_be_kept_are_not_swept_away(run_file):
    run = opened(run_file, *RATIO, "accumulate.keep_moments=true")
    run.accumulate()
    moments = files(run.project.store / "moments")
    with pytest.raises(ConfigError, match="has moments of 'target' that were to be kept: compress from them"):
        opened(run_file, *RATIO).compress()
    assert files(run.project.store / "moments") == moments
    opened(run_file, *RATIO, fresh=True).compress()
    assert not (run.project.store / "moments" / "target").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("network.blocks=false", "goes with a network that runs block by block from disk"),
        ('compress.params="50%"', "needs sizes that each layer decides by itself: name layers"),
        ("evaluate.ranks=[1]", "only the networks that are saved can be scored"),
        ("evaluate.compare=['svd']", "only the networks that are saved can be scored"),
        ("accumulate.shards=2", "error bars come from shards"),
        ("solve.ridge='heldout'", "rows that choose a ridge are read again"),
    ],
)
def test_what_needs_moments_is_refused_without_them(setting, message, run_file):
    with pytest.raises(ConfigError, match=f"accumulate.keep_moments: false {message}"):
        load_config(run_file, [*SWEPT, *([] if "params" in setting else ['compress.ratio="40%"']), setting])


def test_energy_that_gradients_make_one_of_all_layers_is_refused_without_moments(run_file):
    with pytest.raises(ConfigError, match="with gradients a share of energy is one of what the loss feels of all"):
        load_config(run_file, [*SWEPT, *WEIGHTED[:1], "compress.energy='60%'"])


def test_another_method_after_a_sweep_asks_for_moments(run_file):
    opened(run_file, *RATIO).compress()
    kept = opened(run_file, *RATIO, "accumulate.keep_moments=true")
    for verb in (kept.solve, kept.compress, kept.evaluate, kept.report):
        with pytest.raises(StoreNotFoundError, match=r"there are no moments at .* yet: run accumulate first, or run"):
            verb()


def test_verbs_that_would_leave_moments_say_what_to_do(run_file):
    run = opened(run_file, *RATIO)
    for verb in (run.accumulate, run.solve):
        with pytest.raises(ConfigError, match=r"accumulate\.keep_moments: is false, so .* run compress, or run"):
            verb()
    with pytest.raises(ConfigError, match=r"keep_moments: is false, so each size is a sweep of its own: .* one size"):
        run.size_curve(["30%"], rule="ratio", evaluate=False)
