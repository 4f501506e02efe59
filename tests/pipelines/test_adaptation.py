"""The adaptation pipeline: its data, its three steps, the sums of statistics, sizes at a rate, and its tables."""

from __future__ import annotations

import copy
import gzip
import importlib
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.io
import torch

import dalr_stream as ds
from dalr_stream.network.surgery.compress import parameter_count
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project

ADAPTATION = Path(__file__).parents[2] / "pipelines" / "adaptation"
PAIR = {"source": "glyphs", "target": "digits"}
TINY = {"channels": (4, 4, 4), "width": 24}
SHORT = {"warm_up": 12, "steps": 14, "generator_steps": 2, "batch_size": 32}
LAYERS = ("generator.conv1", "generator.conv2", "generator.conv3", "generator.fc1", "classifier.fc2")


pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def adaptation(monkeypatch):
    monkeypatch.syspath_prepend(ADAPTATION.parent / "shared")
    monkeypatch.syspath_prepend(ADAPTATION)
    names = {"data": "adaptation_data", "network": "adaptation_network", "training": "adaptation_training"}
    names |= {"selection": "adaptation_selection", "tables": "adaptation_tables", "pictures": "adaptation_pictures"}
    names |= {"experiment": "experiment", "files": "digit_files"}
    modules = SimpleNamespace(**{short: importlib.import_module(name) for short, name in names.items()})
    monkeypatch.setattr(modules.data, "GLYPH_SAMPLES", {"train": 600, "test": 50})
    return modules


@pytest.fixture
def tiny(adaptation):
    """A network that was trained for a moment, and its two sets of rows."""
    network = adaptation.network.build(**PAIR, **TINY)
    adaptation.training.train(network, seed=0, report=lambda _: None, **PAIR, **SHORT)
    target = adaptation.data.target_statistics(seed=0, **PAIR)
    return network, target, adaptation.data.source_statistics(seed=0, **PAIR)


class TestData:
    def test_settings_of_the_paper_have_half_as_many_source_rows(self, adaptation):
        target = adaptation.data.target_statistics(seed=0, **PAIR)
        source = adaptation.data.source_statistics(seed=0, **PAIR)
        assert (len(target.labels), len(source.labels)) == (1000, 500)
        assert target.inputs.shape[1:] == source.inputs.shape[1:] == (1, 8, 8)
        assert len(adaptation.data.target_test(seed=0, **PAIR).labels) == 797

    def test_glyphs_are_digits_in_equal_shares_and_splits_differ(self, adaptation):
        train = adaptation.data.source_train(seed=0, **PAIR)
        assert torch.bincount(train.labels).tolist() == [60] * 10
        drawn = adaptation.data.source_train(seed=0, samples=50, **PAIR)
        assert not np.array_equal(drawn.inputs[:, 0].numpy(), adaptation.data.DATA_SETS["glyphs"]("test", 0, "").pixels)

    def test_the_digits_are_split_once_and_settings_are_chosen_on_training_digits_alone(self, adaptation):
        def pictures(batches):
            return sorted(batches.inputs.flatten(1).tolist())

        one, other = (adaptation.data.target_test(seed=seed, **PAIR) for seed in (0, 1))
        assert torch.equal(one.inputs, other.inputs)
        chosen_on = {**PAIR, "target": "validation"}
        learnt, judged = (
            adaptation.data.target_train(seed=0, **chosen_on),
            adaptation.data.target_test(seed=0, **chosen_on),
        )
        assert (len(learnt.labels), len(judged.labels)) == (700, 300)
        assert sorted(pictures(learnt) + pictures(judged)) == pictures(adaptation.data.target_train(seed=0, **PAIR))

    @pytest.mark.parametrize(
        ("source", "target", "words"),
        [
            ("glyphs", "mnist", "pair glyphs or mnist-5000 with digits"),
            ("usps", "mnist", "no data set 'usps'; there is glyphs"),
        ],
    )
    def test_a_pair_that_does_not_go_together_is_refused(self, adaptation, source, target, words):
        with pytest.raises(ValueError, match=words):
            adaptation.network.build(source=source, target=target)

    def test_the_sample_of_mnist_is_a_source_alone(self, adaptation, monkeypatch):
        pixels = np.linspace(0, 1, 20 * 28 * 28, dtype=np.float32).reshape(20, 28, 28)
        sample = adaptation.files.Pictures(pixels, np.arange(20) % 10)
        monkeypatch.setattr(adaptation.data, "mnist_sample", lambda: sample)
        found = adaptation.data.source_train(seed=0, source="mnist-5000", target="digits")
        assert found.inputs.shape == (20, 1, 8, 8)
        with pytest.raises(ValueError, match="use it as the source"):
            adaptation.data.target_test(seed=0, source="glyphs", target="mnist-5000")

    def test_too_many_samples_are_refused(self, adaptation):
        with pytest.raises(ValueError, match=r"samples must lie in 1\.\.600, got 601"):
            adaptation.data.source_train(seed=0, samples=601, **PAIR)


