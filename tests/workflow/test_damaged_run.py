"""Every file that a run leaves: deleted, cut or changed by a bit, the next run notices it and makes it again."""

import random
import shutil
import sys

import pytest
from notes import Notes
from tiny_run_file import write_run

from dalr_stream.workflow.run import Run

FEW = 'solve.methods=["svd", "dalr_anchored_affine", "momasp_node"]'
FINETUNE = 'finetune={batches="tiny_run:validation", epochs=2}'
LOGS = {"log.jsonl", "run.lock", "store.zarr/writer.lock"}


def opened(file, progress=None):
    sys.modules.pop("tiny_run", None)
    return Run.open(file, set=[FEW, FINETUNE], progress=progress)


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    file = write_run(tmp_path_factory.mktemp("whole") / "tiny")
    opened(file).all()
    sys.modules.pop("tiny_run", None)
    return file.parent


def damages(path):
    """Yield each kind of damage, and the bytes that it leaves; None for a file that is gone."""
    data = path.read_bytes()
    position = random.Random(path.name).randrange(len(data))  # noqa: S311
    yield "deleted", None
    yield "cut", data[: len(data) // 2]
    yield "flipped", data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]


def made(folder, contents):
    return {name: data for name, data in contents(folder / "out").items() if name not in LOGS}


OWN = [
    "steps.json",
    "network.json",
    "network.safetensors",
    "evaluation.json",
    "compression.json",
    "stability.json",
    "finetuning.json",
    "compressed/plan.json",
    "compressed/model.safetensors",
    "finetuned/plan.json",
    "finetuned/model.safetensors",
    "report.json",
    "report/report.html",
    "report/results.json",
    "report/files.txt",
    "report/tables/sizes.csv",
]


@pytest.mark.parametrize("name", OWN)
@pytest.mark.usefixtures("unsynced")
def test_a_damaged_file_of_the_run_is_one_line_and_made_again(whole_folder, tmp_path, name, contents):
    expected = made(whole_folder, contents)
    for kind, data in damages(whole_folder / "out" / name):
        folder = shutil.copytree(whole_folder, tmp_path / kind)
        path = folder / "out" / name
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        notes = Notes()
        opened(folder / "run.toml", notes).all()
        assert made(folder, contents) == expected, kind
        told = [note for note in notes.said if "done again" in note or "not done yet" in note]
        if (name, kind) != ("steps.json", "deleted"):
            assert any(str(folder / "out") in note for note in told), (kind, notes.said)
        assert all("\n" not in note for note in told)
