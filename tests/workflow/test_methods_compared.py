"""`evaluate.compare`: the whole network by other methods, at the rule of [compress], beside the one that is saved."""

import pytest
from notes import Notes
from tiny_run_file import write_run

from dalr_stream.errors import ConfigError
from dalr_stream.network.surgery.compress import parameter_count
from dalr_stream.numerics.methods import Method
from dalr_stream.workflow.dry_run import dry_run
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.steps import evaluate

METHODS = 'solve.methods=["svd", "dalr_anchored_affine", "spectral"]'
NO_RANKS = "evaluate.ranks=[]"
COMPARED = 'evaluate.compare=["svd", "spectral"]'


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    path = write_run(tmp_path_factory.mktemp("compared") / "run")
    text = path.read_text()
    path.write_text(
        text[: text.index("[compress]")] + '[compress]\nparams = "60%"\n\n' + text[text.index("[evaluate]") :]
    )
    Run.open(path, set=[METHODS]).accumulate()
    return path


def opened(run_file, *overrides, notes=None):
    return Run.open(run_file, set=[METHODS, NO_RANKS, *overrides], progress=notes or Notes())


@pytest.fixture(scope="module")
def found(run_file):
    return opened(run_file, COMPARED).evaluate()


def test_each_method_has_the_size_and_score_of_a_run_that_saves_it(run_file, found):
    labels = [size.label.partition(":")[0] for size in found.sizes]
    assert labels == ["uncompressed", "compressed", "compared", "compared"]
    for method, compared in zip(("svd", "spectral"), found.sizes[2:], strict=True):
        alone = opened(run_file, f"compress.method={method}", f'run.output="{method}"', 'run.name="alone"')
        alone.accumulate()
        saved = alone.evaluate().sizes[1]
        assert (saved.parameters, saved.score, saved.macs) == (compared.parameters, compared.score, compared.macs)
        assert saved.label.partition(":")[2] == compared.label.partition(":")[2]
    assert found.sizes[2].label.startswith("compared: fc1 SVD, ")


def test_nothing_but_the_run_s_own_network_is_saved(run_file, found):
    run = opened(run_file, COMPARED)
    run.report()
    page = (run.project.report_folder / "report.html").read_text()
    for size in found.sizes:
        assert size.label in page
    assert len(list((run_file.parent / "out").rglob("*.safetensors"))) == 2  # as trained, and compressed
    assert parameter_count(run.project.network) == found.sizes[0].parameters


@pytest.mark.usefixtures("found")
def test_an_interrupted_comparison_resumes_after_the_last_method(run_file, monkeypatch):
    notes = Notes()
    real, done = evaluate.by_method, []

    def stopped(project, store, method, progress):
        if done:
            raise KeyboardInterrupt
        done.append(method)
        return real(project, store, method, progress)

    other = (COMPARED, "evaluate.drop=0.02")
    monkeypatch.setattr(evaluate, "by_method", stopped)
    with pytest.raises(KeyboardInterrupt):
        opened(run_file, *other).evaluate()
    done.clear()
    again = opened(run_file, *other, notes=notes).evaluate()
    assert done == [Method.SPECTRAL]
    assert "evaluate: resuming after 1 networks" in notes.said
    monkeypatch.undo()
    assert again == opened(run_file, *other).evaluate()


def test_a_dry_run_says_how_many_and_plans_their_memory(run_file):
    plain, compared = (dry_run(opened(run_file, *more).project).cost for more in ((), (COMPARED,)))
    assert compared.trials.endswith("and the 2 of the run, and 2 by methods to compare, each chosen as in compress")
    peaks = [next(step.peak_bytes for step in cost.memory if step.step == "evaluate") for cost in (plain, compared)]
    assert peaks[1] > peaks[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (['evaluate.compare=["momasp_node"]'], r"evaluate\.compare: 'momasp_node' is not in solve\.methods"),
        ([COMPARED, 'compress.order="sequential"'], r"evaluate\.compare: all layers are compressed at once"),
        (
            [COMPARED, 'compress={singular_values = "50%", method = "svd"}'],
            r"evaluate\.compare: 'spectral' is a selection, which has no singular values",
        ),
        ([COMPARED, "compress={}"], r"evaluate\.compare: methods are compared at the sizes that a rule"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(run_file, overrides, message):
    with pytest.raises(ConfigError, match=message):
        opened(run_file, *overrides)


def test_layers_with_a_method_of_their_own_take_the_one_compared(run_file):
    named = opened(run_file, 'compress.fc1={method = "spectral"}', 'evaluate.compare=["svd"]')
    config = named.project.config.by_method(Method.SVD)
    assert (config.compress.layers, config.compress.method, config.compress.share) == ({}, Method.SVD, 0.6)