class TestTraining:
    def test_each_step_moves_what_it_may_and_lowers_what_it_should(self, adaptation):
        network = adaptation.network.build(**PAIR, **TINY)
        rival = copy.deepcopy(network.classifier)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            adaptation.network.reset(rival)
        learner = adaptation.training._Discrepancy(network.generator, (network.classifier, rival), 1e-3)
        rows = adaptation.data.source_train(seed=0, samples=64, **PAIR)
        unlabelled = adaptation.data.target_train(seed=0, samples=64, **PAIR).inputs

        def discrepancy():
            with torch.no_grad():
                both = learner._probabilities(network.generator(unlabelled))
                return float(adaptation.training._discrepancy(both))

        def moved(step):
            before = {name: value.detach().clone() for name, value in network.named_parameters()}
            step()
            after = dict(network.named_parameters())
            return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}

        assert moved(lambda: learner.classify(rows.inputs, rows.labels)) == {"generator", "classifier"}
        start = discrepancy()
        assert moved(lambda: learner.part(rows.inputs, rows.labels, unlabelled)) == {"classifier"}
        apart = discrepancy()
        assert apart > start
        assert moved(lambda: [learner.align(unlabelled) for _ in range(5)]) == {"generator"}
        assert discrepancy() < apart

    def test_the_balance_is_best_where_every_class_occurs_and_finite_where_one_does_not(self, adaptation):
        every, undecided, one = torch.eye(10), torch.full((10, 10), 0.1), torch.eye(10)[[3] * 10]
        best, same, worst = (float(adaptation.training._imbalance([p, p])) for p in (every, undecided, one))
        assert best == pytest.approx(2 * np.log(10), rel=1e-4)
        assert same == pytest.approx(best)
        assert best < worst < np.inf

    def test_training_follows_the_seed_and_leaves_the_random_state(self, adaptation):
        before = torch.get_rng_state()

        def trained(seed):
            network = adaptation.network.build(**PAIR, **TINY)
            adaptation.training.train(network, seed=seed, report=lambda _: None, **PAIR, **SHORT)
            return network.generator.fc1.weight

        assert torch.equal(trained(0), trained(0))
        assert not torch.equal(trained(0), trained(1))
        assert torch.equal(torch.get_rng_state(), before)

    def test_foreign_model_is_refused(self, adaptation):
        with pytest.raises(TypeError, match=r"must be an AdaptationNetwork .*, got Linear"):
            adaptation.training.train(torch.nn.Linear(2, 2), seed=0, report=print, **PAIR)


