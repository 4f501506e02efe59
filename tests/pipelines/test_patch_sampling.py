"""The script that says what a few positions of each picture cost, on a few small crops."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

FOLDER = Path(__file__).parents[2] / "pipelines" / "digits"


@pytest.fixture
def sampling(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield importlib.import_module("patch_sampling")
    for name in ("patch_sampling", "digits_data", "digits_trained"):
        sys.modules.pop(name, None)


def test_crops_are_cut_out_of_both_photographs(sampling):
    crops = sampling.photographs(0, 6, 9)
    assert torch.equal(crops, sampling.photographs(0, 6, 9))
    assert not torch.equal(crops, sampling.photographs(1, 6, 9))
    for number, crop in enumerate(crops):
        photograph = load_sample_images().images[number % 2]
        pixels = np.round(255 * crop.permute(1, 2, 0).numpy()).astype(np.uint8)
        rows, columns = np.nonzero((photograph[:-8, :-8] == pixels[0, 0]).all(axis=2))
        windows = (photograph[y : y + 9, x : x + 9] for y, x in zip(rows, columns, strict=True))
        assert any(np.array_equal(window, pixels) for window in windows)


def test_fewer_positions_cost_more_and_every_one_nothing(sampling):
    case = sampling.crops_case(crops=40, side=9)
    found = sampling.losses(case, range(6))
    assert list(found) == ["1 of 81", "4 of 81", "16 of 81", "64 of 81", "all 81, half of the pictures"]
    off = [np.mean([one.covariance for one in seeds]) for seeds in found.values()]
    assert off[0] > off[1] > off[2] > off[3] > 0.0
    extra = [np.mean([one.errors[1] for one in seeds]) for seeds in found.values()]
    assert extra[0] > extra[1] > extra[2] > 0.0
    lines = sampling.loss_table(case, found).splitlines()
    assert lines[0].startswith("| photographs, 9 x 9 |")
    assert lines[2].startswith(f"| 1 of 81 | {100 * off[0]:.2f} +- ")
    assert f" | +{100 * extra[0]:.2f} +- " in lines[2]


def test_a_random_half_is_as_far_from_the_whole_as_the_whole_from_what_it_was_drawn_from(sampling):
    """The law behind the last row, here of covariances: fresh sets of pictures against their common mean."""
    case = sampling.crops_case(crops=40, side=9)
    half = [one.covariance for one in sampling.losses(case, range(30))["all 81, half of the pictures"]]
    fresh = [case.moments(case.read(seed), None).covariance for seed in range(30)]
    middle = np.mean(fresh, axis=0)
    apart = [np.linalg.norm(one - middle) / np.linalg.norm(middle) for one in fresh]
    assert 0.5 < np.sqrt(np.mean(np.square(half)) / np.mean(np.square(apart))) < 2.0


def test_the_jackknife_and_the_spread_are_measured_on_fresh_pictures(sampling):
    case = sampling.crops_case(crops=40, side=9)
    spread, said = sampling.jackknifed(case, 4, range(4))
    errors = []
    for seed in range(4):
        moments = case.moments(case.read(seed), 4, seed=seed)
        curve = case.solve(moments).errors(moments)
        weight = case.convolution.weight.detach().flatten(1).double().numpy()
        errors.append(np.sqrt(curve[4] / np.trace(weight @ moments.second_moment @ weight.T) / moments.count))
    assert spread == pytest.approx(np.std(errors, ddof=1))
    assert 0.0 < said < 10 * spread
