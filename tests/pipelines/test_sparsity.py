"""Group sparsity while training: the proximal step, the groups that `Structure` gives, and what is taken out."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network import Structure, parameter_count

SPARSITY = Path(__file__).parents[2] / "pipelines" / "sparsity"


@pytest.fixture
def sparsity(monkeypatch):
    for folder in ("shared", "lenet", "sparsity"):
        monkeypatch.syspath_prepend(SPARSITY.parent / folder)
    names = ("groups", "training", "experiment")
    return SimpleNamespace(**{name: importlib.import_module(f"sparsity_{name}") for name in names})


@pytest.fixture
def convolutional():
    """Two convolutions with batch norm, the second's channels tied to a shortcut, and dense layers behind."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
            self.second, self.shortcut = nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(4, 5, 1)
            self.dense, self.out = nn.Linear(5 * 4, 6), nn.Linear(6, 3)

        def forward(self, x):
            x = torch.relu(self.norm(self.first(x)))
            x = torch.relu(self.second(x) + self.shortcut(x))
            x = torch.flatten(nn.functional.max_pool2d(x, 2), 1)
            return self.out(torch.relu(self.dense(x)))

    model = Net().eval()
    with torch.no_grad():
        model.norm.running_mean.uniform_(-1, 1)
        model.norm.bias.uniform_(-1, 1)
    return Structure.of(model, torch.randn(2, 1, 4, 4))


def plain():
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(one=nn.Linear(3, 4), relu=nn.ReLU(), two=nn.Linear(4, 2))).eval()
    return Structure.of(model, torch.randn(2, 3))


def test_the_proximal_step_solves_what_it_stands_for(sparsity):
    structure = plain()
    groups = sparsity.groups.NeuronGroups.of(structure, "one")
    layer, step = structure.model.one, 0.15
    before = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach().double().numpy()
    groups.shrink(step)
    after = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach().double().numpy()
    for start, found in zip(before, after, strict=True):

        def objective(x, start=start):
            return 0.5 * np.sum((x - start) ** 2) + step * np.sqrt(4) * np.linalg.norm(x)

        close = {"maxiter": 4000, "xatol": 1e-9, "fatol": 1e-12}
        rivals = [minimize(objective, guess, method="Nelder-Mead", options=close).x for guess in (start, start / 2)]
        assert objective(found) <= min(map(objective, rivals)) + 1e-6


def test_a_long_step_is_zero_and_stays_so(sparsity):
    groups = sparsity.groups.NeuronGroups.of(plain(), "one")
    groups.shrink(100.0)
    assert not groups.norms.any()
    groups.shrink(100.0)
    assert all(not parameter.any() for parameter, _ in groups.parts)
    assert sparsity.groups.live(groups) == 0


def test_groups_are_rows_biases_and_what_acts_on_a_channel_alone(sparsity, convolutional):
    model = convolutional.model
    first, second, dense = sparsity.groups.groups_of(convolutional, ["first", "second", "shortcut", "dense"])
    assert (first.parameters, second.parameters, dense.parameters) == (9 + 2, 4 * 9 + 1 + 4 + 1, 20 + 1)
    expected = model.first.weight.square().flatten(1).sum(1) + model.norm.weight.square() + model.norm.bias.square()
    torch.testing.assert_close(first.norms, expected.sqrt())
    with pytest.raises(UnsupportedLayerError):
        sparsity.groups.NeuronGroups.of(convolutional, "out")


def test_zero_groups_are_taken_out_exactly(sparsity, convolutional):
    model = convolutional.model
    groups = sparsity.groups.groups_of(convolutional, ["first", "second", "dense"])
    gone = {"first": [1], "second": [0, 3], "dense": [2, 4, 5]}
    with torch.no_grad():
        for one in groups:
            for parameter, rows in one.parts:
                parameter[rows[gone[one.layer]]] = 0.0
    small = sparsity.groups.without_zero_groups(convolutional, groups)
    assert (small.first.out_channels, small.second.out_channels, small.dense.out_features) == (3, 3, 3)
    assert parameter_count(small) < parameter_count(model)
    pictures = torch.randn(64, 1, 4, 4)
    with torch.inference_mode():
        torch.testing.assert_close(small(pictures), model(pictures), rtol=1e-5, atol=1e-6)


def test_a_layer_without_any_neuron_left_keeps_one_and_without_zeros_all(sparsity):
    structure = plain()
    groups = sparsity.groups.groups_of(structure, ["one"])
    same = sparsity.groups.without_zero_groups(structure, groups)
    assert parameter_count(same) == parameter_count(structure.model)
    groups[0].shrink(100.0)
    small = sparsity.groups.without_zero_groups(structure, groups)
    rows = torch.randn(5, 3)
    assert small.one.out_features == 1
    with torch.inference_mode():
        torch.testing.assert_close(small(rows), structure.model(rows))


def test_a_penalty_empties_neurons_and_none_does_not(sparsity, monkeypatch):
    rows = sparsity.experiment.rows_for_training(seed=0, data="digits")
    few = type(rows)(rows.inputs[:128], rows.labels[:128], 64)
    before = torch.get_rng_state()
    monkeypatch.setattr(sparsity.training, "LEARNING_RATE", 0.02)

    def left(strength, seed=0):
        _, groups = sparsity.training.train(few, seed=seed, strength=strength, epochs=3)
        return [sparsity.groups.live(one) for one in groups]

    assert left(0.0) == [6, 16, 120, 84]
    assert left(0.5)[2] < 120
    assert torch.equal(torch.get_rng_state(), before)
    weights = [
        sparsity.training.train(few, seed=seed, strength=0.0, epochs=1)[0].model.fc1.weight for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_experiment_compares_strengths_and_chooses_on_validation(sparsity, monkeypatch, tmp_path):
    monkeypatch.setattr(sparsity.experiment, "RUNS", tmp_path)
    monkeypatch.setattr(sparsity.experiment, "STRENGTHS", (0.0, 0.01))
    found = sparsity.experiment.measure(0, "digits", epochs=1)
    assert sparsity.experiment.measure(0, "digits", epochs=1) == found
    assert len(list(tmp_path.iterdir())) == 1
    for figures in found.values():
        assert figures["test (%)"] == pytest.approx(figures["before zero neurons go (%)"])
        assert {"SVD at 50% of them, test (%)", "DALR at 25% of them, test (%)"} <= figures.keys()
    of = {"0": 90.0, "0.1": 91.0, "0.2": 90.0, "0.3": 80.0}
    fake = {name: {"validation (%)": value} for name, value in of.items()}
    assert sparsity.experiment.chosen(fake) == "0.2"
    assert "| chosen on validation |" in sparsity.experiment.table([found, found])
