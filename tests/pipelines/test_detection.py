"""Fast R-CNN: boxes, RoI pooling and VOC 2007's precision against hand-made cases, the layouts, and the comparison."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

import dalr_stream as ds
from dalr_stream.errors import DatasetError
from dalr_stream.network import save_weights

DETECTION = Path(__file__).parents[2] / "pipelines" / "detection"
NAMES = ("scenes", "map", "voc", "generated", "network", "training", "experiment")


@pytest.fixture
def detection(monkeypatch):
    for folder in ("shared", "detection"):
        monkeypatch.syspath_prepend(DETECTION.parent / folder)
    return SimpleNamespace(**{name: importlib.import_module(f"detection_{name}") for name in NAMES})


def boxes(*corners):
    return np.array(corners, np.float32).reshape(-1, 4)


def scene(detection, objects, classes, difficult=None, proposals=None):
    difficult = [False] * len(classes) if difficult is None else difficult
    return detection.scenes.Scene(
        "scene",
        lambda: torch.zeros(3, 32, 32),
        boxes(*objects) if proposals is None else proposals,
        boxes(*objects),
        np.array(classes),
        np.array(difficult),
    )


class TestBoxes:
    def test_overlaps_count_the_last_pixel(self, detection):
        found = detection.scenes.overlaps(boxes((0, 0, 9, 9)), boxes((0, 0, 9, 9), (5, 0, 14, 9), (10, 0, 19, 9)))
        np.testing.assert_allclose(found, [[1.0, 50 / 150, 0.0]], rtol=1e-6)

    def test_moves_are_undone(self, detection):
        proposals, objects = boxes((2, 3, 11, 20), (0, 0, 4, 4)), boxes((4, 1, 15, 18), (3, 3, 10, 9))
        moves = detection.scenes.encode(proposals, objects)
        np.testing.assert_allclose(detection.scenes.decode(proposals, moves, 32, 32), objects, atol=1e-4)
        cut = detection.scenes.decode(proposals, moves + 3.0, 32, 32)
        assert cut.min() >= 0
        assert cut.max() <= 31

    def test_worse_boxes_that_overlap_a_better_one_go(self, detection):
        found = boxes((0, 0, 9, 9), (1, 0, 10, 9), (20, 20, 29, 29), (0, 0, 9, 9))
        assert detection.training.suppress(found, np.array([0.5, 0.9, 0.3, 0.4])) == [1, 2]


class TestPooling:
    @staticmethod
    def naive(maps, corners, stride, side):
        x1, y1, x2, y2 = (round(float(value) / stride) for value in corners)
        height, width = y2 - y1 + 1, x2 - x1 + 1
        found = torch.empty(len(maps), side, side)
        for i in range(side):
            for j in range(side):
                top, bottom = y1 + math.floor(i * height / side), y1 + math.ceil((i + 1) * height / side)
                left, right = x1 + math.floor(j * width / side), x1 + math.ceil((j + 1) * width / side)
                found[:, i, j] = maps[:, top:bottom, left:right].amax(dim=(1, 2))
        return found

    @pytest.mark.parametrize("corners", [(0, 0, 31, 31), (4, 8, 17, 13), (7, 7, 7, 7), (3, 0, 30, 5)])
    def test_it_is_the_largest_value_of_each_part(self, detection, corners):
        maps = torch.randn(2, 5, 17, 17)
        given = torch.tensor(corners, dtype=torch.float32)[None, None].repeat(2, 3, 1)
        found = detection.network.roi_pool(maps, given, 2, 4)
        assert found.shape == (2, 3, 5, 4, 4)
        for picture in range(2):
            assert torch.equal(found[picture, 1], self.naive(maps[picture], corners, 2, 4))

    def test_boxes_that_leave_the_picture_are_cut_to_it(self, detection):
        maps = torch.randn(1, 2, 8, 8)
        outside = detection.network.roi_pool(maps, torch.tensor([[[-20.0, -3.0, 99.0, 50.0]]]), 2, 2)
        whole = detection.network.roi_pool(maps, torch.tensor([[[0.0, 0.0, 14.0, 14.0]]]), 2, 2)
        assert torch.equal(outside, whole)
        beyond = detection.network.roi_pool(maps, torch.tensor([[[80.0, 80.0, 99.0, 99.0]]]), 2, 2)
        assert torch.equal(beyond[0, 0], maps[0, :, 7, 7, None, None].expand(2, 2, 2))

    def test_gradients_reach_the_largest_values(self, detection):
        maps = torch.randn(1, 1, 4, 4, requires_grad=True)
        detection.network.roi_pool(maps, torch.tensor([[[0.0, 0.0, 3.0, 3.0]]]), 1, 1).sum().backward()
        assert maps.grad.flatten().argmax() == maps.flatten().argmax()
        assert maps.grad.sum() == 1


class TestPrecision:
    def test_a_hand_made_case(self, detection):
        # three objects in two pictures, and a difficult one; by score: found, nothing there, found, found again
        first = scene(detection, [(0, 0, 9, 9), (20, 0, 29, 9)], [1, 1], [False, True])
        second = scene(detection, [(0, 0, 9, 9), (20, 20, 29, 29), (0, 20, 9, 29)], [1, 1, 2])
        of = detection.map.Detections
        found = [
            {1: of(boxes((0, 0, 9, 9), (20, 0, 29, 9), (0, 0, 9, 10)), np.array([0.9, 0.95, 0.6]))},
            {1: of(boxes((12, 0, 19, 9), (1, 0, 10, 9)), np.array([0.8, 0.7]))},
        ]
        # precision 1 up to recall 1/3 (0, .1, .2, .3), 2/3 up to 2/3 (.4, .5, .6), nothing beyond
        first_class = detection.map.average_precision([first, second], [one.get(1) for one in found], 1)
        assert first_class == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)
        assert detection.map.mean_average_precision([first, second], found) == pytest.approx(first_class / 2)

    def test_everything_found_is_one_and_half_an_overlap_is_enough(self, detection):
        one = scene(detection, [(0, 0, 9, 9)], [3])
        near = detection.map.Detections(boxes((0, 0, 9, 4)), np.array([0.2]))
        less = detection.map.Detections(boxes((0, 0, 9, 3)), np.array([0.2]))
        assert detection.map.mean_average_precision([one], [{3: near}]) == pytest.approx(1.0)
        assert detection.map.mean_average_precision([one], [{3: less}]) == 0.0
        assert detection.map.mean_average_precision([one], [{}]) == 0.0


def write_voc(root):
    """Two pictures in VOC 2007's layout; selective search has boxes for a third as well, in another order."""
    folder = root / "VOCdevkit" / "VOC2007"
    for name in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "test.txt").write_text("000001\n000002\n")
    for number, (width, height) in enumerate(((300, 200), (400, 100)), 1):
        Image.new("RGB", (width, height), (200, 100, 50)).save(folder / "JPEGImages" / f"00000{number}.jpg")
        objects = "".join(
            f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>11</xmin><ymin>21</ymin>"
            f"<xmax>{x}</xmax><ymax>80</ymax></bndbox></object>"
            for name, difficult, x in (("dog", 0, 60), ("person", 1, 90))[:number]
        )
        text = f"<annotation><size><width>{width}</width><height>{height}</height></size>{objects}</annotation>"
        (folder / "Annotations" / f"00000{number}.xml").write_text(text)
    found, names = np.empty((1, 3), object), np.empty((3, 1), object)
    for number, name in enumerate(("000002", "000003", "000001")):
        found[0, number] = np.array([[1, 11, 50, 100], [1, 1, 10, 100]], np.uint16)
        names[number, 0] = name
    (root / "selective_search_data").mkdir()
    savemat(root / "selective_search_data" / "voc_2007_test.mat", {"boxes": found, "images": names})


