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


def numbered(files, n):
    """Pictures of which each says in its first pixel which it is."""
    pixels = np.ones((n, 28, 28), np.float32)
    pixels[:, 0, 0] = np.arange(n)
    return files.Pictures(pixels, np.arange(n) % 10)


def numbers(rows):
    return rows.inputs[:, 0, 2, 2].long().tolist()


def test_mnist_is_padded_by_two_and_split_as_in_the_notebook(lenet, monkeypatch):
    asked = []

    def mnist(split, root):
        asked.append((split, root))
        return numbered(lenet.files, 12)

    monkeypatch.setattr(lenet.data, "mnist", mnist)
    monkeypatch.setattr(lenet.data, "VALIDATION", 5)
    monkeypatch.setattr(lenet.data, "STATISTICS", 3)
    rows = lenet.data.rows_for_training(seed=0, data="mnist", root="elsewhere")
    assert rows.inputs.shape == (7, 1, 32, 32)
    assert numbers(rows) == list(range(5, 12))
    assert rows.inputs[:, :, 2:30, 2:30].min() == 1
    assert rows.inputs.sum() == rows.inputs[:, :, 2:30, 2:30].sum()
    drawn = [numbers(lenet.data.rows_for_statistics(seed=seed, data="mnist")) for seed in range(8)]
    assert all(len(set(one)) == 3 and set(one) < set(range(5)) for one in drawn)
    assert len({tuple(one) for one in drawn}) > 1
    assert asked[0] == ("train", "elsewhere")
    assert numbers(lenet.data.rows_for_test(seed=0, data="mnist")) == list(range(12))
    assert asked[-1] == ("test", lenet.files.DATA)


def test_an_unknown_data_set_is_refused(lenet):
    with pytest.raises(ValueError, match="must be 'mnist', 'mnist-5000' or 'digits', got 'letters'"):
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


def test_the_notebooks_recipe_is_its_steps_from_its_weights(lenet):
    network = lenet.network.build()
    lines = []
    lenet.network.train(network, seed=0, report=lines.append, recipe="notebook", steps=200)
    assert len(lines) == 2
    assert len(list(lenet.network._draws(lenet.data.rows_for_training(seed=0), 4))) == 4
    lenet.network._start(network)
    weights = network.fc1.weight.detach()
    assert weights.abs().max() <= 0.2
    assert weights.std() == pytest.approx(0.088, abs=0.002)  # of a normal distribution of 0.1 cut at 0.2
    assert not network.fc1.bias.any()
    with pytest.raises(ValueError, match="recipe: must be 'tutorial' or 'notebook', got 'adam'"):
        lenet.network.train(network, seed=0, report=lines.append, recipe="adam")


@pytest.mark.parametrize(("ranks", "parameters"), [((15, 15, 10), 14_586), ((10, 10, 10), 10_966)])
def test_the_comparison_has_the_authors_ranks(lenet, ranks, parameters):
    found = lenet.comparing.measure(0, ranks=ranks, training={"epochs": 4}, data="digits")
    assert {name: count for name, (count, _) in found.items()} == {
        "uncompressed": 61_706,
        "SVD": parameters,
        "DALR": parameters,
    }
    assert all(0 <= value <= 100 for _, value in found.values())
    assert f"| DALR | {parameters:,} |" in lenet.comparing.table([found, found])


def test_the_notebooks_run_file_shows_its_stored_output_beside_ours(lenet, tmp_path, monkeypatch):
    monkeypatch.setattr(lenet.data, "mnist", lambda *_: numbered(lenet.files, 60))
    monkeypatch.setattr(lenet.data, "VALIDATION", 20)
    settings = [f'run.output="{tmp_path}"', "network.train_options.steps=3", "evaluate.ranks=[4]"]
    project = Project(load_config(LENET / "mnist.toml", settings), LENET)
    results = json.loads((Run(project).all().parent / "results.json").read_text())
    (table,) = results["published"]
    stored, ours = table["rows"]
    assert stored["published"] == pytest.approx([10966, 10966 / 61_706, 0.9233, 0.8643], rel=1e-4)
    assert ours["ours"][:2] == pytest.approx(stored["published"][:2], rel=1e-4)


def test_the_run_file_runs_to_its_report(tmp_path):
    settings = [f'run.output="{tmp_path}"', "network.train_options.epochs=1", "evaluate.ranks=[4]"]
    project = Project(load_config(LENET / "run.toml", settings), LENET)
    report = Run(project).all()
    assert report.exists()
    assert [layer.in_features for layer in load_compressed(project)] == [400, 15, 120, 15, 84, 10]
    provenance = json.loads((report.parent / "results.json").read_text())["provenance"]["configuration"]
    assert provenance["solve"]["ridge_absolute"] == 10.0
    assert provenance["network"]["options"] == {"data": "digits"}
