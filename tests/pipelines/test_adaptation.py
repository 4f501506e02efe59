"""The adaptation pipeline: its data, its three steps, the sums of statistics, sizes at a rate, and its tables."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dalr_stream as ds
from dalr_stream.network.surgery import parameter_count
from dalr_stream.workflow.config import load_config
from dalr_stream.workflow.project import Project
from dalr_stream.workflow.run import Run

ADAPTATION = Path(__file__).parents[2] / "pipelines" / "adaptation"
PAIR = {"source": "glyphs", "target": "digits"}
TINY = {"channels": (4, 4, 4), "width": 24}
SHORT = {"warm_up": 12, "steps": 2, "generator_steps": 2, "batch_size": 32}


@pytest.fixture
def adaptation(monkeypatch):
    monkeypatch.syspath_prepend(ADAPTATION.parent / "shared")
    monkeypatch.syspath_prepend(ADAPTATION)
    names = {"data": "adaptation_data", "network": "adaptation_network", "training": "adaptation_training"}
    names |= {"selection": "adaptation_selection", "experiment": "experiment", "files": "digit_files"}
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
        assert not np.array_equal(drawn.inputs[:, 0].numpy(), adaptation.data.DATA_SETS["glyphs"]("test", 0).pixels)

    def test_svhn_to_mnist_is_another_pair_of_names(self, adaptation, monkeypatch):
        def pictures(side):
            return lambda _: adaptation.files.Pictures(
                np.full((4, side, side), 0.5, np.float32), np.arange(4, dtype=np.int64)
            )

        monkeypatch.setattr(adaptation.data, "svhn", pictures(32))
        monkeypatch.setattr(adaptation.data, "mnist", pictures(28))
        pair = {"source": "svhn", "target": "mnist"}
        for rows in (adaptation.data.source_train(seed=0, **pair), adaptation.data.target_test(seed=0, **pair)):
            assert rows.inputs.shape == (4, 1, 32, 32)
        network = adaptation.network.build(**pair, **TINY)
        assert network(adaptation.data.target_test(seed=0, **pair).inputs).shape == (4, 10)

    @pytest.mark.parametrize(
        ("source", "target", "words"),
        [("glyphs", "mnist", "pair glyphs with digits"), ("usps", "mnist", "no data set 'usps'; there is glyphs")],
    )
    def test_a_pair_that_does_not_go_together_is_refused(self, adaptation, source, target, words):
        with pytest.raises(ValueError, match=words):
            adaptation.network.build(source=source, target=target)

    def test_too_many_samples_are_refused(self, adaptation):
        with pytest.raises(ValueError, match=r"samples must lie in 1\.\.600, got 601"):
            adaptation.data.source_train(seed=0, samples=601, **PAIR)


class TestTraining:
    def test_each_step_moves_what_it_may_and_lowers_what_it_should(self, adaptation):
        network = adaptation.network.build(**PAIR, **TINY)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            rival = adaptation.training._rival(network)
        learner = adaptation.training._Discrepancy(network, rival, 1e-3)
        rows = adaptation.data.source_train(seed=0, samples=64, **PAIR)
        unlabelled = adaptation.data.target_train(seed=0, samples=64, **PAIR).inputs
        heads = {"fc2", "fc3"}

        def discrepancy():
            with torch.no_grad():
                return float(learner._discrepancy(network.generate(unlabelled)))

        def moved(step):
            before = {name: value.clone() for name, value in network.state_dict().items()}
            step()
            after = network.state_dict()
            return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}

        everything = {"conv1", "conv2", "conv3", "fc1", "fc2", "fc3"}
        assert moved(lambda: learner.classify(rows.inputs, rows.labels)) == everything
        start = discrepancy()
        assert moved(lambda: learner.part(rows.inputs, rows.labels, unlabelled)) == heads
        apart = discrepancy()
        assert apart > start
        assert moved(lambda: [learner.align(unlabelled) for _ in range(5)]) == everything - heads
        assert discrepancy() < apart

    def test_training_follows_the_seed_and_leaves_the_random_state(self, adaptation):
        before = torch.get_rng_state()

        def trained(seed):
            network = adaptation.network.build(**PAIR, **TINY)
            adaptation.training.train(network, seed=seed, report=lambda _: None, **PAIR, **SHORT)
            return network.fc1.weight

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
        assert {name: one["fc1"].count for name, one in found.items()} == {
            "target": 1000,
            "target/source": 1000,
            "target+source": 1500,
        }
        for layer in ("fc1", "fc2"):
            np.testing.assert_allclose(found["target"][layer].second_moment, whole[layer].second_moment, atol=1e-10)

    def test_nodes_are_seen_after_the_nonlinearity(self, adaptation, tiny):
        network, target, _ = tiny
        with torch.inference_mode():
            features = network.generate(target.inputs).numpy()
            maps = torch.relu(network.conv1(target.inputs)).numpy()
        found = adaptation.selection.node_moments(network, target)["fc1"]
        np.testing.assert_allclose(found.mean, features.mean(axis=0), rtol=1e-5, atol=1e-6)
        channels = adaptation.selection.channel_moments(network, target)
        np.testing.assert_allclose(channels.mean, maps.mean(axis=(0, 2, 3)), rtol=1e-5, atol=1e-6)
        assert channels.count == 1000 * 64

    def test_parameters_are_those_of_the_compressed_network(self, adaptation, tiny):
        network, target, source = tiny
        chosen = adaptation.selection.Statistics.of(network, target, source).momasp("node", 1.0)
        sizes = {"fc1": 5, "fc2": 3}
        small = adaptation.selection.compressed(network, chosen, sizes)
        assert adaptation.selection.parameters(network, sizes) == parameter_count(small)
        assert adaptation.selection.parameters(network, {}) == parameter_count(network)
        # Channels, which flatten into blocks of 16 inputs: 1 channel of conv3 feeds 16 inputs of fc1.
        fewer = adaptation.selection.parameters(network, {"conv3": 3})
        assert parameter_count(network) - fewer == 4 * 9 + 1 + 16 * 24

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
        with pytest.raises(ValueError, match=r"a rate of 99\.9% cannot be reached by fc1, fc2"):
            adaptation.selection.sizes_at_rate(network, chosen, 0.999)

    def test_the_regulariser_alone_takes_the_nodes_that_moved_least(self, adaptation, tiny):
        network, target, source = tiny
        found = adaptation.selection.Statistics.of(network, target, source)
        alone = found.momasp("node", adaptation.selection.ALONE)["fc1"]
        shift = ds.diff(found.settings["target"]["fc1"], found.source["fc1"])
        penalty = np.abs(shift.source_mean - shift.target_mean) + shift.covariance_shift
        live = np.flatnonzero(shift.live)
        assert alone.order[:3].tolist() == live[np.argsort(penalty[live], kind="stable")][:3].tolist()

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

        assert adaptation.experiment.spread([None, None]) == "no such nodes"


def test_the_experiment_gives_every_row_and_reads_what_it_measured(adaptation, tmp_path, monkeypatch):
    monkeypatch.setattr(adaptation.experiment, "RATES", (0.3, 0.5))
    monkeypatch.setattr(adaptation.experiment, "STRENGTHS", (1.0,))
    build = adaptation.network.build
    monkeypatch.setattr(adaptation.experiment, "build", lambda **pair: build(**pair, **TINY))
    first = adaptation.experiment.measure(0, tmp_path, PAIR, SHORT)
    written = (tmp_path / "figures.json").stat().st_mtime_ns
    assert adaptation.experiment.measure(0, tmp_path, PAIR, SHORT) == first
    assert (tmp_path / "figures.json").stat().st_mtime_ns == written
    names = ["target", "target/source", "target+source"]
    names += [f"{form}, {how}" for form in ("node", "subset") for how in ("strength 1", "alone")]
    assert list(first["accuracies"]) == names
    assert all(0 <= value <= 100 for values in first["accuracies"].values() for value in values)
    printed = adaptation.experiment.table([first, first])
    assert "| *node, strength 1, published* | *95.2*" in printed
    assert "| conv1: mean activation rate | source nodes | target nodes | none |" in printed


@pytest.mark.usefixtures("adaptation")
def test_the_run_file_runs_to_its_report(tmp_path):
    settings = [
        f'run.output="{tmp_path}"',
        "network.options={ channels = [4, 4, 4], width = 24 }",
        "network.train_options={ warm_up = 4, steps = 1, generator_steps = 1 }",
        'solve.methods=["spectral", "momasp_node", "momasp_subset"]',
        "compress.fc1.size=6",
        "compress.fc2.size=5",
        "evaluate.ranks=[4]",
    ]
    project = Project(load_config(ADAPTATION / "run.toml", settings), ADAPTATION)
    assert project.config.domains["test"].options == PAIR
    report = Run(project).all()
    assert report.exists()
    small = ds.load(project.compressed, project.build)
    assert (small.fc1.out_features, small.fc2.in_features, small.fc2.out_features) == (6, 6, 5)