class TestVoc:
    def test_the_official_layout_is_read(self, detection, tmp_path):
        write_voc(tmp_path)
        first, second = detection.voc.read(tmp_path, "test", count=2)
        assert first.classes.tolist() == [detection.voc.CLASSES.index("dog") + 1]
        assert second.difficult.tolist() == [False, True]
        np.testing.assert_allclose(first.objects, 3.0 * boxes((10, 20, 59, 79)))  # 200 pixels become 600
        np.testing.assert_allclose(first.proposals, 3.0 * boxes((10, 0, 99, 49)))  # the flat one is too small
        np.testing.assert_allclose(second.objects[0], 2.5 * boxes((10, 20, 59, 79))[0])  # 400 pixels become 1,000
        picture = second.picture()
        assert picture.shape == (3, 250, 1000)
        np.testing.assert_allclose(picture.mean(dim=(1, 2)), np.array([200, 100, 50]) - detection.voc.MEAN, atol=2)

    def test_what_is_missing_is_named(self, detection, tmp_path):
        write_voc(tmp_path)
        with pytest.raises(DatasetError, match=r"'test.txt' names 2 pictures where there are 4,952"):
            detection.voc.read(tmp_path, "test")
        with pytest.raises(DatasetError, match=r"there is no .*trainval.txt"):
            detection.voc.read(tmp_path, "trainval")
        (tmp_path / "VOCdevkit/VOC2007/ImageSets/Main/test.txt").write_text("000001\n000009\n")
        with pytest.raises(DatasetError, match="no boxes for 1 pictures, the first is '000009'"):
            detection.voc.read(tmp_path, "test", count=2)

    def test_a_trained_network_is_compared_on_it(self, detection, tmp_path, monkeypatch):
        write_voc(tmp_path)
        scenes = detection.voc.read(tmp_path, "test", count=2)
        small = detection.network.build(classes=20, width=12)
        save_weights(small, tmp_path / "network.safetensors")
        monkeypatch.setattr(detection.experiment, "build", lambda **_: detection.network.build(classes=20, width=12))
        monkeypatch.setattr(detection.experiment, "read", lambda *_: scenes)
        found = detection.experiment.of_voc(tmp_path, tmp_path / "network.safetensors")
        assert list(found) == list(detection.experiment.PUBLISHED)


