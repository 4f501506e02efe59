"""Fine-tuning as a step of a run: between compress and evaluate, fresh or not, killed or not."""

import json
import signal
import sys

import pytest
import torch
from commands import cli
from notes import Notes

import dalr_stream as ds
from dalr_stream.errors import ConfigError, InvalidInputError, NonFiniteError
from dalr_stream.report.records.results import Results
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.finetune import FineTuned

SECTION = """
[finetune]
batches = "tiny_run:validation"
epochs = 4
rate = 0.01
"""

DEADLY = """
import os
import signal

from tiny_run import validation


class Deadly(list):
    def __iter__(self):
        for batch in super().__iter__():
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            yield batch


def labelled(*, seed):
    batches = Deadly(validation(seed=seed))
    batches.left = int(os.environ.get("TINY_BATCHES_TO_LIVE", "-1"))
    return batches


def distance(outputs, labels):
    return (outputs.softmax(1)[range(len(labels)), labels] - 1).square().mean()
"""


def opened(file, *overrides):
    """Evaluation at one size is enough here."""
    notes = Notes()
    config = load_config(file, ["evaluate.ranks=[2]", *overrides])
    return Run(Project(config, file.parent), progress=notes), notes


@pytest.fixture
def tuned_file(finished_file):
    """A run that is done, with a section on fine-tuning added since."""
    finished_file.write_text(finished_file.read_text() + SECTION)
    (finished_file.parent / "tiny_deadly.py").write_text(DEADLY)
    yield finished_file
    sys.modules.pop("tiny_deadly", None)


def accuracy(model, batches):
    right = [(model(inputs).argmax(1) == labels).float() for inputs, labels in batches]
    return float(torch.cat(right).mean())


def test_a_run_scores_the_compressed_network_with_and_without_fine_tuning(tuned_file):
    run, notes = opened(tuned_file)
    run.all()
    assert notes.started == ["finetune", "evaluate"]
    results = Results.read(run.project.report_folder / "results.json")
    kinds = [size.label.partition(":")[0] for size in results.sizes]
    assert kinds == ["uncompressed", "compressed", "fine-tuned"]
    for size, folder in zip(results.sizes[1:], (run.project.compressed, run.project.finetuned), strict=True):
        model = ds.load(folder, run.project.code.build)
        assert size.score == pytest.approx(accuracy(model, run.project.code.batches("test")))
        assert size.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert any(
        decision.startswith(
            "fine-tuned after compression on 'tiny_run:validation': Adam, 4 epochs at rate 0.01, weight decay 0.0005"
        )
        for decision in results.decisions
    )
    page = (run.project.report_folder / "report.html").read_text()
    assert "fine-tuned: fc1" in page
    assert "fine-tuned after compression" in page


def test_the_step_gives_what_the_function_gives(tuned_file):
    run, _ = opened(tuned_file)
    run.finetune()
    small = ds.load(run.project.compressed, run.project.code.build)
    losses = []
    options = ds.FineTuning(epochs=4, rate=0.01, seed=0)
    batches = run.project.code.loader("finetune", run.project.finetune_section)
    expected = ds.finetune(small, batches, options, epoch_done=lambda _, loss: losses.append(loss))
    tuned = ds.load(run.project.finetuned, run.project.code.build)
    assert all(torch.equal(tuned.state_dict()[name], value) for name, value in expected.state_dict().items())
    assert not torch.equal(tuned.fc3.weight, small.fc3.weight)
    assert tuned.compression_plan == small.compression_plan
    record = FineTuned.read(run.project.finetuning)
    assert record.losses == tuple(losses)
    assert losses[-1] < losses[0]
    assert not run.project.unfinished.exists()


def test_what_has_not_changed_is_not_tuned_again(tuned_file, contents):
    run, _ = opened(tuned_file)
    run.evaluate()
    before = {name: data for name, data in contents(run.project.output).items() if name != "log.jsonl"}
    again, notes = opened(tuned_file)
    again.finetune()
    again.evaluate()
    assert {name: data for name, data in contents(run.project.output).items() if name != "log.jsonl"} == before
    assert "finetune: up to date, skipped" in notes.said
    assert all("up to date" in note for note in notes.said)
    assert not notes.started


@pytest.mark.parametrize(
    ("override", "steps"),
    [
        ("finetune.rate=0.02", ["finetune", "evaluate"]),
        ("finetune.options.samples=50", ["finetune", "evaluate"]),
        ('finetune.loss="tiny_deadly:distance"', ["finetune", "evaluate"]),
        ("evaluate.ranks=[3]", ["evaluate"]),
    ],
)
def test_it_is_done_again_when_its_settings_change(tuned_file, override, steps):
    opened(tuned_file)[0].evaluate()
    changed, notes = opened(tuned_file, override)
    changed.evaluate()
    assert notes.started == steps


def test_a_change_of_compression_is_tuned_again(tuned_file):
    opened(tuned_file)[0].finetune()
    changed, _ = opened(tuned_file, "compress.fc1.size=3")
    changed.finetune()
    tuned = ds.load(changed.project.finetuned, changed.project.code.build)
    assert tuned.fc1[0].weight.shape == (3, 12)


def test_layers_are_named_as_in_the_original(tuned_file):
    run, _ = opened(tuned_file, 'finetune.layers=["fc1"]')
    run.finetune()
    small, tuned = (ds.load(folder, run.project.code.build) for folder in run.project.saved)
    differ = {n for n, value in small.state_dict().items() if not torch.equal(value, tuned.state_dict()[n])}
    assert differ == {"fc1.0.weight", "fc1.1.weight", "fc1.1.bias"}


