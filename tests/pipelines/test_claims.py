"""The claims of the papers on the digits networks: each measure against what it stands for, and one seed in small."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dalr_stream as ds

SHARE = "share carrying half of the activations"
DIGITS = Path(__file__).parents[2] / "pipelines" / "digits"


@pytest.fixture
def claims(monkeypatch):
    monkeypatch.syspath_prepend(DIGITS.parent / "shared")
    monkeypatch.syspath_prepend(DIGITS)
    names = {"networks": "claims_networks", "solved": "claims_solved", "measures": "claims_measures"}
    names |= {"script": "claims", "data": "digits_data"}
    modules = SimpleNamespace(**{short: importlib.import_module(name) for short, name in names.items()})
    monkeypatch.setattr(modules.networks, "TEST_GLYPHS", 60)
    for module in (modules.solved, modules.measures):
        monkeypatch.setattr(module, "RANKS", (1, 8))
    monkeypatch.setattr(modules.solved, "FINE_RANKS", (2, 8))
    monkeypatch.setattr(modules.measures, "PAPER_RANKS", {"fc6": (2, 8), "fc7": (2, 8)})
    monkeypatch.setattr(modules.measures, "MOMASP_RANKS", {"fc6": (1, 8), "fc7": (1, 8)})
    monkeypatch.setattr(modules.measures, "PICKS", (0, 4))
    return modules


@pytest.fixture
def scale(claims):
    training = {"source_samples": 300, "source_epochs": 1, "target_epochs": 2}
    network = {"first_channels": 2, "second_channels": 4, "width": 24}
    return claims.networks.Scale(
        tuple(network.items()), tuple(training.items()), classes=12, statistics=120, digits="sklearn"
    )


def test_the_two_networks_are_those_of_the_main_job_and_are_read_again(claims, scale, tmp_path):
    lines = []
    source, target = claims.networks.domains(0, tmp_path, scale, lines.append)
    assert lines
    again, _ = claims.networks.domains(0, tmp_path, scale, pytest.fail)
    assert torch.equal(again.network.fc8.weight, source.network.fc8.weight)
    assert source.network.fc8.out_features == 12
    assert target.network.fc8.out_features == 10
    # Frozen features are common to both; the dense layers moved.
    assert torch.equal(source.network.features[0].weight, target.network.features[0].weight)
    assert not torch.equal(source.network.fc6.weight, target.network.fc6.weight)
    own = importlib.import_module("digits_network").build(**dict(scale.network))
    training = importlib.import_module("digits_training")
    training.train(own, seed=0, report=lambda _: None, classes=12, **dict(scale.training))
    assert torch.equal(own.fc7.weight, target.network.fc7.weight)


def test_one_seed_gives_every_claim_and_is_read_again(claims, scale, tmp_path):
    found = claims.script.measure(0, tmp_path, scale)
    assert list(found) == ["baselines", *(claim.__name__ for claim in claims.measures.CLAIMS)]
    (file,) = tmp_path.glob("figures-*.json")
    written = file.stat().st_mtime_ns
    assert repr(claims.script.measure(0, tmp_path, scale)) == repr(found)  # NaN differs from itself, not in print
    assert file.stat().st_mtime_ns == written
    ratio = found["bias_compensation"]
    for layer in ("fc6", "fc7"):
        # On 60 rows of its own kind BC cannot be far worse than SVD, and DALR with 120 rows improves on it.
        assert 0 < ratio[f"{layer}, source: output error, SVD + BC / SVD, mean over ranks"] < 1.1
        assert 0 < ratio[f"{layer}, source: output error, DALR / SVD, mean over ranks"] < 1.1
        assert 0 < found["activation_shift"][f"{layer} inputs: {SHARE}, source (%)"] <= 50
    printed = claims.script.table([found, found])
    assert "**momasp over dalr**" in printed
    assert "2/2" in printed


def test_half_of_equal_rates_is_carried_by_half_of_the_features(claims):
    assert claims.measures.half_share(np.full(10, 0.3)) == 0.5
    assert claims.measures.half_share(np.array([0.0, 0.9, 0.1, 0.0])) == 0.25


def test_candidate_ratios_equal_the_naive_twin(claims):
    rng = np.random.default_rng(0)
    rows = np.maximum(rng.standard_normal((200, 6)) @ rng.standard_normal((6, 9)), 0.0)
    rows[:, 4] = 0.0
    sigma = ds.Moments.of(rows).second_moment
    for chosen in ([], [2, 7]):
        naive = []
        for j in sorted(set(range(9)) - set(chosen) - {4}):
            kept = [*chosen, j]
            block = np.linalg.pinv(sigma[np.ix_(kept, kept)])
            naive.append(np.trace(sigma[:, kept] @ block @ sigma[kept]) / np.trace(sigma))
        np.testing.assert_allclose(claims.measures.candidate_ratios(sigma, chosen), naive, rtol=1e-9)


def test_a_sufficient_rank_is_the_start_of_a_run_without_a_drop(claims, monkeypatch):
    monkeypatch.setattr(claims.solved, "FINE_RANKS", (2, 4, 6, 8))
    solved = claims.solved.Solved(claims.networks.Domain(torch.nn.Identity(), None, None), {})
    factors = SimpleNamespace(break_even_rank=8)
    vars(solved)["baseline"] = 0.9  # as cached_property keeps it
    for rank, value in {2: 0.9, 4: 0.85, 6: 0.895, 8: 0.9}.items():
        solved._known["fc6", "name", rank] = value
    assert solved.sufficient_rank("fc6", "name", factors) == 6
    solved._known["fc6", "name", 8] = 0.5
    assert np.isnan(solved.sufficient_rank("fc6", "name", factors))


def test_a_gain_over_the_papers_shares_is_of_those_ranks(claims):
    solved = claims.solved.Solved(claims.networks.Domain(torch.nn.Identity(), None, None), {})
    factors = SimpleNamespace(break_even_rank=8)
    for rank, (one, other) in {2: (0.6, 0.5), 8: (0.9, 0.8)}.items():
        solved._known["fc6", "one", rank], solved._known["fc6", "other", rank] = one, other
    gain = claims.measures.gain_as_published(solved, "fc6", ("one", factors), ("other", factors))
    assert gain == pytest.approx(10.0)


def test_ranks_of_the_papers_are_at_their_shares_of_the_parameters(monkeypatch):
    monkeypatch.syspath_prepend(DIGITS.parent / "shared")
    monkeypatch.syspath_prepend(DIGITS)
    measures = importlib.import_module("claims_measures")
    for layer, inputs in (("fc6", 25_088), ("fc7", 4096)):
        ends = measures.PAPER_RANKS[layer][0], measures.PAPER_RANKS[layer][-1]
        for ours, published in zip(ends, (32, 1024), strict=True):
            assert 2 * ours / 768 == pytest.approx(published * (inputs + 4096) / (inputs * 4096), rel=0.15)
    assert 2 * measures.MOMASP_RANKS["fc7"][5] / 768 == pytest.approx(0.0625)


def test_means_come_with_what_they_exclude(claims):
    nan = float("nan")
    assert claims.script.spread([nan, 2.0, 4.0]) == "3.00 +- 1.00 (2 of 3 seeds) | -9.71 .. 15.71 | 2/2"
    assert claims.script.spread([1.0, 2.0, 3.0]) == "2.00 +- 0.58 | -0.48 .. 4.48 | 3/3"
    assert claims.script.spread([nan]).startswith("not reached")
    assert claims.script.spread([nan, 2.0]) == "2.00 (1 of 2 seeds) | | 1/1"
