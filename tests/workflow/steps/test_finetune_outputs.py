"""Label-free recovery as a step of a run: [finetune] loss = "outputs" on the target's batches, killed or not."""

import signal
import sys

import pytest
import torch
from commands import cli
from notes import Notes

import dalr_stream as ds
from dalr_stream.errors import ConfigError
from dalr_stream.report.records.results import Results
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.run_cost import cost_of
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.finetune import FineTuned

SECTION = """
[finetune]
batches = "tiny_unlabelled:inputs"
epochs = 3
rate = 0.01
loss = "outputs"
distance = "kl"
train = "factors"
"""

LOADERS = """
import os
import signal

from tiny_run import target


class Deadly(list):
    def __iter__(self):
        for batch in super().__iter__():
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            yield batch


def inputs(*, seed):
    batches = Deadly(inputs for inputs, _ in target(seed=seed))
    batches.left = int(os.environ.get("TINY_BATCHES_TO_LIVE", "-1"))
    return batches
"""


def opened(file, *overrides):
    notes = Notes()
    return Run(Project(load_config(file, ["evaluate.ranks=[2]", *overrides]), file.parent), progress=notes), notes


@pytest.fixture
def recovered_file(finished_file):
    """A run that is done, with a section on label-free recovery added since."""
    finished_file.write_text(finished_file.read_text() + SECTION)
    (finished_file.parent / "tiny_unlabelled.py").write_text(LOADERS)
    yield finished_file
    sys.modules.pop("tiny_unlabelled", None)


def test_the_step_gives_what_the_function_gives_and_the_report_says_how(recovered_file):
    run, _ = opened(recovered_file)
    run.all()
    small = ds.load(run.project.compressed, run.project.code.build)
    batches = [inputs for inputs, _ in run.project.code.batches("target")]
    loss, losses = ds.OutputLoss(run.project.network, distance="kl"), []
    options = ds.FineTuning(epochs=3, rate=0.01, loss=loss, train="factors", seed=0)
    expected = ds.finetune(small, batches, options, epoch_done=lambda _, value: losses.append(value))
    tuned = ds.load(run.project.finetuned, run.project.code.build)
    assert all(torch.equal(tuned.state_dict()[name], value) for name, value in expected.state_dict().items())
    assert FineTuned.read(run.project.finetuning).losses == tuple(losses)
    assert losses[-1] < losses[0]
    results = Results.read(run.project.report_folder / "results.json")
    assert [size.label.partition(":")[0] for size in results.sizes] == ["uncompressed", "compressed", "fine-tuned"]
    words = (
        "on 'tiny_unlabelled:inputs' without labels, towards the original's outputs by kl: Adam, 3 epochs at rate "
        "0.01, weight decay 0 (in the gradient), factors and biases only"
    )
    assert any(words in decision for decision in results.decisions)
    again, notes = opened(recovered_file)
    again.all()
    assert not notes.started


def test_every_network_that_is_evaluated_may_be_recovered(recovered_file):
    run, notes = opened(recovered_file, "evaluate.finetune=true", "finetune.epochs=1")
    run.all()
    evaluated = Results.read(run.project.report_folder / "results.json")
    assert any(curve.points for layer in evaluated.layers for curve in layer.finetuned_curves)
    assert any("the original network is run on the same batches" in note for note in notes.said)


def test_killed_midway_the_same_command_goes_on_to_the_same_bits(recovered_file, contents):
    """Three batches an epoch: the kill comes in the second."""
    output = recovered_file.parent / "out"
    assert cli("finetune", recovered_file, env={"TINY_BATCHES_TO_LIVE": "4"}).returncode == -signal.SIGKILL
    assert not (output / "finetuned").exists()
    again = cli("finetune", recovered_file)
    assert again.returncode == 0, again.stderr
    interrupted = contents(output / "finetuned")["model.safetensors"]
    (output / "finetuning.json").unlink()
    opened(recovered_file)[0].finetune()
    assert contents(output / "finetuned")["model.safetensors"] == interrupted


@pytest.mark.parametrize(
    ("setting", "steps"),
    [('finetune.distance="cosine"', ["finetune"]), ('finetune.train="all"', ["finetune"]), ("finetune.rate=0.01", [])],
)
def test_it_is_done_again_when_its_settings_change(recovered_file, setting, steps):
    opened(recovered_file)[0].finetune()
    changed, notes = opened(recovered_file, setting)
    changed.finetune()
    assert notes.started == steps


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ['finetune.loss="cross_entropy"'],
            r"finetune: .*'distance' goes with loss = \"outputs\", got loss = \"cross_",
        ),
        (['finetune.train="all"', 'finetune.layers=["fc1"]'], "trains every layer, and 'layers' names some: leave one"),
        (['finetune.train="biases"'], r"finetune\.train: must be .*got 'biases'"),
        (['finetune.distance="l1"'], r"finetune\.distance: must be .*got 'l1'"),
        (['finetune.loss="output"'], r"finetune\.loss: must be \"cross_entropy\", \"outputs\" or module:function"),
        (['finetune.batches="tiny_run:test"'], r"finetune\.batches: 'tiny_run:test' is the test split of"),
    ],
)
def test_bad_settings_are_named(recovered_file, overrides, message):
    with pytest.raises(ConfigError, match=message):
        opened(recovered_file, *overrides)[0].finetune()


def test_the_estimate_counts_a_forward_pass_of_the_original_too(recovered_file):
    def finetune_step():
        run, _ = opened(recovered_file)
        return next(step for step in cost_of(run.project, run.project.network).memory if step.step == "finetune")

    recovering, text = finetune_step(), recovered_file.read_text()
    unlabelled = 'batches = "tiny_unlabelled:inputs"\nepochs = 3\nrate = 0.01\nloss = "outputs"\ndistance = "kl"\n'
    recovered_file.write_text(text.replace(unlabelled, 'batches = "tiny_run:target"\n'))
    labelled = finetune_step()
    assert recovering.what == f"{labelled.what}, and one of the original"
    assert recovering.peak_bytes > labelled.peak_bytes
