"""The VGG19 pipelines: every run file through to its report on tiny data in the official layouts, and their parts."""

from __future__ import annotations

import importlib
import json
import tomllib
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_images
import torch
from safetensors.torch import load_file, save_file
from test_vgg19_data import COUNTS, VGG19_FOLDER
from torch import fx

from dalr_stream.errors import DalrStreamError, InvalidInputError
from dalr_stream.numerics.methods import Family
from dalr_stream.report.records.results import Results
from dalr_stream.workflow.dry_run import dry_run
from dalr_stream.workflow.results.published_file import Published
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.compress_section import Order
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.sizes.compression import Compression

TINY = {"channels": [4, 6], "convolutions": [1, 2], "hidden": 16, "pooled": 2}
SIDE = 32
FC_ONLY = ('network.layers=["classifier.[03]"]', 'compress.network="75%"')
DATASETS = {"cub": "cub", "flowers": "flowers", "actions": "actions", "joint": "cub", "whole": "flowers"}


pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def vgg(monkeypatch):
    monkeypatch.syspath_prepend(VGG19_FOLDER)
    names = ("network", "training", "convert")
    parts = {name: importlib.import_module(f"vgg19_{name}") for name in names}
    images = {name: importlib.import_module(f"images_{name}") for name in ("batches", "data")}
    return SimpleNamespace(**parts, **images)


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory):
    """Every data set in a folder as `data` would hold them."""
    folder = tmp_path_factory.mktemp("data")
    for name in COUNTS:
        getattr(tiny_images, name)(folder / name)
    tiny_images.source(folder / "source")
    return folder


@pytest.fixture
def start(vgg, tmp_path):
    """Weights as ImageNet's would be: another classifier, converted from a file such as torchvision publishes."""
    model = vgg.network.build(**TINY, classes=7)
    torch.save(model.state_dict(), tmp_path / "vgg19.pth")
    vgg.convert.convert(tmp_path / "vgg19.pth", tmp_path / "vgg19.safetensors", vgg.network.build(**TINY, classes=7))
    return tmp_path / "vgg19.safetensors"


def toml(value):
    """Write a value as an override does; JSON's lists, numbers and strings are TOML's, its tables are not."""
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = {toml(item)}' for key, item in value.items()) + "}"
    return json.dumps(value)


def tiny(name, picture_folder, start, output, *more):
    """Open a run file on the tiny data with a tiny network; nothing else of it is replaced."""
    file = VGG19_FOLDER / f"{name}.toml"
    plain = tomllib.loads(file.read_text())
    data = DATASETS[name]
    ours = {"root": str(picture_folder / data), "expect": COUNTS[data]}
    pictures = {**plain["network"]["train_options"]["pictures"], **ours, "side": SIDE}
    settings = {
        "run.output": str(output),
        "network.start": str(start),
        "network.options": {**TINY, "classes": tiny_images.CLASSES},
        "network.train_options.epochs": 2,
        "evaluate.ranks": [1, 2, 4, 8] if plain["evaluate"]["ranks"] else [],
    }
    sections = {f"domains.{domain}": plain["domains"][domain] for domain in plain["domains"]}
    sections |= {key: plain[key] for key in ("finetune", "evaluate", "validation") if key in plain}
    for key, section in sections.items():
        options = {**section["options"], "side": SIDE}
        options |= {"root": str(picture_folder / "source")} if key == "domains.source" else ours
        if "samples" in options:
            options["samples"] = 10
        if "validation" in options:
            options["validation"] = pictures["validation"] = 6
        settings[f"{key}.options"] = options
    settings["network.train_options.pictures"] = pictures
    if "finetune" in plain:
        settings["finetune.epochs"] = 2
    if "max_drop" in plain["compress"]:
        settings["validation.ranks"] = [1, 2, 4, 6]
    elif "network" not in plain["compress"]:
        settings["compress"] = {layer: {**choice, "size": 2} for layer, choice in plain["compress"].items()}
    overrides = [f"{key}={toml(value)}" for key, value in settings.items()]
    return Project(load_config(file, [*overrides, *more]), VGG19_FOLDER)


@contextmanager
def counted_loads(batches):
    """Count how often each picture is loaded."""
    counts, load = Counter(), batches.load

    def counting(picture, shown):
        counts[picture.path] += 1
        return load(picture, shown)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "load", counting)
        yield counts


