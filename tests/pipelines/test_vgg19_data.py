"""The loaders of the VGG19 pipelines: official layouts, splits, preprocessing, and what they say of damaged data."""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_images
import torch
from PIL import Image

from dalr_stream.errors import DatasetError
from dalr_stream.network.capture.loaders import beginning_at, can_resume

VGG19_FOLDER = Path(__file__).parents[2] / "pipelines" / "vgg19"
COUNTS = {"cub": tiny_images.CUB, "flowers": tiny_images.FLOWERS, "actions": tiny_images.ACTIONS}
COUNTS["imagenet"] = tiny_images.IMAGENET


@pytest.fixture
def images(monkeypatch):
    monkeypatch.syspath_prepend(VGG19_FOLDER)
    names = ("batches", "layout", "cub", "flowers", "actions", "imagenet", "data")
    return SimpleNamespace(**{name: importlib.import_module(f"images_{name}") for name in names})


@pytest.fixture(params=list(COUNTS))
def dataset(request, tmp_path):
    """Options of each tiny data set."""
    root = getattr(tiny_images, request.param)(tmp_path / request.param)
    return {"dataset": request.param, "root": str(root), "expect": COUNTS[request.param], "side": 32, "batch_size": 4}


@pytest.fixture
def birds(tmp_path):
    root = tiny_images.cub(tmp_path / "cub")
    return {"dataset": "cub", "root": str(root), "expect": COUNTS["cub"], "side": 32, "batch_size": 4}


def names(batches):
    return [picture.path.name for picture in batches.pictures]


def test_official_counts_are_those_of_the_papers(images):
    assert images.layout.Counts(5994, 5794, 200) == images.cub.OFFICIAL
    assert images.layout.Counts(2040, 6149, 102) == images.flowers.OFFICIAL
    assert images.layout.Counts(4000, 5532, 40) == images.actions.OFFICIAL
    assert images.layout.Counts(1_281_167, 50_000, 1000) == images.imagenet.OFFICIAL


def test_splits_are_the_official_ones_and_labels_start_at_0(images, dataset):
    training = images.data.target_train(seed=0, **dataset)
    testing = images.data.target_test(seed=0, **dataset)
    expected = dataset["expect"]
    assert (training.samples, testing.samples) == (expected["train"], expected["test"])
    assert not {p.path for p in training.pictures} & {p.path for p in testing.pictures}
    assert {p.label for p in training.pictures} == set(range(tiny_images.CLASSES))
    for picture in (*training.pictures, *testing.pictures):  # the tiny pictures are in the colour of their class
        colours = np.asarray(Image.open(picture.path).convert("RGB"), dtype=float).mean(axis=(0, 1))
        assert np.ptp(colours) < 2 or colours.argmax() == picture.label


def test_shuffled_is_one_order_of_the_same_pictures(images, dataset):
    plain, one, again, other = (
        names(images.data.target_train(seed=seed, shuffled=mixed, **dataset))
        for seed, mixed in ((0, False), (0, True), (0, True), (1, True))
    )
    assert one == again
    assert sorted(one) == sorted(other) == sorted(plain)
    assert len({tuple(order) for order in (plain, one, other)}) == 3


def test_cub_is_joined_by_id_and_each_split_is_the_one_named(images, birds):
    found = images.cub.read(Path(birds["root"]), birds["expect"])
    assert [found.pictures[row].path.name for row in found.train[:4]] == [f"Bird_{n:04d}.jpg" for n in range(4)]
    assert found.pictures[8].box == (5.0, 4.0, 20.0, 25.0)


def test_flowers_train_on_train_and_val_and_know_their_own_validation(images, tmp_path):
    root = tiny_images.flowers(tmp_path / "flowers")
    options = {"dataset": "flowers", "root": str(root), "expect": COUNTS["flowers"]}
    held = images.data.target_validation(seed=0, validation="official", **options)
    rest = images.data.target_train(seed=0, validation="official", **options)
    assert names(held) == [f"image_{n:05d}.jpg" for n in range(1, 7)]
    assert names(rest) == [f"image_{n:05d}.jpg" for n in range(13, 22)]


