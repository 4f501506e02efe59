"""Masks, chosen positions and watched outputs in a run file."""

import numpy as np
import pytest

from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import ConfigError, FingerprintMismatchError, InvalidInputError
from dalr_stream.report.records.results import Results
from dalr_stream.storage.manifest import Manifest
from dalr_stream.workflow.dry_run import dry_run
from dalr_stream.workflow.results.tables import cost_table, layer_table
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps import capture

CODE = """
import torch
from torch import nn


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x, attention_mask=None):
        h = torch.relu(self.fc1(x))
        return self.fc2((h if attention_mask is None else h * attention_mask[..., None]).mean(1))


def build():
    return Tokens()


def train(model, *, seed, report):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in (model.fc1, model.fc2):
            module.reset_parameters()


def target(*, seed, samples=30, positions=5):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, positions, 8, generator=generator)
    lengths = torch.randint(1, positions + 1, (samples,), generator=generator)
    mask = (torch.arange(positions) < lengths[:, None]).long()
    return [{"x": a, "attention_mask": b} for a, b in zip(x.split(7), mask.split(7), strict=True)]


def first_two(batch):
    return torch.arange(batch["x"].shape[1]).expand(batch["x"].shape[:2]) < 2


def test(*, seed):
    x = torch.randn(20, 5, 8, generator=torch.Generator().manual_seed(seed + 1))
    return [(x, torch.zeros(20, dtype=torch.long))]
"""

RUN_FILE = """
[run]
name = "tokens"
output = "out"
seed = 3

[network]
build = "token_run:build"
train = "token_run:train"
layers = ["fc*"]
outputs = ["fc1"]

[domains.target]
batches = "token_run:target"

[capture]
mask = "attention_mask"
most_per_sample = 3

[solve]
methods = ["svd", "dalr_anchored_affine"]

[compress]
fc1 = { method = "dalr_anchored_affine", size = 2 }

[evaluate]
batches = "token_run:test"
ranks = [1, 2]
"""


@pytest.fixture
def run_file(tmp_path):
    (tmp_path / "token_run.py").write_text(CODE)
    path = tmp_path / "run.toml"
    path.write_text(RUN_FILE)
    return path


def opened(run_file, *overrides, fresh=False):
    return Run(Project(load_config(run_file, overrides), run_file.parent), fresh=fresh)


def lengths_of(run):
    return np.concatenate([batch["attention_mask"].sum(1).numpy() for batch in run.project.code.batches("target")])


def test_a_run_watches_what_its_file_says_and_solves_from_the_inputs(run_file):
    run, direct = opened(run_file), opened(run_file, "capture.keep_activations=false", 'run.output="direct"')
    run.all()
    direct.all()
    results = Results.read(run.project.report_folder / "results.json")
    assert [layer.name for layer in results.layers] == ["fc1", "fc2"]
    store, twin = StoreView.open(run.project.store), StoreView.open(direct.project.store)
    for stream in ("fc1", "fc2", "fc1@outputs"):
        assert store.all_rows("target", stream).same_bits(twin.all_rows("target", stream))
    rows = int(np.minimum(lengths_of(run), 3).sum())
    assert store.all_rows("target", "fc1").count == store.all_rows("target", "fc1@outputs").count == rows
    assert store.all_rows("target", "fc2").count == 30
    assert store.all_rows("target", "fc1@outputs").features == 6
    chosen = "rows that mask 'attention_mask' keeps, at most 3 a sample by seed 3"
    assert Manifest.read(run.project.store).domains["target"].choice == chosen
    assert results.provenance["domains"]["target"]["choice"] == chosen


def test_outputs_asked_for_later_are_refused_by_name_and_then_captured(run_file):
    without = opened(run_file, "network.outputs=[]")
    without.train()
    without.accumulate()
    changed = opened(run_file)
    with pytest.raises(
        FingerprintMismatchError, match=r"holds layers fc1, fc2, .* watches fc1, fc1@outputs, fc2.*--fresh"
    ):
        changed.accumulate()
    opened(run_file, fresh=True).accumulate()
    assert StoreView.open(changed.project.store).all_rows("target", "fc1@outputs").features == 6