def test_without_the_section_nothing_of_it_is_there(finished_file):
    run, _ = opened(finished_file)
    assert not run.project.finetuned.exists()
    assert len(Results.read(run.project.report_folder / "results.json").sizes) == 2
    with pytest.raises(ConfigError, match=r"the run file has no \[finetune\] section"):
        run.finetune()


# --- killed -------------------------------------------------------------------------------------------------------


DEADLY_SETTING = ("finetune.batches=tiny_deadly:labelled", "finetune.dropout=true")


def command_line(file, **environment):
    options = [word for setting in DEADLY_SETTING for word in ("--set", setting)]
    return cli("finetune", file, *options, env=environment)


def test_killed_midway_the_same_command_goes_on_to_the_same_bits(tuned_file, contents):
    """Three batches an epoch: the kill comes in the third."""
    output = tuned_file.parent / "out"
    assert command_line(tuned_file, TINY_BATCHES_TO_LIVE="7").returncode == -signal.SIGKILL
    assert len(list((output / "unfinished").iterdir())) == 1
    assert not (output / "finetuned").exists()
    again = command_line(tuned_file)
    assert again.returncode == 0, again.stderr
    assert "fine-tuned after compression on 'tiny_deadly:labelled'" in again.stderr
    interrupted, record = contents(output / "finetuned"), (output / "finetuning.json").read_bytes()
    assert not (output / "unfinished").exists()

    (output / "finetuning.json").unlink()
    whole, notes = opened(tuned_file, *DEADLY_SETTING)
    whole.finetune()
    assert "finetune" in notes.started
    assert contents(output / "finetuned")["model.safetensors"] == interrupted["model.safetensors"]
    assert (output / "finetuning.json").read_bytes() == record


def test_a_damaged_checkpoint_is_a_line_and_the_training_begins_anew(tuned_file, contents):
    output = tuned_file.parent / "out"
    assert command_line(tuned_file, TINY_BATCHES_TO_LIVE="7").returncode == -signal.SIGKILL
    (checkpoint,) = (output / "unfinished").iterdir()
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[:-3] + b"..." if len(data) % 2 else data[: len(data) // 2])
    again = command_line(tuned_file)
    assert again.returncode == 0, again.stderr
    assert f"finetune: '{checkpoint}' is" in again.stderr.replace("\n", " ")
    damaged = contents(output / "finetuned")
    (output / "finetuning.json").unlink()
    opened(tuned_file, *DEADLY_SETTING)[0].finetune()
    assert contents(output / "finetuned")["model.safetensors"] == damaged["model.safetensors"]


# --- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (['finetune.batches="tiny_run:test"'], ConfigError, r"finetune\.batches: 'tiny_run:test' is the test split of"),
        (["compress={}"], ConfigError, r"finetune: fine-tunes the compressed network, and \[compress\] asks for none"),
        (["finetune.rate=0"], ConfigError, r"finetune\.rate: .* greater than 0, got 0"),
        (["finetune.rate=nan"], ConfigError, r"finetune\.rate: .* finite number, got nan"),
        (["finetune.epochs=0"], ConfigError, r"finetune\.epochs: .* got 0"),
        (["finetune.epoch=3"], ConfigError, r"unknown key 'finetune\.epoch'; nearest: 'epochs'"),
        (['finetune.loss="hinge"'], ConfigError, r"finetune\.loss"),
        (['finetune.loss="tiny_run:absent"'], ConfigError, r"finetune\.loss: .*no function 'absent'"),
        (['finetune.layers=["fc9"]'], InvalidInputError, "pattern 'fc9' matches no layer"),
        (['finetune.batches="tiny_run:empty"'], InvalidInputError, "epoch 1: the loader gave no sample"),
        (['finetune.batches="tiny_run:with_nan"'], NonFiniteError, "epoch 1, batch 1: the loss must be finite"),
    ],
)
def test_bad_input_is_named_and_nothing_is_saved(tuned_file, overrides, error, message):
    with pytest.raises(error, match=message):
        opened(tuned_file, *overrides)[0].finetune()
    assert not (tuned_file.parent / "out" / "finetuned").exists()


# --- what is kept beside the networks -----------------------------------------------------------------------------


def test_both_pages_say_what_each_layer_was_and_where_the_network_came_from(tuned_file):
    run, _ = opened(tuned_file)
    run.finetune()
    page = (run.project.compressed / "README.md").read_text()
    for line in (
        "| fc1 | 16 x 12 | a pair, 4 x 12, 16 x 4 | 208 | 128 |",
        "| fc2 | 10 x 16 | 6 of 10 outputs | 170 | 102 |",
        "| fc3 | 3 x 10 | 6 of 10 inputs | 33 | 21 |",
        "| parameters | 411 | 251 | 61.1% |",
        "- ridge: 0.001, relative",
        "- fc1: DALR anchored, affine, size 4",
        "- samples: 90",
    ):
        assert line in page.replace("  - ", "- ").replace("  - ", "- "), line
    kept = json.loads((run.project.compressed / "plan.json").read_text())
    assert kept["before"] == {"parameters": 411, "bytes": 4 * 411}
    assert kept["provenance"]["configuration"]["solve"]["ridge"] == 1e-3
    assert kept["provenance"]["network"]["fingerprint"] in page
    assert kept["provenance"]["versions"]["torch"] in page
    tuned = (run.project.finetuned / "README.md").read_text()
    assert "| parameters | 411 | 251 | 61.1% |" in tuned
    assert "fine-tuned after compression on 'tiny_run:validation'" in tuned