FEW = 'solve.methods=["svd", "prune_max", "dalr_published", "momasp_node"]'


@pytest.mark.parametrize(("name", "more"), [("cub", ()), ("flowers", (FEW,)), ("actions", (FEW,))])
def test_a_target_domain_runs_through_to_its_report(name, more, picture_folder, start, tmp_path, vgg):
    """However many networks are evaluated, a picture is loaded once for each of the run's three, and once a layer and
    once more for all fine-tuned ones, for which a training picture is loaded once. The first batch, here all there
    is, is loaded once more for each short cut that is tried on it: one a layer, and one for the fine-tuned networks."""
    project = tiny(name, picture_folder, start, tmp_path / "run", *more)
    run = Run(project)
    run.train()
    run.accumulate()
    run.finetune()
    with counted_loads(vgg.batches) as loads:
        page = run.all()
    test = {p.path for p in project.code.loader("evaluate", project.evaluate_section).pictures}
    training = {p.path for p in project.code.loader("finetune", project.finetune_section).pictures}
    assert loads == {**dict.fromkeys(test, 3 + 2 + 1 + 2), **dict.fromkeys(training, 1 + 1)}
    results = Results.read(page.parent / "results.json")
    assert [layer.name for layer in results.layers] == ["classifier.0", "classifier.3"]
    for layer in results.layers:
        for curves in (layer.score_curves, layer.finetuned_curves):
            assert [curve.method for curve in curves] == list(project.config.solve.methods)
        assert {activity.domain for activity in layer.activity} == {"target", "source", "test"}
        assert all(curve.heldout is not None for curve in layer.error_curves)
    found = {activity.domain: activity.rows for activity in results.layers[0].activity}
    assert found == {
        "target": COUNTS[name]["train"],
        "source": 10,
        "test": COUNTS[name]["test"],
    }
    assert len(results.published) == 3
    assert "Beside the published numbers" in page.read_text()
    if name == "cub":
        ours_stands_beside_the_published_number_of_the_same_layer_method_and_size(results)


def ours_stands_beside_the_published_number_of_the_same_layer_method_and_size(results):
    table = results.published[2]
    assert table.title.startswith("MoMaSP, Table 4")
    svd = next(row for row in table.rows if row.label == "SVD")
    curve = next(c for c in results.layers[1].score_curves if c.method == "svd")
    ours = {point.size: point.score for point in curve.points}
    assert svd.published[:2] == pytest.approx((0.041, 0.126))
    assert svd.ours == (ours[4], ours[8], None, None, None, None)
    kept = [as_heavy_as(results.layers[1], rank) for rank in (4, 8)]
    for after, curves in {
        "": results.layers[1].score_curves,
        ", fine-tuned": results.layers[1].finetuned_curves,
    }.items():
        tuned = {c.method: {point.size: point.score for point in c.points} for c in curves}
        rows = {row.label: row.ours for row in table.rows}
        assert rows[f"SVD{after}"][:2] == (tuned["svd"][4], tuned["svd"][8])
        assert rows[f"MoMaSP (node){after}"][:2] == (tuned["momasp_node"][kept[0]], tuned["momasp_node"][kept[1]])
    baseline = table.rows[-1]
    assert baseline.published[0] == pytest.approx(0.615)
    assert baseline.ours[0] == results.baseline_score


