"""Networks that are scored once more when each was fine-tuned: as by hand, killed or not, loaded once or not."""

import signal
import sys

import pytest
import torch
from commands import cli

import dalr_stream as ds
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import ConfigError
from dalr_stream.network.measure.accuracy import accuracy
from dalr_stream.numerics.methods import Method
from dalr_stream.report.records.results import Results
from dalr_stream.workflow.dry_run import dry_run
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project

SECTION = """
[finetune]
batches = "tiny_tuned:training"
epochs = 2
rate = 0.01
dropout = true
"""

LOADERS = """
import os
import signal

from tiny_run import test as tiny_test, validation

LOADED = []


class Restorable:
    def __init__(self, name, batches, first=0):
        self.name, self.batches, self.first = name, batches, first

    def starting_at(self, batch):
        return Restorable(self.name, self.batches, self.first + batch)

    def __iter__(self):
        for number in range(self.first, len(self.batches)):
            LOADED.append(self.name)
            yield self.batches[number]

    def __len__(self):
        return len(self.batches) - self.first


def training(*, seed):
    return Restorable("training", validation(seed=seed))


def training_in_a_list(*, seed):
    return validation(seed=seed)


def testing(*, seed):
    return Restorable("test", tiny_test(seed=seed))


def deadly(model, batches):
    from dalr_stream.network.measure.accuracy import accuracy

    left = int(os.environ["TINY_SCORES_TO_LIVE"])
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    os.environ["TINY_SCORES_TO_LIVE"] = str(left - 1)
    return accuracy(model, batches)
"""

PAPER = """
[[accuracy]]
title = "A paper, Table 1: fc1"
layer = "fc1"
baseline = 90.0
sizes = [2]
rows = [
    { method = "svd", finetuned = true, values = [11.0] },
    { method = "momasp_node", match = "parameters", finetuned = true, values = [12.0] },
]
"""
TUNED = (
    'solve.methods=["svd","momasp_node"]',
    'compress={fc1={method="svd",size=2}}',
    "evaluate.ranks=[2]",
    "evaluate.batches=tiny_tuned:testing",
    "evaluate.finetune=true",
)


def opened(file, *overrides):
    return Run(Project(load_config(file, overrides), file.parent))


@pytest.fixture
def tuned_file(finished_file):
    """A run that is done, with a section on fine-tuning and loaders that count added since."""
    finished_file.write_text(finished_file.read_text() + SECTION)
    (finished_file.parent / "tiny_tuned.py").write_text(LOADERS)
    yield finished_file
    sys.modules.pop("tiny_tuned", None)


def by_hand(project, layer, method, size):
    """The score of one network: compressed, fine-tuned whole, run whole."""
    section, solution = project.config.solve, StoreView.open(project.store).solutions(layer, [method])[method]
    low_rank = isinstance(solution, ds.LowRankFactors)
    record = solution.at_rank(size) if low_rank else solution.at_size(size, ridge=section.restore_ridge)
    small = ds.compress(project.network, {layer: record}, example=project.structure)
    options = ds.FineTuning(epochs=2, rate=0.01, dropout=True, seed=project.config.run.seed)
    tuned = ds.finetune(small, list(project.code.loader("finetune", project.finetune_section)), options)
    return accuracy(tuned, list(project.code.loader("evaluate", project.evaluate_section)))


def test_every_network_is_scored_as_it_is_and_fine_tuned(tuned_file):
    (tuned_file.parent / "paper.toml").write_text(PAPER)
    run = opened(tuned_file, *TUNED, "report.published=paper.toml")
    run.all()
    results = Results.read(run.project.report_folder / "results.json")
    assert [layer.name for layer in results.layers] == ["fc1", "fc2"]
    for layer in results.layers:
        plain, tuned = layer.score_curves, layer.finetuned_curves
        assert [c.method for c in tuned] == [c.method for c in plain] == ["svd", "momasp_node"]
        for curve in tuned:
            for point in curve.points:
                found = by_hand(run.project, layer.name, Method(curve.method), point.size)
                assert point.score == found, (layer.name, curve.method, point.size)
        for before, after in zip(plain, tuned, strict=True):
            assert [(p.size, p.pair_parameters) for p in before.points] == [
                (p.size, p.pair_parameters) for p in after.points
            ]
    (table,) = run.project.report_folder.glob("tables/*fc1*scores.csv")
    keys = [line.partition(",")[0] for line in table.read_text().splitlines()]
    assert keys[3:5] == ["svd", "svd_finetuned"]
    svd, momasp = results.published[0].rows[:2]
    assert (svd.label, momasp.label) == ("SVD, fine-tuned", "MoMaSP (node), fine-tuned")
    points = {curve.method: curve.points for curve in results.layers[0].finetuned_curves}
    assert svd.ours == (points["svd"][0].score,)
    assert momasp.ours == (max(points["momasp_node"], key=lambda point: point.size).score,)
    assert "SVD, fine-tuned" in (run.project.report_folder / "report.html").read_text()
    assert not run.project.unfinished.exists()