class TestSelection:
    def test_settings_are_the_sums_they_stand_for(self, adaptation, tiny):
        network, target, source = tiny
        found = adaptation.selection.Statistics.of(network, target, source).settings
        whole = adaptation.selection.node_moments(network, target)
        assert tuple(found["target"]) == LAYERS
        for layer in LAYERS:
            np.testing.assert_allclose(found["target"][layer].second_moment, whole[layer].second_moment, atol=1e-10)

    def test_nodes_are_seen_after_the_nonlinearity_at_every_position(self, adaptation, tiny):
        network, target, _ = tiny
        found = adaptation.selection.node_moments(network, target)
        with torch.inference_mode():
            features = network.generator(target.inputs).numpy()
            maps = network.generator[:3](target.inputs).numpy()
        np.testing.assert_allclose(found["generator.fc1"].mean, features.mean(axis=0), rtol=1e-5, atol=1e-6)
        channels = found["generator.conv1"]
        np.testing.assert_allclose(channels.mean, maps.mean(axis=(0, 2, 3)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(channels.active_rate, (maps > 0).mean(axis=(0, 2, 3)), rtol=1e-5)
        assert channels.count == 1000 * 64

    def test_parameters_are_those_of_the_compressed_network(self, adaptation, tiny):
        network, target, source = tiny
        chosen = adaptation.selection.Statistics.of(network, target, source).momasp("node", 1.0)
        sizes = dict(zip(LAYERS, (2, 3, 1, 5, 3), strict=True))
        small = adaptation.selection.compressed(ds.network.Structure.of(network, target.inputs), chosen, sizes)
        assert adaptation.selection.parameters(network, sizes) == parameter_count(small)
        assert adaptation.selection.parameters(network, {}) == parameter_count(network)

    def test_every_node_kept_is_the_same_network(self, adaptation, tiny):
        network, target, source = tiny
        chosen = adaptation.selection.Statistics.of(network, target, source).spectral("target")
        sizes = {name: one.order.size for name, one in chosen.items()}
        same = adaptation.selection.compressed(ds.network.Structure.of(network, target.inputs), chosen, sizes)
        with torch.inference_mode():
            torch.testing.assert_close(same(target.inputs), network(target.inputs), rtol=1e-4, atol=1e-4)

    def test_sizes_are_the_largest_common_retention_that_fits(self, adaptation, tiny):
        network, target, source = tiny
        chosen = adaptation.selection.Statistics.of(network, target, source).spectral("target")
        rate = 0.5
        sizes = adaptation.selection.sizes_at_rate(network, chosen, rate)
        allowed = (1 - rate) * parameter_count(network)
        assert adaptation.selection.parameters(network, sizes) <= allowed
        reached = min(one.retention[sizes[name] - 1] for name, one in chosen.items())
        every = sorted({float(r) for one in chosen.values() for r in one.retention})
        larger = next(r for r in every if r > reached)
        one_more = {name: one.at_retention(larger).size for name, one in chosen.items()}
        assert adaptation.selection.parameters(network, one_more) > allowed

    def test_a_rate_out_of_reach_is_refused(self, adaptation, tiny):
        network, target, source = tiny
        chosen = adaptation.selection.Statistics.of(network, target, source).spectral("target")
        with pytest.raises(ValueError, match=r"a rate of 99\.9% cannot be reached by .*conv1, .*fc2: add"):
            adaptation.selection.sizes_at_rate(network, chosen, 0.999)

    def test_the_regulariser_alone_takes_the_nodes_that_moved_least(self, adaptation, tiny):
        network, target, source = tiny
        found = adaptation.selection.Statistics.of(network, target, source)
        alone = found.momasp("node", adaptation.selection.ALONE)["generator.fc1"]
        shift = ds.numerics.diff(found.settings["target"]["generator.fc1"], found.source["generator.fc1"])
        penalty = np.abs(shift.source_mean - shift.target_mean) + shift.covariance_shift
        live = np.flatnonzero(shift.live)
        assert alone.order[:3].tolist() == live[np.argsort(penalty[live], kind="stable")][:3].tolist()

    def test_in_turn_the_first_layer_keeps_the_nodes_that_it_keeps_at_once(self, adaptation, tiny):
        network, target, source = tiny
        found = adaptation.selection.Statistics.of(network, target, source)
        sizes = dict(zip(LAYERS, (3, 3, 3, 12, 12), strict=True))
        chosen = found.spectral("target")
        small = adaptation.selection.in_turn(network, "spectral", sizes, target, source)
        kept = sorted(chosen["generator.conv1"].order[:3].tolist())
        assert torch.equal(small.generator.conv1.weight, network.generator.conv1.weight[kept])
        assert parameter_count(small) == adaptation.selection.parameters(network, sizes)

    def test_specificity_parts_nodes_by_the_domain_that_chose_them(self, adaptation):
        rng = np.random.default_rng(0)
        loud, quiet = rng.exponential(2.0, (200, 1)), rng.exponential(0.1, (200, 1)) * (rng.random((200, 1)) < 0.25)
        noise = np.zeros((200, 1))
        target, source = (ds.Moments.of(np.hstack(parts)) for parts in ((loud, quiet, noise), (quiet, loud, noise)))
        found = adaptation.selection.specificity(target, source, 1)
        assert found["on target"]["target"] == found["on source"]["source"] == 1.0
        assert found["on target"]["source"] < 0.5
        assert found["on source"]["none"] == 0.0
        same = adaptation.selection.specificity(target, target, 1)
        assert same["on target"]["target"] is None

        assert adaptation.tables.spread([None, None]) == "no such nodes"


def tiny_settings(adaptation, **training):
    return adaptation.experiment.Settings(PAIR, TINY, {**SHORT, **training})


def test_the_experiment_gives_every_row_and_reads_what_it_measured(adaptation, tmp_path, monkeypatch):
    for module in (adaptation.experiment, adaptation.tables, adaptation.pictures):
        monkeypatch.setattr(module, "RATES", (0.3, 0.5))
    monkeypatch.setattr(adaptation.pictures, "PUBLISHED_RATES", {"target": (94.6, 94.0)})
    monkeypatch.setattr(adaptation.experiment, "STRENGTHS", (1.0,))
    first = adaptation.experiment.measure(0, tmp_path, tiny_settings(adaptation))
    written = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert adaptation.experiment.measure(0, tmp_path, tiny_settings(adaptation)) == first
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == written
    names = ["target", "target/source", "target+source", "target, dense layers only"]
    names += [f"{form}, {how}" for form in ("node", "subset") for how in ("strength 1", "alone")]
    names += [f"{name}, layer after layer" for name in ("target", "node, strength 1", "subset, strength 1")]
    assert list(first["accuracies"]) == names
    pictures = adaptation.pictures.draw([first, first], tmp_path)
    assert [path.name for path in pictures] == ["figure-2.png", "figure-3.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert all(0 <= value <= 100 for values in first["accuracies"].values() for value in values)
    printed = adaptation.tables.table([first, first])
    counted = printed.partition("repetitions above `target`")[2].splitlines()[2]
    gained = first["accuracies"]["target/source"][0] > first["accuracies"]["target"][0]
    assert counted.startswith(f"| target/source | {2 * gained}/2 |")
    assert "| *node, strength 1, published* | *95.2*" in printed
    assert "| mean activation rate | source nodes | target nodes | none |" in printed
    for row in (*LAYERS, "generator.conv1, on source", "*first layer, on target, published*"):
        assert f"| {row} |" in printed


def test_other_settings_never_read_what_was_measured(adaptation, tmp_path, monkeypatch):
    monkeypatch.setattr(adaptation.experiment, "RATES", (0.3,))
    monkeypatch.setattr(adaptation.experiment, "STRENGTHS", ())
    first = adaptation.experiment.measure(0, tmp_path, tiny_settings(adaptation))
    longer = adaptation.experiment.measure(0, tmp_path, tiny_settings(adaptation, steps=16))
    assert longer["settings"]["training"]["steps"] == 16
    assert longer["baseline"] != first["baseline"] or longer["accuracies"] != first["accuracies"]
    assert len(list(tmp_path.glob("adapted-*.safetensors"))) == 2


def test_the_command_line_takes_settings_and_repetitions(adaptation, tmp_path, monkeypatch, capsys):
    seen = []

    def measure(seed, folder, settings):
        seen.append((seed, folder, settings))
        folder.mkdir(parents=True)
        return {"seed": seed}

    monkeypatch.setattr(adaptation.experiment, "RUNS", tmp_path)
    monkeypatch.setattr(adaptation.experiment, "measure", measure)
    monkeypatch.setattr(adaptation.experiment, "table", str)
    monkeypatch.setattr(adaptation.experiment, "draw", lambda *_: None)
    options = {"--steps": "9000", "--warm-up": "90", "--width": "64", "--repeats": "2"}
    adaptation.experiment.main(["--pair", "svhn", "mnist", *(word for pair in options.items() for word in pair)])
    assert [(seed, folder) for seed, folder, _ in seen] == [(n, tmp_path / f"svhn-mnist/seed{n}") for n in range(2)]
    assert seen[0][2].network == {"width": 64}
    assert seen[0][2].training == {"steps": 9000, "warm_up": 90}
    assert "{'seed': 1}" in capsys.readouterr().out
    seen.clear()
    adaptation.experiment.main(["7", "8"])
    assert [seed for seed, _, _ in seen] == [7, 8]


FILES = [("run.toml", PAIR), ("svhn_mnist.toml", {"source": "svhn", "target": "mnist"})]


@pytest.mark.parametrize(("file", "pair"), FILES, ids=["glyphs", "svhn"])
def test_the_run_files_run_to_their_report(adaptation, tmp_path, monkeypatch, file, pair):
    monkeypatch.setattr(adaptation.files, "COUNTS", {name: {"train": 40, "test": 20} for name in ("svhn", "mnist")})
    write_official_files(tmp_path)
    settings = [
        f'run.output="{tmp_path / "run"}"',
        f'options.root="{tmp_path}"',
        "network.options={ channels = [4, 4, 4], width = 24 }",
        "network.train_options={ warm_up = 4, steps = 5, generator_steps = 1 }",
        'solve.methods=["spectral", "momasp_node", "momasp_subset"]',
        "compress.energy=0.6",
        "evaluate.ranks=[4]",
    ]
    project = Project(load_config(ADAPTATION / file, settings), ADAPTATION)
    assert project.config.domains["test"].options == {**pair, "root": str(tmp_path)}
    report = Run(project).all()
    assert report.exists()
    small = ds.load(project.compressed, project.code.build)
    assert small.generator.conv1.out_channels == small.generator.conv2.in_channels < 4
    assert small.generator.fc1.out_features == small.classifier.fc2.in_features < 24


def write_official_files(folder):
    """Write 40 and 20 pictures of noise as SVHN (MATLAB, colour) and as MNIST (gzipped idx)."""
    rng = np.random.default_rng(0)
    for name in ("svhn", "mnist"):
        (folder / name).mkdir()
    for split, count in (("train", 40), ("test", 20)):
        labels = np.arange(count, dtype=np.uint8) % 10
        colours = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        scipy.io.savemat(
            folder / "svhn" / f"{split}_32x32.mat", {"X": colours, "y": np.where(labels == 0, 10, labels)[:, None]}
        )
        prefix = "train" if split == "train" else "t10k"
        parts = {"images-idx3": rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), "labels-idx1": labels}
        for kind, values in parts.items():
            header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
            (folder / "mnist" / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes()))