def as_heavy_as(layer, rank):
    """Nodes that weigh as much as factors of that rank, both layers counted; all of them where the rank is large."""
    m, d, c = layer.outputs, layer.inputs, layer.next_outputs
    return min((rank * (m + d) + m * c) // (d + c), m)


def test_joint_search_scores_on_pictures_that_nothing_else_sees(picture_folder, start, tmp_path, vgg):
    project = tiny("joint", picture_folder, start, tmp_path / "run")
    results = Results.read(Run(project).all().parent / "results.json")
    search = Compression.read(project.compression).search
    assert search is not None
    assert {trial.layer for step in search.steps for trial in step.trials} == {"classifier.0", "classifier.3"}
    chosen = {p.path for p in project.code.loader("validation", project.config.validation).pictures}
    pictures = project.config.network.train_options["pictures"]
    fine_tuned = {p.path for p in vgg.data.target_train(seed=0, **pictures).pictures}
    used = {p.path for domain in ("target", "test") for p in project.code.batches(domain).pictures}
    assert len(chosen) == 6
    assert not chosen & (fine_tuned | used)
    (table,) = results.published
    assert table.rows[0].published == pytest.approx((0.0681, 0.5573, 0.5597))
    ours = table.rows[-1].ours
    before, after = (size.parameters for size in results.sizes)
    weights = sum(layer.layer_parameters for layer in results.layers)
    assert ours == (pytest.approx(1 - (before - after) / weights), results.baseline_score, results.sizes[1].score)


@pytest.mark.parametrize(
    ("method", "layers"),
    [
        ("momasp_node", ('compress.network="65%"',)),
        ("momasp_node", FC_ONLY),
        ("dalr_published", (*FC_ONLY, "finetune.dropout=true")),
        ("momasp_node", ('compress.network="65%"', "compress.order=sequential")),
    ],
    ids=["selection, conv and fc", "selection, fc", "DALR, fc", "layer after layer"],
)
def test_the_rows_of_the_whole_network(method, layers, picture_folder, start, tmp_path):
    more = (f'solve.methods=["{method}"]', f"compress.method={method}")
    project = tiny("whole", picture_folder, start, tmp_path / "run", *layers, *more)
    results = Results.read(Run(project).all().parent / "results.json")
    assert not any(layer.score_curves for layer in results.layers)
    before, after, tuned = results.sizes
    assert after.parameters == tuned.parameters <= project.config.compress.share * before.parameters
    rows = results.published[0].rows[-2:]
    for row, size in zip(rows, (after, tuned), strict=True):
        assert row.ours == (size.parameters, size.parameters / before.parameters, size.score)
    sequential = project.config.compress.order is Order.SEQUENTIAL
    assert [row.label.partition(":")[0] for row in rows] == ["compressed", "fine-tuned"]
    assert all(("one after the other" in row.label) == sequential for row in rows)


@pytest.mark.parametrize("name", list(DATASETS))
def test_run_files_are_whole_and_their_published_tables_can_be_read(name):
    config = load_config(VGG19_FOLDER / f"{name}.toml")
    published = Published.read(VGG19_FOLDER / config.report.published)
    assert published.accuracy or published.networks
    assert {table.layer for table in published.accuracy} <= {"classifier.0", "classifier.3"}
    assert config.network.start == Path("../../data/vgg19.safetensors")


def test_published_tables_are_complete():
    tables = [
        t for n in ("cub", "flowers", "actions") for t in Published.read(VGG19_FOLDER / f"published/{n}.toml").accuracy
    ]
    assert len(tables) == 9
    dalr = [table for table in tables if table.title.startswith("DALR")]
    for table in dalr:
        assert table.sizes == (32, 64, 128, 256, 512, 1024)
        assert [row.method for row in table.rows] == ["svd", "svd_bc", "prune_mean", "prune_max", "dalr_published"]
        for row in table.rows[:4]:  # what a transcription would get wrong: accuracy grows with the rank
            assert list(row.values) == sorted(row.values)


class TestNetwork:
    def test_names_and_shapes_are_those_of_torchvision(self, vgg):
        with torch.device("meta"):
            model = vgg.network.build()
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        assert sum(value.numel() for value in model.parameters()) == 143_667_240
        convolutions = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
        layers = [f"features.{n}" for n in convolutions] + [f"classifier.{n}" for n in (0, 3, 6)]
        assert list(shapes) == [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
        assert shapes["features.34.weight"] == (512, 512, 3, 3)
        assert shapes["classifier.0.weight"] == (4096, 25088)
        assert shapes["classifier.6.weight"] == (1000, 4096)

    def test_it_can_be_traced_and_built_again_alike(self, vgg):
        before = torch.get_rng_state()
        model, again = (vgg.network.build(**TINY, classes=3).eval() for _ in range(2))
        assert torch.equal(torch.get_rng_state(), before)
        pictures = torch.randn(2, 3, SIDE, SIDE)
        assert torch.equal(fx.symbolic_trace(model)(pictures), again(pictures))


class TestConversion:
    def test_every_tensor_is_kept(self, start):
        published = torch.load(start.with_suffix(".pth"), weights_only=True)
        converted = load_file(start)
        assert converted.keys() == published.keys()
        assert all(torch.equal(value, converted[name]) for name, value in published.items())

    def test_code_in_the_file_is_not_executed(self, vgg, tmp_path):
        class Trap:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "sprung",))

        torch.save({"features.0.weight": Trap()}, tmp_path / "bad.pth")
        with pytest.raises(Exception, match=r"[Ww]eights only|weights_only"):
            vgg.convert.convert(tmp_path / "bad.pth", tmp_path / "out.safetensors", vgg.network.build(**TINY))
        assert not (tmp_path / "sprung").exists()
        assert not (tmp_path / "out.safetensors").exists()

    def test_a_damaged_or_foreign_file_is_named(self, vgg, start, tmp_path):
        named = tmp_path / "vgg19-00000000.pth"
        start.with_suffix(".pth").rename(named)
        with pytest.raises(InvalidInputError, match="its name says 00000000"):
            vgg.convert.convert(named, tmp_path / "out.safetensors")
        foreign = named.rename(tmp_path / "vgg19.pth")
        with pytest.raises(InvalidInputError, match="does not hold the weights of VGG19"):
            vgg.convert.convert(foreign, tmp_path / "out.safetensors", vgg.network.build(**{**TINY, "hidden": 8}))
        with pytest.raises(InvalidInputError, match="there is no"):
            vgg.convert.convert(tmp_path / "none.pth", tmp_path / "out.safetensors")