def test_generated_pictures_share_nothing_between_the_splits(detection):
    train, again, test = (detection.generated.scenes(split, 0, 12) for split in ("train", "train", "test"))
    for one, other in zip(train, again, strict=True):
        assert torch.equal(one.picture(), other.picture())
        assert one.proposals.shape == (detection.generated.PROPOSALS, 4)
        assert one.proposals.min() >= 0
        assert one.proposals.max() <= detection.generated.SIDE - 1
        assert (one.proposals[:, 2:] >= one.proposals[:, :2]).all()
        apart = detection.scenes.overlaps(one.objects, one.objects)
        assert (apart - np.eye(len(apart)) == 0).all()
        assert (detection.scenes.overlaps(one.proposals, one.objects).max(axis=0) > 0.5).all()
    assert not torch.equal(train[0].picture(), test[0].picture())
    dark = train[0].picture()[:, int(train[0].objects[0, 1]) + 8, :].min()
    assert dark < -1.5  # ink on the photograph


def test_statistics_have_a_row_for_every_box(detection):
    scenes = detection.generated.scenes("train", 0, 3)
    network = detection.network.build(width=16).eval()
    layers = ds.watch(network, ["fc6", "fc7"])
    rule = ds.Folding(holdout=ds.HoldoutRule(0.0))
    found = ds.accumulate(network, detection.training.SceneBatches(scenes), layers, folding=rule)
    with torch.inference_mode():
        rows = [
            detection.network.roi_pool(
                network.features(one.picture()[None]), torch.from_numpy(one.proposals)[None], 4, 4
            ).flatten(2)[0]
            for one in scenes
        ]
    moments = found["fc6"].known_inputs
    assert (moments.count, moments.samples) == (3 * detection.generated.PROPOSALS, 3)
    np.testing.assert_allclose(moments.mean, torch.cat(rows).double().mean(dim=0), rtol=1e-4, atol=1e-6)


def test_training_lowers_the_loss_and_the_table_has_every_row(detection, monkeypatch, tmp_path):
    scenes = detection.generated.scenes("train", 0, 6)

    def loss(network):
        rng = np.random.default_rng(0)
        with torch.inference_mode():
            return np.mean([float(detection.training._loss(network, one, np.arange(24))) for one in scenes]), rng

    torch.manual_seed(0)
    network = detection.network.build(width=16)
    before, _ = loss(network)
    detection.training.train(network, scenes, seed=0, recipe=detection.training.Recipe(epochs=3))
    assert loss(network)[0] < before
    monkeypatch.setattr(detection.experiment, "RUNS", tmp_path)
    recipe = detection.training.Recipe(epochs=1)
    found = detection.experiment.measure(0, recipe, (4, 3))
    assert detection.experiment.measure(0, recipe, (4, 3)) == found
    assert list(found) == list(detection.experiment.PUBLISHED)
    assert found["SVD @ 768"]["parameters"] < found["SVD @ 1024"]["parameters"] < found["uncompressed"]["parameters"]
    assert "| DALR @ 1024 |" in detection.experiment.table([found, found])


def test_an_unknown_factory_is_refused(detection):
    with pytest.raises(ValueError, match="must be 'small' or 'vgg16', got 'resnet'"):
        detection.network.build(factory="resnet")
    with torch.device("meta"):
        whole = detection.network.build(factory="vgg16", classes=20)
    assert whole.fc6.in_features == 25_088
    assert whole.stride == 16