def test_a_batch_is_loaded_once_for_all_networks_of_a_layer(tuned_file):
    """Whole passes: three networks of the run. One more a layer, one for the fine-tuned ones, and of the training data
    one for the saved network's each of two epochs, and one for all the others. A first batch each time that what comes
    after a cut is tried."""
    run = opened(tuned_file, *TUNED)
    run.finetune()
    loaded = sys.modules["tiny_tuned"].LOADED
    loaded.clear()
    run.evaluate()
    assert loaded.count("test") == 3 + 2 + 1 + 2
    assert loaded.count("training") == 3 + 1


@pytest.mark.parametrize(
    "override",
    ["finetune.batches=tiny_tuned:training_in_a_list", "evaluate.cache=0MiB", "evaluate.batches=tiny_run:test"],
)
def test_how_batches_are_loaded_decides_no_score(tuned_file, override):
    run = opened(tuned_file, *TUNED)
    expected = run.evaluate()
    run.project.evaluation.unlink()
    found = opened(tuned_file, *TUNED, override).evaluate()
    assert found.curves == expected.curves
    assert found.finetuned == expected.finetuned


def test_killed_midway_it_goes_on_after_the_last_network(tuned_file):
    """Three networks of the run, then six as they are: two more, fine-tuned, and the kill."""
    settings = (*TUNED, "evaluate.metric=tiny_tuned:deadly", "evaluate.higher=true")
    options = [word for setting in settings for word in ("--set", setting)]
    command = ("evaluate", tuned_file, *options)
    assert cli(*command, env={"TINY_SCORES_TO_LIVE": "11"}).returncode == -signal.SIGKILL
    again = cli(*command, env={"TINY_SCORES_TO_LIVE": "7"})
    assert again.returncode == 0, again.stderr
    assert "evaluate: resuming after 8 networks" in again.stderr
    interrupted = opened(tuned_file, *settings).evaluate()
    whole = opened(tuned_file, *TUNED).evaluate()
    assert interrupted.curves == whole.curves
    assert interrupted.finetuned == whole.finetuned


def test_the_cost_is_said_before(tuned_file):
    found = dry_run(opened(tuned_file, *TUNED).project)
    found.require()
    assert found.cost.trials == "evaluate: 6 networks, and the 3 of the run; fine-tune: 7 of these, 2 epochs each"
    assert [facts.key for facts in found.loaders][-2:] == ["finetune", "evaluate"]
    assert [name for name, done in found.steps if done] == ["solve", "compress", "finetune", "evaluate", "report"]


def test_without_a_section_there_is_nothing_to_tune_by(finished_file):
    with pytest.raises(ConfigError, match=r"evaluate.finetune: .* add a \[finetune\] section"):
        opened(finished_file, "evaluate.finetune=true")


# --- where forward passes run -------------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_named(finished_file):
    count = torch.cuda.device_count()
    project = opened(finished_file, f"network.device=cuda:{count}").project
    with pytest.raises(ConfigError, match=rf"network.device: device 'cuda:{count}' does not exist"):
        project.network  # noqa: B018  # it is loaded when it is asked for
    with pytest.raises(ConfigError, match=r"network.device: .* got 'gpu'"):
        opened(finished_file, "network.device=gpu")


def test_the_network_is_put_there_and_training_has_it_as_built(finished_file):
    run = opened(finished_file, "network.device=cpu")
    assert next(run.project.network.parameters()).device == torch.device("cpu")
    steps = dry_run(run.project).steps
    assert ("train", False) in steps  # trained on another device, it is the same network
    assert ("capture target", True) in steps  # whose rows have other last bits


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_a_whole_run_on_a_gpu(tuned_file):
    run = opened(tuned_file, *TUNED, "network.device=cuda", "run.output=gpu")
    run.all()
    assert next(run.project.network.parameters()).is_cuda
    assert Results.read(run.project.report_folder / "results.json").layers[0].finetuned_curves
