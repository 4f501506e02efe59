"""[compress] target = "stream" in a run file: as in Python, killed between passes, skipped, reported, refused."""

import pytest
import torch
from notes import Notes

import dalr_stream as ds
from dalr_stream.errors import ConfigError
from dalr_stream.workflow.results.results import results
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps import sequential as sequence_step
from dalr_stream.workflow.steps.sizes.compression import Compression

RESIDUAL = """

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(12, 10)
        self.fc2 = nn.Linear(10, 10)
        self.fc3 = nn.Linear(10, COLOURS)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        hidden = torch.relu(self.fc1(x))
        return self.fc3(torch.relu(hidden + self.drop(self.fc2(hidden))))


def residual():
    return Residual()
"""
SETTING = [
    'compress.order="sequential"',
    'compress.target="stream"',
    'compress.fc2.method="dalr_anchored_affine"',
    "compress.fc2.size=3",
    'solve.methods=["dalr_anchored_affine"]',
]


@pytest.fixture
def residual_file(run_file):
    module = run_file.parent / "tiny_run.py"
    module.write_text(module.read_text() + RESIDUAL)
    run_file.write_text(
        run_file.read_text().replace("tiny_run:build", "tiny_run:residual").replace("[1, 2, 4, 8]", "[2]")
    )
    return run_file


def opened(run_file, *overrides):
    notes = Notes()
    return Run(Project(load_config(run_file, [*SETTING, *overrides]), run_file.parent), progress=notes), notes.said


def saved(run):
    return ds.load(run.project.compressed, run.project.code.build).state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_step_is_the_python_api_and_the_report_names_what_was_solved_so(residual_file):
    run, said = opened(residual_file)
    run.all()
    choices = {name: ds.LayerChoice("dalr_anchored_affine", size, 1e-3) for name, size in (("fc1", 4), ("fc2", 3))}
    batches, every = run.project.code.batches("target"), ds.Folding(ds.HoldoutRule(0.0))
    found, ordinary = (
        ds.compress_sequentially(run.project.network, batches, choices, target=target, folding=every)
        for target in ("stream", "outputs")
    )
    assert same(saved(run), found.network.state_dict())
    assert not same(saved(run), ordinary.network.state_dict())
    gain = Compression.read(run.project.compression).gain
    assert gain.towards_stream == ("fc2",)
    assert any("passes over the data: fc1; fc2, towards the residual stream: fc2;" in line for line in said)
    assert any("towards the residual stream: fc2" in decision for decision in results(run.project).decisions)
    again, said = opened(residual_file)
    again.compress()
    assert said[-1] == "compress: up to date, skipped"
    other, said = opened(residual_file, 'compress.target="outputs"')
    other.compress()
    assert same(saved(other), ordinary.network.state_dict())


def test_killed_between_passes_it_goes_on_to_the_same_network_and_record(residual_file, monkeypatch):
    keep, third = sequence_step._keep, ['network.layers=["fc[123]"]', 'compress.fc3.method="dalr_anchored_affine"']
    plan = [*third, "compress.fc3.size=2"]
    expected, _ = opened(residual_file, *plan)
    expected.train()
    expected.accumulate()
    expected.compress()
    weights, record = saved(expected), Compression.read(expected.project.compression)
    expected.project.compression.unlink()

    def kept_and_killed(project, state, fingerprint):
        keep(project, state, fingerprint)
        if len(state.layers) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(sequence_step, "_keep", kept_and_killed)
    with pytest.raises(KeyboardInterrupt):
        opened(residual_file, *plan)[0].compress()
    monkeypatch.undo()
    run, said = opened(residual_file, *plan)
    run.compress()
    assert "compress: resuming after fc1, fc2" in said
    assert same(saved(run), weights)
    assert Compression.read(run.project.compression) == record


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            'compress.order="parallel"',
            r'target = "stream" mends what layers before have lost: add order = "sequential"',
        ),
        ('compress.target="residual"', r"compress\.target: must be .*got 'residual'"),
    ],
)
def test_what_contradicts_itself_is_named(run_file, override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(run_file, [*SETTING, override])
