"""The LeNet pipeline: the published size, the pictures' layout, the comparison and the run file."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dalr_stream as ds
from dalr_stream.network.surgery.compress import parameter_count
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project

LENET = Path(__file__).parents[2] / "pipelines" / "lenet"


def load_compressed(project):
    small = ds.load(project.compressed, project.code.build)
    return [module for module in small.modules() if isinstance(module, torch.nn.Linear)]


@pytest.fixture
def lenet(monkeypatch):
    monkeypatch.syspath_prepend(LENET.parent / "shared")
    monkeypatch.syspath_prepend(LENET)
    modules = {
        "data": "lenet_data",
        "network": "lenet_network",
        "comparing": "lenet_comparison",
        "files": "digit_files",
    }
    return SimpleNamespace(**{short: importlib.import_module(name) for short, name in modules.items()})


def test_the_network_has_the_published_number_of_parameters(lenet):
    assert parameter_count(lenet.network.build()) == 61_706


def test_a_network_of_another_size_is_refused(lenet, monkeypatch):
    monkeypatch.setattr(lenet.network, "PARAMETERS", 5)
    with pytest.raises(RuntimeError, match="must have 5 parameters, this one has 61,706"):
        lenet.network.build()


def test_digits_fill_the_middle_of_32_pixels(lenet):
    rows = lenet.data.rows_for_training(seed=0)
    assert rows.inputs.shape == (1000, 1, 32, 32)
    assert rows.inputs.min() >= 0
    assert rows.inputs.max() <= 1
    margin = rows.inputs.clone()
    margin[:, :, 4:28, 4:28] = 0
    assert not margin.any()
    assert len(lenet.data.rows_for_test(seed=0).labels) == 797


def test_mnist_is_padded_by_two(lenet, monkeypatch):
    pictures = lenet.files.Pictures(np.ones((3, 28, 28), np.float32), np.arange(3))
    monkeypatch.setattr(lenet.data, "mnist", lambda _: pictures)
    rows = lenet.data.rows_for_training(seed=0, data="mnist")
    assert rows.inputs.shape == (3, 1, 32, 32)
    assert rows.inputs.sum() == 3 * 28 * 28
    assert rows.inputs[:, :, 2:30, 2:30].min() == 1


def test_an_unknown_data_set_is_refused(lenet):
    with pytest.raises(ValueError, match="must be 'mnist' or 'digits', got 'letters'"):
        lenet.data.rows_for_training(seed=0, data="letters")


def test_training_learns_and_leaves_the_random_state(lenet):
    before = torch.get_rng_state()
    network = lenet.network.build()
    lenet.network.train(network, seed=0, report=lambda _: None, epochs=4)
    assert torch.equal(torch.get_rng_state(), before)
    rows = lenet.data.rows_for_training(seed=0)
    with torch.inference_mode():
        right = (network(rows.inputs).argmax(1) == rows.labels).float().mean()
    assert right > 0.5


def test_the_comparison_has_the_authors_ranks(lenet):
    found = lenet.comparing.measure(0, "digits", epochs=4)
    convolutions = 156 + 2416
    pairs = 15 * (400 + 120) + 120 + 15 * (120 + 84) + 84 + 10 * (84 + 10) + 10
    assert {name: count for name, (count, _) in found.items()} == {
        "uncompressed": 61_706,
        "SVD": convolutions + pairs,
        "DALR": convolutions + pairs,
    }
    assert all(0 <= value <= 100 for _, value in found.values())
    assert "| DALR | 14,586 |" in lenet.comparing.table([found, found])


def test_the_run_file_runs_to_its_report(tmp_path):
    settings = [f'run.output="{tmp_path}"', "network.train_options.epochs=1", "evaluate.ranks=[4]"]
    project = Project(load_config(LENET / "run.toml", settings), LENET)
    report = Run(project).all()
    assert report.exists()
    assert [layer.in_features for layer in load_compressed(project)] == [400, 15, 120, 15, 84, 10]
    provenance = json.loads((report.parent / "results.json").read_text())["provenance"]["configuration"]
    assert provenance["solve"]["ridge_absolute"] == 10.0
    assert provenance["network"]["options"] == {"data": "digits"}
