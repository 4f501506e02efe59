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


def damaged(data, kind):
    """Return what is left of a file; None where it is gone."""
    if kind == "deleted":
        return None
    place = random.Random(len(data)).randrange(len(data))  # noqa: S311
    return data[: len(data) // 2] if kind == "cut" else data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


def made(folder, contents):
    return {name: data for name, data in contents(folder / "out").items() if name not in LOGS}


AT_ONCE = [
    ["network.json", "stability.json", "compression.json", "finetuning.json", "evaluation.json", "report.json"],
    ["network.safetensors", "compressed/plan.json", "finetuned/plan.json", "report/report.html"],
    ["compressed/model.safetensors", "finetuned/model.safetensors", "report/results.json"],
    ["report/files.txt", "compressed/README.md", "finetuned/README.md"],
    ["report/tables/sizes.csv"],
    ["steps.json"],
]
"""Of one step one file, so that none is made again for the sake of another."""


@pytest.mark.parametrize("kind", ["deleted", "cut", "flipped"])
@pytest.mark.parametrize("names", AT_ONCE, ids=lambda names: names[0])
@pytest.mark.usefixtures("unsynced")
def test_a_damaged_file_of_the_run_is_one_line_and_made_again(whole_folder, tmp_path, names, kind, contents, soak):
    expected = made(whole_folder, contents)
    for number, damaged_names in enumerate([[name] for name in names] if soak else [names]):
        folder = shutil.copytree(whole_folder, tmp_path / str(number))
        for path in (folder / "out" / name for name in damaged_names):
            left = damaged(path.read_bytes(), kind)
            path.unlink()
            if left is not None:
                path.write_bytes(left)
        notes = Notes()
        opened(folder / "run.toml", notes).all()
        assert made(folder, contents) == expected
        lines = [note for note in notes.said if note.endswith("done again")]
        if (names, kind) != (["steps.json"], "deleted"):
            assert len(lines) == len(damaged_names), notes.said
            assert all(str(folder / "out") in line and "\n" not in line for line in lines)