def test_validation_is_drawn_by_the_seed_from_training_alone_each_class_in_its_proportion(images, dataset):
    held, again, other = (images.data.target_validation(seed=s, validation=6, **dataset) for s in (1, 1, 2))
    rest = images.data.target_train(seed=1, validation=6, **dataset)
    everything = images.data.target_train(seed=1, **dataset)
    assert names(held) == names(again) != names(other)
    assert sorted(names(held) + names(rest)) == sorted(names(everything))
    assert np.bincount([p.label for p in held.pictures]).tolist() == [2, 2, 2]


def test_samples_for_the_statistics_are_drawn_in_proportion(images, dataset):
    some = images.data.target_train(seed=0, samples=6, **dataset)
    assert np.bincount([p.label for p in some.pictures]).tolist() == [2, 2, 2]
    with pytest.raises(DatasetError, match=r"'samples' must lie in 0\.\.\d+, got 500"):
        images.data.target_train(seed=0, samples=500, **dataset)


def test_boxes_show_each_bird_twice_and_the_second_time_cut(images, birds):
    batches = images.data.target_train(seed=0, boxes=True, **birds)
    assert batches.samples == 24
    whole, cut = batches.pictures[0], batches.pictures[12]
    assert (whole.path, whole.label) == (cut.path, cut.label)
    with Image.open(whole.path) as image:
        expected = images.batches.Shown(32).as_input(image.crop((5, 4, 25, 28)))
    assert torch.equal(images.batches.load(cut, images.batches.Shown(32)), expected)
    assert not torch.equal(images.batches.load(whole, images.batches.Shown(32)), expected)


def test_boxes_that_leave_the_picture_are_cut_to_it(images, birds):
    path = images.data.target_train(seed=0, **birds).pictures[0].path
    shown = images.batches.load(images.batches.Picture(path, 0, (30.0, -3.0, 500.0, 500.0)), images.batches.Shown(32))
    with Image.open(path) as image:
        assert torch.equal(shown, images.batches.Shown(32).as_input(image.crop((30, 0, *image.size))))


def test_data_sets_without_boxes_refuse_them(images, tmp_path):
    root = tiny_images.actions(tmp_path / "actions")
    with pytest.raises(DatasetError, match="Stanford 40 Actions: 'boxes' asks for bounding boxes"):
        images.data.target_train(dataset="actions", seed=0, root=str(root), expect=COUNTS["actions"], boxes=True)


def test_inputs_are_resized_cropped_and_normalised_as_torchvision_does(images):
    # a ramp along the longer side: 512 x 256 stays as it is, and the middle 224 columns are 144..367
    ramp = np.tile(np.arange(512, dtype=np.float64) / 2, (256, 1)).astype(np.uint8)
    shown = images.batches.Shown().as_input(Image.fromarray(ramp))
    assert shown.shape == (3, 224, 224)
    assert shown.dtype == torch.float32
    columns = ramp[0, 144:368].astype(np.float64) / 255
    for channel, (mean, spread) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        np.testing.assert_allclose(shown[channel, 100].numpy(), (columns - mean) / spread, atol=1e-5)


