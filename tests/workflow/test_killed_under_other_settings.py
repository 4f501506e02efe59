"""A finished run, another setting killed at any rename, the first setting again: as if nothing had happened."""

import itertools
import json
import random
import shutil
import sys
from pathlib import Path

import pytest
from tiny_run_file import write_run

from dalr_stream.errors import FingerprintMismatchError
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.steps.step_log import StepLog
from dalr_stream.workflow.verify import verify_run

FEW = 'solve.methods=["svd", "dalr_anchored_affine", "momasp_node"]'
SETTINGS = {
    "solve": "solve.ridge=1000",
    "compress": "compress.fc1.size=2",
    "accumulate": "accumulate.shards=3",
    "evaluate": "evaluate.ranks=[1, 3]",
    "train": "run.seed=5",
    "capture": "domains.source.options.samples=110",
}


class KilledError(BaseException):
    """Stands for the end of the process: nothing on the way may catch it."""


def killed_at(monkeypatch, rename):
    """Kill the process just before (even) or just after (odd) one of its renames."""
    replace, count = Path.replace, itertools.count()

    def replaced(self, target):
        number = next(count)
        if 2 * number == rename:
            raise KilledError
        result = replace(self, target)
        if 2 * number + 1 == rename:
            raise KilledError
        return result

    monkeypatch.setattr(Path, "replace", replaced)


def opened(file, *overrides, fresh=False):
    sys.modules.pop("tiny_run", None)
    return Run.open(file, set=[FEW, *overrides], fresh=fresh)


@pytest.fixture(scope="module")
def few_folder(tmp_path_factory):
    file = write_run(tmp_path_factory.mktemp("few") / "tiny")
    opened(file).all()
    sys.modules.pop("tiny_run", None)
    return file.parent


def made(contents, run):
    """Everything the run left, less its journal; JSON whatever the order of its keys."""
    left = {name: data for name, data in contents(run.project.output).items() if name != "log.jsonl"}
    return {name: json.loads(data) if name.endswith(".json") else data for name, data in left.items()}


@pytest.mark.parametrize("verb", SETTINGS)
@pytest.mark.usefixtures("unsynced")
def test_it_is_as_if_nothing_had_happened(few_folder, tmp_path, verb, contents, monkeypatch, soak):
    expected = made(contents, Run.open(few_folder / "run.toml", set=[FEW]))
    places = range(200) if soak else sorted(random.Random(verb).sample(range(20), 2))  # noqa: S311
    for place in places:
        folder = shutil.copytree(few_folder, tmp_path / f"at-{place}")
        other = opened(folder / "run.toml", SETTINGS[verb], fresh=verb == "capture")
        with monkeypatch.context() as patch:
            killed_at(patch, place)
            try:
                getattr(other, verb)()
                ended = True
            except KilledError:
                ended = False
        again = opened(folder / "run.toml", fresh=verb == "capture")
        again.all()
        assert {name for name, data in made(contents, again).items() if data != expected.get(name)} == set()
        assert made(contents, again).keys() == expected.keys()
        shutil.rmtree(folder)
        if ended:
            break
    sys.modules.pop("tiny_run", None)


@pytest.mark.usefixtures("unsynced")
def test_rows_that_were_folded_directly_since_are_not_taken_for_those_of_before(few_folder, tmp_path):
    expected = opened(few_folder / "run.toml").results.layers
    file = shutil.copytree(few_folder, tmp_path / "copy") / "run.toml"
    direct = ["capture.keep_activations=false", "domains.target.options.samples=85"]
    opened(file, *direct, fresh=True).accumulate()
    again = opened(file)
    again.all()
    assert again.results.layers == expected


@pytest.mark.usefixtures("unsynced")
def test_moments_of_rows_that_were_replaced_since_are_made_again(few_folder, tmp_path, contents):
    """Other data, captured and not accumulated: the rows are of the one setting, the moments of the other."""
    expected = made(contents, Run.open(few_folder / "run.toml", set=[FEW]))
    file = shutil.copytree(few_folder, tmp_path / "copy") / "run.toml"
    opened(file, SETTINGS["capture"], fresh=True).capture()
    with pytest.raises(FingerprintMismatchError, match="--fresh"):
        opened(file).all()
    again = opened(file, fresh=True)
    again.all()
    assert {name for name, data in made(contents, again).items() if data != expected.get(name)} == set()


@pytest.mark.usefixtures("unsynced")
def test_a_capture_killed_over_moments_that_were_folded_directly(few_folder, tmp_path, monkeypatch):
    """The moments are those of the rows, which were not kept; a capture that just began has none of them yet."""
    expected = opened(few_folder / "run.toml").results.layers
    folded = shutil.copytree(few_folder, tmp_path / "folded")
    opened(folded / "run.toml", "capture.keep_activations=false", fresh=True).all()
    for place in range(0, 16, 3):
        file = shutil.copytree(folded, tmp_path / f"at-{place}") / "run.toml"
        with monkeypatch.context() as patch:
            killed_at(patch, place)
            with pytest.raises(KilledError):
                opened(file).capture()
        opened(file).solve()
        again = opened(file)
        again.all()
        assert verify_run(again.project).findings == ()
        assert again.results.layers == expected


@pytest.mark.usefixtures("unsynced")
def test_what_a_killed_fold_left_goes_although_its_moments_are_kept(few_folder, tmp_path, contents):
    """Killed within a record of other shards: the moments are still those of before, and nothing is to be written."""
    expected = made(contents, Run.open(few_folder / "run.toml", set=[FEW]))
    file = shutil.copytree(few_folder, tmp_path / "copy") / "run.toml"
    litter = file.parent / "out/store.zarr/moments/target/fc1/.tmp-new-shard-0-a35fd30a"
    shutil.copytree(litter.with_name("training"), litter)
    StepLog(file.parent / "out", {}).begin("accumulate target")
    again = opened(file)
    again.all()
    assert made(contents, again) == expected