@pytest.mark.parametrize("keep", ["false", "true"])
def test_other_rows_are_refused_and_replaced_only_when_asked(run_file, keep, contents):
    run = opened(run_file, f"capture.keep_activations={keep}")
    run.train()
    run.accumulate()
    before = contents(run.project.store)
    other = opened(run_file, f"capture.keep_activations={keep}", "capture.most_per_sample=2")
    with pytest.raises(FingerprintMismatchError, match=r"at most 3 a sample .* at most 2 a sample .*--fresh replaces"):
        other.accumulate()
    assert contents(run.project.store) == before
    opened(run_file, f"capture.keep_activations={keep}", "capture.most_per_sample=2", fresh=True).accumulate()
    moments = StoreView.open(run.project.store).all_rows("target", "fc1")
    assert moments.count == np.minimum(lengths_of(run), 2).sum()


def test_a_function_of_the_batch_may_be_the_mask_and_its_code_counts(run_file):
    run = opened(run_file, 'capture.mask="token_run:first_two"', 'network.layers=["fc1"]')
    run.train()
    run.accumulate()
    assert StoreView.open(run.project.store).all_rows("target", "fc1").count == 60
    before = capture.made_from(run.project, "target")
    assert before != capture.made_from(opened(run_file, 'network.layers=["fc1"]').project, "target")
    with pytest.raises(ConfigError, match=r"capture\.mask: module 'token_run' has no function 'nothing'"):
        opened(run_file, 'capture.mask="token_run:nothing"').accumulate()
    with pytest.raises(InvalidInputError, match="the batch has no 'padding', it has x, attention_mask"):
        opened(run_file, 'capture.mask="padding"', 'run.output="other"').all()


def test_each_setting_is_part_of_what_a_capture_is_made_from(run_file):
    def made_from(*overrides):
        return capture.made_from(opened(run_file, *overrides).project, "target")

    assert made_from("capture.most_per_sample=2") != made_from() != made_from("network.outputs=[]")
    assert made_from('capture.mask="x"') != made_from()
    assert made_from("capture.prove=false") != made_from() == made_from("capture.prove=true")
    assert made_from('capture.mask={"fc*"="attention_mask"}') != made_from('capture.mask={"fc1"="attention_mask"}')


def test_layers_have_masks_of_their_own(run_file):
    run = opened(run_file, 'capture.mask={fc1="attention_mask", fc2="token_run:first_two"}', "network.outputs=[]")
    assert run.project.config.capture.mask_functions == ("token_run:first_two",)
    assert run.project.code.rows.words.startswith(
        "rows that mask 'attention_mask' of 'fc1' and mask token_run:first_two"
    )


def test_a_layer_that_cannot_be_replaced_is_named_before_anything_is_recorded(run_file):
    module = run_file.parent / "token_run.py"
    code = module.read_text()
    held = code.replace("self.fc1(", "self.order[0](").replace(
        "    def forward",
        """        self.order = [self.fc1]

    def forward""",
    )
    assert held != code
    module.write_text(held)
    for overrides in ((), ("compress={}",)):
        with pytest.raises(ConfigError, match=r"layer 'fc1': cannot be replaced: the network also holds it in its"):
            dry_run(opened(run_file, *overrides).project).require()
    assert not (run_file.parent / "out").exists()


def test_the_tables_show_both_sides(run_file, capsys):
    from rich.console import Console

    run = opened(run_file)
    run.train()
    for table in (layer_table(run.project, run.project.network), cost_table(run.project.estimate())):
        Console(width=200).print(table)
        shown = capsys.readouterr().out
        assert "fc1@outputs" in shown
    assert "105" in shown  # 5 batches of at most 7 samples, 3 rows each


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("capture.most_per_sample=0", r"capture\.most_per_sample: .* got 0"),
        ('capture.mask=""', r"capture\.mask: .* got ''"),
        ("network.output=[]", r"unknown key 'network\.output'; nearest: 'outputs'"),
    ],
)
def test_bad_settings_are_named(run_file, override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(run_file, [override])