def test_squashed_pictures_are_whole_and_less_the_mean_as_in_the_authors_code(images):
    # a ramp of 448 x 112: no crop would show its ends, and two columns become one
    ramp = np.tile(np.arange(448, dtype=np.float64) / 2, (112, 1)).astype(np.uint8)
    shown = images.batches.Shown(resize="squash", normalise="mean").as_input(Image.fromarray(ramp))
    assert shown.shape == (3, 224, 224)
    assert shown.dtype == torch.float32
    halved = ramp[0].reshape(224, 2).astype(np.float64).mean(axis=1)
    for channel, mean in enumerate((123.680, 116.779, 103.939)):
        np.testing.assert_allclose(shown[channel, 100, 4:-4].numpy(), halved[4:-4] - mean, atol=0.3)
        assert shown[channel, 100, 0] < -mean + 2
    edge = np.zeros((448, 448), np.uint8)
    edge[:, 224:] = 255
    over = images.batches.Shown(resize="squash", normalise="mean").as_input(Image.fromarray(edge))[0, 100] + 123.680
    assert over.max() > 255.5  # MATLAB's bicubic overshoots at an edge, and singles are not cut


def test_squashing_a_square_of_the_right_size_changes_nothing(images):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
    shown = images.batches.Shown(resize="squash", normalise="mean").as_input(Image.fromarray(pixels))
    expected = pixels.transpose(2, 0, 1) - np.float32((123.680, 116.779, 103.939))[:, None, None]
    np.testing.assert_allclose(shown.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"resize": "pad"}, "resize must be 'crop' or 'squash', got 'pad'"),
        ({"normalise": "none"}, "normalise must be 'spread' or 'mean', got 'none'"),
        ({"side": 0}, "side must be at least 1, got 0"),
    ],
)
def test_an_unknown_way_to_show_pictures_is_refused(images, birds, option, words):
    with pytest.raises(DatasetError, match=words):
        images.data.target_test(seed=0, **{**birds, **option})


def test_every_loader_shows_pictures_as_it_is_told(images, birds, tmp_path):
    told = {"resize": "squash", "normalise": "mean"}
    loaders = [images.data.target_train(seed=0, **birds, **told), images.data.target_test(seed=0, **birds, **told)]
    loaders.append(images.data.target_validation(seed=0, validation=3, **birds, **told))
    root = tiny_images.source(tmp_path / "train")
    loaders.append(images.data.source(seed=0, root=str(root), samples=7, side=32, **told))
    assert all(loader.shown == images.batches.Shown(32, "squash", "mean") for loader in loaders)


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (224, 224), (1000, 37)])
def test_any_picture_becomes_a_square(images, size):
    assert all(
        images.batches.Shown(32, resize).as_input(Image.new("P", size)).shape == (3, 32, 32)
        for resize in ("crop", "squash")
    )