class TestFineTuning:
    @staticmethod
    def options(picture_folder):
        root = str(picture_folder / "actions")
        return {"dataset": "actions", "expect": COUNTS["actions"], "side": SIDE, "root": root}

    def train(self, vgg, picture_folder, start, **options):
        model, lines = vgg.network.build(**TINY, classes=tiny_images.CLASSES), []
        pictures = self.options(picture_folder)
        given = {"seed": 0, "epochs": 3, "batch_size": 4, **options}
        vgg.training.train(model, report=lines.append, start=start, pictures=pictures, **given)
        return model, lines

    @pytest.mark.parametrize("recipe", ["dalr", "momasp"])
    def test_convolutions_stay_and_the_fully_connected_layers_learn(self, vgg, picture_folder, start, recipe):
        model, lines = self.train(vgg, picture_folder, start, recipe=recipe)
        published = load_file(start)
        for name, value in model.state_dict().items():
            if not name.startswith("classifier.6"):
                assert torch.equal(value, published[name]) == name.startswith("features"), name
        assert model.classifier[6].out_features == tiny_images.CLASSES
        assert not model.training
        assert [line.partition(":")[0] for line in lines[1:]] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]

    def test_fc6_and_fc7_learn_at_a_tenth_of_the_rate(self, vgg):
        classifier = vgg.network.build(**TINY, classes=3).classifier
        trunk, last = vgg.training.Recipe("dalr", 1, 0.5).optimiser(classifier).param_groups
        assert (trunk["lr"], last["lr"]) == (0.05, 0.5)
        assert [id(p) for p in last["params"]] == [id(p) for p in classifier[6].parameters()]
        assert len(trunk["params"]) == 4
        adam = vgg.training.Recipe("momasp", 1, 1e-4).optimiser(classifier)
        assert isinstance(adam, torch.optim.Adam)
        (group,) = adam.param_groups
        assert (group["lr"], group["weight_decay"], len(group["params"])) == (1e-4, 5e-4, 6)

    def test_it_follows_the_seed_alone_and_leaves_the_random_state(self, vgg, picture_folder, start):
        before = torch.get_rng_state()
        one, again, other = (self.train(vgg, picture_folder, start, seed=seed)[0] for seed in (0, 0, 1))
        assert torch.equal(torch.get_rng_state(), before)
        weights = [model.classifier[3].weight for model in (one, again, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    def test_it_learns_the_colours(self, vgg, picture_folder, start):
        model, _ = self.train(vgg, picture_folder, start, epochs=30, learning_rate=0.3)
        batches = vgg.data.target_test(seed=0, **self.options(picture_folder))
        with torch.inference_mode():
            right = [bool(r) for x, y in batches for r in model(x).argmax(1) == y]
        assert np.mean(right) > 0.6

    def test_weights_that_do_not_fit_are_named(self, vgg, picture_folder, tmp_path):
        save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "odd.safetensors")
        with pytest.raises(DalrStreamError, match=r"network.start: .*'features.0.weight' in its shape"):
            self.train(vgg, picture_folder, tmp_path / "odd.safetensors")

    def test_an_unknown_recipe_is_refused(self, vgg, picture_folder, start):
        with pytest.raises(InvalidInputError, match="must be 'dalr' or 'momasp', got 'sgd'"):
            self.train(vgg, picture_folder, start, recipe="sgd")


def test_a_dry_run_names_everything_that_is_missing_at_once(picture_folder, tmp_path):
    project = tiny(
        "cub", picture_folder, tmp_path / "no.safetensors", tmp_path / "run", "domains.source.options.root=/none"
    )
    found = dry_run(project)
    assert len(found.problems) == 2
    assert "'/none'" in found.problems[0]
    assert "no.safetensors" in found.problems[1]
    assert [facts.key for facts in found.loaders] == ["domains.target", "domains.test", "finetune", "evaluate"]
    assert not (tmp_path / "run").exists()


def test_a_dry_run_counts_the_pictures_and_plans_the_steps(picture_folder, start, tmp_path):
    project = tiny("cub", picture_folder, start, tmp_path / "run")
    found = dry_run(project)
    found.require()
    assert {facts.key: facts.samples for facts in found.loaders} == {
        "domains.target": 12,
        "domains.source": 10,
        "domains.test": 9,
        "finetune": 12,
        "evaluate": 9,
    }
    assert all(facts.exact and facts.first.endswith(f"3 x {SIDE} x {SIDE} float32") for facts in found.loaders)
    assert found.plan is not None
    assert [layer.name for layer in found.plan.layers] == ["classifier.0", "classifier.3", "classifier.6"]
    assert all(done for _, done in found.steps)
    assert [name for name, _ in found.steps][-5:] == ["solve", "compress", "finetune", "evaluate", "report"]
    tried = sum(len(sizes) for sizes in by_hand_sizes(project).values())
    assert found.cost.trials == (
        f"evaluate: {tried} networks, and the 3 of the run; fine-tune: {tried + 1} of these, 2 epochs each"
    )
    assert not (tmp_path / "run").exists()


def by_hand_sizes(project):
    """The sizes of each layer and method: ranks below break-even; as many nodes, and as many as weigh the same."""
    found = {}
    for name, (m, d, c) in {"fc6": (16, 24, 16), "fc7": (16, 16, 3)}.items():
        ranks = [rank for rank in (1, 2, 4, 8) if rank * (m + d) <= m * d]
        nodes = {1, 2, 4, 8} | {min((rank * (m + d) + m * c) // (d + c), m) for rank in ranks}
        for method in project.config.solve.methods:
            found[name, method] = ranks if method.family is Family.LOW_RANK else nodes
    return found


def test_figure_2_is_of_the_network_before_any_fine_tuning(vgg, picture_folder, monkeypatch):
    monkeypatch.syspath_prepend(VGG19_FOLDER.parent / "shared")
    figure = importlib.import_module("vgg19_figure2")
    model = vgg.network.build(**TINY, classes=7).eval()
    root = str(picture_folder / "actions")
    batches = vgg.data.target_train(dataset="actions", seed=0, root=root, expect=COUNTS["actions"], side=SIDE)
    found = figure.rates(model, batches)
    with torch.inference_mode():
        flat = model.flat(torch.cat([inputs for inputs, _ in batches]))
        hidden = model.classifier[1](model.classifier[0](flat))
    for name, values in (("fc6", flat), ("fc7", hidden)):
        np.testing.assert_allclose(found[name], (values > 0).double().mean(dim=0))
    even, uneven = np.full(10, 0.3), np.array([0.95, *[0.1] * 9])
    printed = figure.table({"cub": {"fc6": even, "fc7": uneven}})
    assert "| cub | 50.00 | 19.13 | 10.00 | 24.93 |" in printed


def test_parts_that_are_timed_are_the_whole_network(vgg):
    timing = importlib.import_module("vgg19_timing")
    model = vgg.network.build(**TINY, classes=3).eval()
    found = timing.measure(model, torch.zeros(2, 3, SIDE, SIDE), 2)
    assert [part.name for part in found] == ["convolutions", "fc6", "fc7", "fc8"]
    assert sum(part.parameters for part in found) == sum(p.numel() for p in model.parameters())
    assert found[1].parameters == 16 * 25
