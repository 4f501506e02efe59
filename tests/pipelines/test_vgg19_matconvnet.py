"""The DALR authors' network from MatConvNet: files of the same layout in small, and their run file to its report."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_images
import torch
from safetensors.torch import load_file
from scipy.io import savemat
from test_vgg19 import SIDE, TINY, toml
from test_vgg19_data import COUNTS, VGG19_FOLDER

from dalr_stream.errors import InvalidInputError
from dalr_stream.report.records.results import Results
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project

NAMES = ("conv1_1", "conv2_1", "conv2_2", "fc6", "fc7", "prediction")


@pytest.fixture
def vgg(monkeypatch):
    monkeypatch.syspath_prepend(VGG19_FOLDER)
    return SimpleNamespace(**{name: importlib.import_module(f"vgg19_{name}") for name in ("network", "convert")})


def as_matconvnet(model):
    """Filters by MatConvNet's names: (height, width, inputs, outputs), fc6 as a convolution over the pooled maps."""
    layers = {}
    modules = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    for name, module in zip(NAMES, modules, strict=True):
        weight = module.weight.detach().numpy()
        if name == "fc6":
            weight = weight.reshape(len(weight), 6, 2, 2)
        elif weight.ndim == 2:
            weight = weight[:, :, None, None]
        layers[name] = (weight.transpose(2, 3, 1, 0), module.bias.detach().numpy()[None])
    return layers


def struct_array(rows):
    """A 1 x n struct array, as MATLAB has them."""
    array = np.empty((1, len(rows)), dtype=[(key, object) for key in rows[0]])
    for number, row in enumerate(rows):
        array[0, number] = tuple(row.values())
    return array


def cell(*values):
    array = np.empty((1, len(values)), dtype=object)
    for number, value in enumerate(values):
        array[0, number] = value
    return array


def save_dagnn(path, layers):
    """Write a DagNN as `saveobj` does: parameters apart, the layers out of order but for their names, and ReLUs."""
    params = [
        {"name": f"{name}{kind}", "value": value, "learningRate": 1.0}
        for name, both in layers.items()
        for kind, value in zip("fb", both, strict=True)
    ]
    listed = [{"name": name, "type": "dagnn.Conv", "params": cell(f"{name}f", f"{name}b")} for name in reversed(layers)]
    listed.append({"name": "relu1", "type": "dagnn.ReLU", "params": cell()})
    savemat(path, {"net": {"params": struct_array(params), "layers": struct_array(listed), "meta": {}}})


def save_simplenn(path, layers):
    listed = [{"name": name, "type": "conv", "weights": cell(*both)} for name, both in layers.items()]
    savemat(path, {"layers": cell(*listed, {"name": "relu1", "type": "relu"}), "meta": {}})


class TestMatConvNet:
    @pytest.mark.parametrize("save", [save_dagnn, save_simplenn])
    def test_the_network_in_a_matlab_file_computes_what_it_computed_there(self, vgg, tmp_path, save):
        model = vgg.network.build(**TINY, classes=5).eval()
        layers = as_matconvnet(model)
        save(tmp_path / "net.mat", layers)
        target = tmp_path / "out.safetensors"
        vgg.convert.convert(tmp_path / "net.mat", target, vgg.network.build(**{**TINY, "dropout": 0.0}, classes=5))
        again = load_file(target)
        assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
        # fc6 by hand, with MatConvNet's own order of what it reads
        maps = torch.randn(1, 6, 2, 2)
        filters, biases = layers["fc6"]
        by_hand = np.einsum("chw,hwco->o", maps[0].numpy(), filters) + biases[0]
        with torch.inference_mode():
            ours = model.classifier[0](torch.flatten(maps, 1))[0]
        np.testing.assert_allclose(ours, by_hand, rtol=1e-4, atol=1e-5)

    def test_vgg19_is_built_with_the_classes_of_the_file(self, vgg, tmp_path, monkeypatch):
        save_dagnn(tmp_path / "net.mat", as_matconvnet(vgg.network.build(**TINY, classes=3)))
        build = vgg.network.build
        monkeypatch.setattr(vgg.convert, "CONVOLUTIONS", (1, 2))
        monkeypatch.setattr(vgg.convert, "build", lambda classes: build(**TINY, classes=classes))
        vgg.convert.convert(tmp_path / "net.mat", tmp_path / "out.safetensors")
        assert load_file(tmp_path / "out.safetensors")["classifier.6.weight"].shape == (3, 16)

    def test_another_network_or_file_is_named(self, vgg, tmp_path):
        model, out = vgg.network.build(**TINY, classes=3), tmp_path / "out.safetensors"
        layers = as_matconvnet(model)

        def convert(saved, words):
            save_dagnn(tmp_path / "net.mat", saved)
            with pytest.raises(InvalidInputError, match=words):
                vgg.convert.convert(tmp_path / "net.mat", out, model)

        convert({name: both for name, both in layers.items() if name != "conv2_2"}, "there is no 'conv2_2'")
        convert({**layers, "fc9": layers["prediction"]}, "2 layers could be the classifier")
        convert({**layers, "fc7": layers["prediction"]}, r"'fc7' has filters of 1 x 1 x 16 x 3 and 3 biases")
        (tmp_path / "net.mat").write_bytes(
            b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM" + b"0" * 200
        )
        with pytest.raises(InvalidInputError, match=r"version 7\.3 must be saved again by MATLAB's save with '-v7'"):
            vgg.convert.convert(tmp_path / "net.mat", out, model)
        assert not out.exists()


@pytest.mark.usefixtures("quick")
def test_the_authors_run_file_runs_without_any_fine_tuning(vgg, tmp_path):
    model = vgg.network.build(**TINY, classes=tiny_images.CLASSES)
    save_dagnn(tmp_path / "birds.mat", as_matconvnet(model))
    weights = tmp_path / "birds.safetensors"
    vgg.convert.convert(tmp_path / "birds.mat", weights, vgg.network.build(**TINY, classes=tiny_images.CLASSES))
    root = tiny_images.cub(tmp_path / "cub")
    file = VGG19_FOLDER / "cub_authors.toml"
    shown = {"resize": "squash", "normalise": "mean", "side": SIDE, "root": str(root), "expect": COUNTS["cub"]}
    settings = {
        "run.output": str(tmp_path / "run"),
        "network.weights": str(weights),
        "network.options": {**TINY, "classes": tiny_images.CLASSES},
        "evaluate.ranks": [1, 2, 4, 8],
        "compress": {"classifier.3": {"method": "dalr_published", "size": 2}},
    }
    plain = load_config(file).plain()
    sections = {"domains.target": plain["domains"]["target"], "domains.test": plain["domains"]["test"]}
    for key, section in {**sections, "evaluate": plain["evaluate"]}.items():
        assert {name: shown[name] for name in ("resize", "normalise")}.items() <= section["options"].items()
        settings[f"{key}.options"] = {"dataset": "cub", **shown}
    overrides = [f"{key}={toml(value)}" for key, value in settings.items()]
    run = Run(Project(load_config(file, overrides), VGG19_FOLDER))
    results = Results.read(run.all().parent / "results.json")
    assert results.provenance["configuration"]["solve"]["ridge_absolute"] == {"dalr_published": 1000.0}
    (table,) = results.published
    assert table.title == "DALR, Table 4: birds, fc7"
    assert table.rows[-1].published[0] == 0.5573
    assert table.rows[-1].ours[0] == results.baseline_score