def test_batches_start_again_begin_in_the_middle_and_keep_their_order(images, dataset):
    batches = images.data.target_train(seed=0, **dataset)
    first, second = list(batches), list(batches)
    assert len(batches) == len(first) == -(-batches.samples // 4)
    assert torch.cat([labels for _, labels in first]).tolist() == [p.label for p in batches.pictures]
    for begin in range(len(batches) + 1):
        assert can_resume(batches)
        later = beginning_at(batches, begin)
        assert len(later) == len(first) - begin
        for (inputs, labels), (inputs_then, labels_then) in zip(later, second[begin:], strict=True):
            assert torch.equal(inputs, inputs_then)
            assert torch.equal(labels, labels_then)


def test_few_pictures_are_decoded_in_advance_and_threads_end_with_the_loop(images, birds, monkeypatch):
    batches = images.data.target_train(seed=0, **{**birds, "batch_size": 1})
    begun = []
    load = images.batches.load
    monkeypatch.setattr(images.batches, "load", lambda picture, shown: begun.append(picture) or load(picture, shown))
    passing = iter(batches)
    next(passing)
    assert len(begun) <= images.batches.AHEAD + 1
    passing.close()
    assert not any(thread.name.startswith("pictures") for thread in threading.enumerate())


def test_source_pictures_come_from_class_folders_or_one_folder(images, tmp_path):
    root = tiny_images.source(tmp_path / "train")
    some, again, other = (images.data.source(seed=s, root=str(root), samples=7, side=32) for s in (0, 0, 1))
    assert names(some) == names(again) != names(other)
    assert len(set(names(some))) == 7
    assert all(p.path.parent.name == ("n01440760", "n01440761")[p.label] for p in some.pictures)
    for path in list(root.rglob("*.JPEG")):
        path.rename(root / path.name)
    for folder in ("n01440760", "n01440761"):
        (root / folder).rmdir()
    flat = images.data.source(seed=0, root=str(root), samples=12, side=32)
    assert {p.label for p in flat.pictures} == {-1}
    with pytest.raises(DatasetError, match="holds 12 and 13 are asked for"):
        images.data.source(seed=0, root=str(root), samples=13)


@pytest.mark.parametrize(
    ("dataset", "file", "archive"),
    [
        ("cub", "images.txt", "CUB_200_2011.tgz"),
        ("cub", "bounding_boxes.txt", "CUB_200_2011.tgz"),
        ("flowers", "setid.mat", "setid.mat"),
        ("actions", "ImageSplits/applauding_test.txt", "Stanford40_ImageSplits.zip"),
        ("imagenet", "ILSVRC2012_devkit_t12/data/meta.mat", "ILSVRC2012_devkit_t12.tar.gz"),
    ],
)
def test_a_missing_index_file_is_named_with_its_place_and_archive(images, tmp_path, dataset, file, archive):
    root = getattr(tiny_images, dataset)(tmp_path / dataset)
    (root / file).unlink()
    with pytest.raises(DatasetError, match="there is no") as caught:
        images.data.target_test(seed=0, dataset=dataset, root=str(root), expect=COUNTS[dataset])
    assert str(root / file) in str(caught.value)
    assert archive in str(caught.value)


def test_other_counts_than_the_official_ones_are_refused(images, dataset):
    with pytest.raises(DatasetError, match=r"expected [\d,]+ training and .* the index files give 1\d training"):
        images.data.target_train(seed=0, **{**dataset, "expect": "official"})


def test_missing_pictures_are_counted_and_the_first_is_named(images, dataset):
    victims = [p.path for p in images.data.target_test(seed=0, **dataset).pictures[:2]]
    for path in victims:
        path.unlink()
    if dataset["dataset"] == "imagenet":  # no file names its pictures, but the devkit has a label for each
        with pytest.raises(DatasetError, match=r"holds 7 pictures and '.*' 9 labels"):
            images.data.target_train(seed=0, **dataset)
        return
    with pytest.raises(DatasetError, match=r"2 of \d+ pictures are missing") as caught:
        images.data.target_train(seed=0, **dataset)
    assert str(victims[0]) in str(caught.value)


def test_a_damaged_picture_is_named_when_it_is_read(images, dataset):
    batches = images.data.target_train(seed=0, **dataset)
    victim = batches.pictures[5].path
    victim.write_bytes(victim.read_bytes()[:200])
    with pytest.raises(DatasetError, match="cannot be read as a picture") as caught:
        list(batches)
    assert str(victim) in str(caught.value)


def test_splits_that_disagree_are_refused(images, tmp_path):
    root = tiny_images.cub(tmp_path / "cub")
    labels = root / "image_class_labels.txt"
    labels.write_text("\n".join(labels.read_text().splitlines()[1:]))
    with pytest.raises(DatasetError, match=r"image_class_labels.txt and images.txt do not name the same images"):
        images.cub.read(root, COUNTS["cub"])
    labels.write_text("1 2 3\n")
    with pytest.raises(DatasetError, match="line 1: expected 2 columns, got 3"):
        images.cub.read(root, COUNTS["cub"])


def test_an_unknown_data_set_and_a_validation_it_lacks_are_refused(images, birds):
    with pytest.raises(DatasetError, match="must be one of cub, flowers, actions, imagenet, got 'cars'"):
        images.data.target_test(seed=0, dataset="cars")
    with pytest.raises(DatasetError, match="it has no validation split of its own"):
        images.data.target_train(seed=0, validation="official", **birds)
