"""Quality from rankings: distortions, fast Siamese gradients, networks, LIVE's layout, and the comparison in small."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch import nn

from dalr_stream.errors import DatasetError

RANKINGS = Path(__file__).parents[2] / "pipelines" / "rankings"
NAMES = ("distortions", "data", "live", "network", "training", "experiment")


@pytest.fixture
def rankings(monkeypatch):
    for folder in ("shared", "rankings"):
        monkeypatch.syspath_prepend(RANKINGS.parent / folder)
    return SimpleNamespace(**{name: importlib.import_module(f"rankings_{name}") for name in NAMES})


class TestPictures:
    def test_every_distortion_is_worse_at_a_higher_level(self, rankings):
        found = rankings.data.ranked("train", 0, 6)
        assert found.pictures.shape == (24, 6, 3, 64, 64)
        assert set(found.kinds) == set(rankings.distortions.DISTORTIONS)
        assert torch.equal(found.scores[:, 0], torch.ones(24))
        for kind in rankings.distortions.DISTORTIONS:
            mean = found.scores[[one == kind for one in found.kinds]].mean(dim=0)
            assert (mean.diff() < 0).all(), kind

    def test_splits_and_seeds_differ_and_a_seed_is_the_same_again(self, rankings):
        one, again, other = (rankings.data.ranked("train", seed, 2).pictures for seed in (0, 0, 1))
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
        assert not torch.equal(one, rankings.data.ranked("test", 0, 2).pictures)

    def test_similarity_is_one_for_the_same_and_less_for_noise(self, rankings):
        rng = np.random.default_rng(0)
        picture = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        assert rankings.distortions.similarity(picture, picture) == pytest.approx(1.0)
        other = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        assert rankings.distortions.similarity(picture, other) < 0.2


class Counting(nn.Module):
    """A network that counts the pictures it is run on."""

    def __init__(self):
        super().__init__()
        self.inner, self.runs = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 1)), 0

    def forward(self, pictures):
        self.runs += len(pictures)
        return self.inner(pictures).squeeze(1)


def test_each_picture_is_run_once_and_the_gradient_is_that_of_the_pairs(rankings):
    torch.manual_seed(0)
    network, pictures = Counting(), torch.randn(3, 6, 3, 2, 2)
    slow = rankings.training.siamese_loss(network, pictures)
    assert network.runs == 3 * 15 * 2
    expected = torch.autograd.grad(slow, list(network.parameters()))
    network.runs = 0
    fast = rankings.training.ranking_loss(network(pictures.flatten(0, 1)).unflatten(0, (3, 6)))
    assert network.runs == 3 * 6
    torch.testing.assert_close(fast, slow)
    for one, other in zip(torch.autograd.grad(fast, list(network.parameters())), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_loss_is_of_pairs_in_the_wrong_order_or_too_close(rankings):
    numbers = torch.tensor([[3.0, 1.5, 1.0]])  # better by 1.5 and 2.0, and by 0.5 where 1 is asked for
    assert rankings.training.ranking_loss(numbers) == pytest.approx(0.5 / 3)
    assert rankings.training.ranking_loss(torch.tensor([[0.0, 2.0]])) == pytest.approx(3.0)


def test_the_shallow_network_has_the_sizes_of_the_slides(rankings):
    network = rankings.network.build()
    sizes, values = [], torch.zeros(1, 3, 227, 227)
    with torch.inference_mode():
        for layer in network:
            values = layer(values)
            sizes.append(tuple(values.shape[1:]))
    assert {(32, 57, 57), (32, 14, 14), (32, 12, 12), (32, 1, 1)} <= set(sizes)
    assert values.shape == (1,)
    assert rankings.network.build(side=64)(torch.zeros(2, 3, 64, 64)).shape == (2,)
    with pytest.raises(ValueError, match="needs at least 43 pixels, got 42"):
        rankings.network.build(side=42)
    assert rankings.network.build(side=43)(torch.zeros(2, 3, 43, 43)).shape == (2,)


@pytest.mark.parametrize(("factory", "parameters"), [("alexnet", 57_007_937), ("vgg16", 134_264_641)])
def test_the_other_networks_are_the_published_ones_with_one_output(rankings, factory, parameters):
    with torch.device("meta"):
        network = rankings.network.build(factory=factory)
    assert sum(one.numel() for one in network.parameters()) == parameters
    with pytest.raises(ValueError, match="must be one of shallow, alexnet, vgg16, got 'resnet'"):
        rankings.network.build(factory="resnet")


def test_correlations_are_of_values_and_of_ranks(rankings):
    class Says(nn.Module):
        def forward(self, numbers):
            return numbers[:, 0] ** 3

    numbers = torch.linspace(0.1, 2.0, 30)
    linear, rank = rankings.training.correlations(Says(), rankings.data.Scored(numbers[:, None, None], numbers))
    assert rank == pytest.approx(1.0)
    assert linear == pytest.approx(np.corrcoef(numbers**3, numbers)[0, 1], abs=1e-6)
    same = rankings.data.Scored(torch.zeros(4, 1, 1), torch.arange(4.0))
    assert rankings.training.correlations(Says(), same) == (0.0, 0.0)
    two = torch.tensor([[[0.0], [1.0]], [[1.0], [1.0]], [[0.0], [0.0]]])  # the mean over crops orders them
    assert rankings.training.correlations(Says(), rankings.data.Scored(two, torch.tensor([0.5, 1.0, 0.0])))[1] == 1.0


COUNTS = {"jp2k": 3, "wn": 2}


def write_live(root):
    for kind, count in COUNTS.items():
        (root / kind).mkdir(parents=True)
        lines = [f"scene{number % 2}.bmp img{number}.bmp 0.{number}" for number in range(count, 0, -1)]
        (root / kind / "info.txt").write_text("\n".join(lines) + "\n")
        for number in range(1, count + 1):
            Image.new("RGB", (50, 48), (40 * number, 90, 200)).save(root / kind / f"img{number}.bmp")
    savemat(root / "dmos.mat", {"dmos": np.array([[10.0, 20, 0, 40, 50]]), "orgs": np.array([[0, 0, 1, 0, 0]])})


def test_what_learnt_from_rankings_is_brought_to_the_unit_of_scores(rankings):
    torch.manual_seed(0)
    model = rankings.network.build(side=43)
    pictures = torch.rand(20, 3, 43, 43)
    with torch.no_grad():
        model[-2].weight *= 1000
        before = model(pictures)
        scores = 0.5 + 0.01 * before + 0.1 * torch.rand(20)
        rankings.training.calibrate(model, pictures, scores)
        after = model(pictures)
    slope, shift = np.polyfit(before.double().numpy(), scores.double().numpy(), 1)
    np.testing.assert_allclose(after, slope * before.double() + shift, rtol=1e-3)


def test_live_is_read_in_its_official_layout_and_split_by_scenes(rankings, tmp_path):
    write_live(tmp_path)
    found = rankings.live.read(tmp_path, COUNTS)
    assert [(one.kind, one.path.name, one.reference, one.dmos) for one in found] == [
        ("jp2k", "img1.bmp", "scene1.bmp", 10.0),
        ("jp2k", "img2.bmp", "scene0.bmp", 20.0),
        ("wn", "img1.bmp", "scene1.bmp", 40.0),
        ("wn", "img2.bmp", "scene0.bmp", 50.0),
    ]
    train, test = rankings.live.split_by_reference(found, 0, 0.5)
    assert not {one.reference for one in train} & {one.reference for one in test}
    assert len(train) == len(test) == 2
    assert sum(rankings.live.FOLDERS.values()) == 982
    seen = rankings.live.crops(found, 0, 3, 44)
    assert seen.crops.shape == (4, 3, 3, 44, 44)
    torch.testing.assert_close(seen.scores, torch.tensor([0.9, 0.8, 0.6, 0.5]))


def test_what_of_live_is_missing_or_disagrees_is_named(rankings, tmp_path):
    write_live(tmp_path)
    with pytest.raises(DatasetError, match=r"has 5 opinions where there are 982 pictures"):
        rankings.live.read(tmp_path)
    (tmp_path / "wn" / "img2.bmp").unlink()
    with pytest.raises(DatasetError, match=r"there is no .*img2.bmp"):
        rankings.live.read(tmp_path, COUNTS)
    (tmp_path / "jp2k" / "info.txt").write_text("scene1.bmp img1.bmp 0\n")
    with pytest.raises(DatasetError, match=r"names 1 pictures where there are 3"):
        rankings.live.read(tmp_path, COUNTS)


def test_opinions_of_live_take_the_place_of_similarities(rankings, monkeypatch, tmp_path):
    write_live(tmp_path)
    monkeypatch.setattr(rankings.experiment, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(rankings.experiment, "read", lambda root: rankings.live.read(root, COUNTS))
    monkeypatch.setattr(rankings.experiment, "split_by_reference", lambda found, _: (found[:2], found))
    scale = rankings.experiment.Scale(originals=1, epochs=1, scored_epochs=1, side=44, crops=2)
    found = rankings.experiment.measure(0, scale, tmp_path)
    assert all(-1 <= figures["LCC"] <= 1 for figures in found.values())


def test_the_experiment_learns_ranks_and_gives_every_row(rankings, monkeypatch, tmp_path):
    monkeypatch.setattr(rankings.experiment, "RUNS", tmp_path)
    scale = rankings.experiment.Scale(originals=3, scored=1, judged=2, epochs=2, scored_epochs=1)
    found = rankings.experiment.measure(0, scale)
    assert rankings.experiment.measure(0, scale) == found
    assert list(found)[:3] == ["from scratch", "rankings alone", "fine-tuned from rankings"]
    assert {"SVD at 50.0% of them", "DALR at 12.5% of them"} <= found.keys()
    assert found["DALR at 12.5% of them"]["parameters"] < found["from scratch"]["parameters"]
    assert "| fine-tuned from rankings | " in rankings.experiment.table([found, found])
    torch.manual_seed(0)
    network, data = rankings.network.build(side=64), rankings.data.ranked("train", 0, 2)

    def loss():
        with torch.inference_mode():
            return rankings.training.ranking_loss(network(data.pictures.flatten(0, 1)).unflatten(0, (8, 6)))

    before = loss()
    rankings.training.learn_ranks(network, data, seed=0, epochs=6)
    assert loss() < before
