"""ImageNet as the domain that is judged: labels of the flat archive, pictures of each class, errors beside errors."""

from __future__ import annotations

import importlib
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_images
from test_vgg19 import SIDE, TINY, toml
from test_vgg19_data import COUNTS, VGG19_FOLDER, names

from dalr_stream.errors import DatasetError
from dalr_stream.network import save_weights
from dalr_stream.report.records.results import Results
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project


@pytest.fixture
def images(monkeypatch):
    monkeypatch.syspath_prepend(VGG19_FOLDER)
    modules = {"data": "images_data", "network": "vgg19_network"}
    return SimpleNamespace(**{short: importlib.import_module(name) for short, name in modules.items()})


@pytest.fixture
def options(tmp_path):
    root = tiny_images.imagenet(tmp_path / "imagenet")
    return {"dataset": "imagenet", "root": str(root), "expect": COUNTS["imagenet"], "side": SIDE}


def test_a_validation_folder_by_classes_gives_the_same_labels_as_the_flat_one(images, options, tmp_path):
    flat = images.data.target_test(seed=0, **options)
    ids = ("n01440764", "n01443537", "n02119789")
    for picture in flat.pictures:
        place = tmp_path / "imagenet" / "val" / ids[picture.label]
        place.mkdir(exist_ok=True)
        picture.path.rename(place / picture.path.name)
    by_class = images.data.target_test(seed=0, **options)
    assert dict(zip(names(by_class), (p.label for p in by_class.pictures), strict=True)) == dict(
        zip(names(flat), (p.label for p in flat.pictures), strict=True)
    )


def test_so_many_of_each_class_are_drawn_by_the_seed(images, options):
    drawn = [images.data.target_train(seed=seed, per_class=3, **options) for seed in range(4)]
    for batches in drawn:
        assert np.bincount([picture.label for picture in batches.pictures]).tolist() == [3, 3, 3]
    assert len({tuple(names(batches)) for batches in drawn}) > 1
    assert names(images.data.target_train(seed=0, per_class=3, **options)) == names(drawn[0])
    with pytest.raises(DatasetError, match=r"'per_class' must lie in 1\.\.4, its smallest class, got 5"):
        images.data.target_train(seed=0, per_class=5, **options)


def test_source_pictures_come_from_the_training_folder_of_the_same_layout(images, options):
    found = images.data.source(seed=0, root=options["root"], samples=14, side=SIDE)
    assert {p.path.parent.parent.name for p in found.pictures} == {"train"}


def test_labels_that_do_not_fit_are_refused(images, options, tmp_path):
    root = tmp_path / "imagenet"
    truth = root / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt"
    whole = truth.read_text()
    truth.write_text(whole + "1\n")
    with pytest.raises(DatasetError, match=r"holds 9 pictures and '.*ground_truth.txt' 10 labels"):
        images.data.target_test(seed=0, **options)
    truth.write_text(whole.replace("3", "1001"))
    with pytest.raises(DatasetError, match="names class 1001, which has no folder in 'train'"):
        images.data.target_test(seed=0, **options)
    truth.write_text(whole)
    (root / "val" / "n09999999").mkdir()
    with pytest.raises(DatasetError, match="has a class 'n09999999' that 'train' has not"):
        images.data.target_test(seed=0, **options)
    shutil.rmtree(root / "val")
    with pytest.raises(DatasetError, match=r"comes in, the official ILSVRC2012_img_val\.tar"):
        images.data.target_test(seed=0, **options)


@pytest.mark.usefixtures("quick")
def test_the_run_file_shows_errors_beside_the_published_errors(images, options, tmp_path):
    save_weights(images.network.build(**TINY, classes=tiny_images.CLASSES), tmp_path / "vgg19.safetensors")
    file = VGG19_FOLDER / "imagenet.toml"
    plain = load_config(file).plain()
    settings = {
        "run.output": str(tmp_path / "run"),
        "network.weights": str(tmp_path / "vgg19.safetensors"),
        "network.options": {**TINY, "classes": tiny_images.CLASSES},
        "compress": {"classifier.0": {"method": "svd", "size": 2}},
        "evaluate.ranks": [1, 2, 4],
        "domains.target.options": {**plain["domains"]["target"]["options"], **options, "per_class": 3},
        "domains.test.options": {**plain["domains"]["test"]["options"], **options},
        "evaluate.options": {**plain["evaluate"]["options"], **options},
    }
    run = Run(Project(load_config(file, [f"{key}={toml(value)}" for key, value in settings.items()]), VGG19_FOLDER))
    results = Results.read(run.all().parent / "results.json")
    assert {row.domain: row.rows for row in results.layers[0].activity} == {"target": 9, "test": 9}
    first, second = results.published
    assert first.rows[0].published[0] == pytest.approx(0.7944)
    assert second.rows[-1].published[0] == pytest.approx(0.3424)
    assert second.rows[-1].ours[0] == pytest.approx(1 - results.baseline_score)
