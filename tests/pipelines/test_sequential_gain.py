"""The script that sets layer after layer beside all at once, on small networks."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

import dalr_stream as ds

DIGITS_FOLDER = Path(__file__).parents[2] / "pipelines" / "digits"
SAMPLES = 300


@pytest.fixture(scope="module")
def gain():
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(DIGITS_FOLDER)
        patched.setattr(sys, "path", [*sys.path])
        yield importlib.import_module("sequential_gain")
    for name in (
        "gradient_estimators",
        "sequential_channels",
        "sequential_sizes",
        "sequential_gain",
        "deeper_networks",
        "digits_data",
        "digits_trained",
        "digits_training",
    ):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def cases(gain):
    from deeper_networks import dense_stack, residual
    from digits_network import build

    train, *others = gain.split(0, SAMPLES)
    stack = dense_stack(train, seed=0, width=16, depth=3, epochs=2)
    net = residual(train, seed=0, channels=(4, 6), epochs=1)
    digits = build(first_channels=4, second_channels=6, width=24).eval()
    source = gain.Batches(torch.rand(100, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(100), 50)
    return {
        "stack": gain.Case(stack, gain.DALR, train, *others),
        "residual": gain.Case(net, gain.DALR, train, *others),
        "whole": gain.Case(digits, gain.DALR, train, *others),
        "selection": gain.Case(digits, gain.SELECTION, train, *others, source),
    }


KINDS = ["stack", "residual", "whole", "selection"]


def test_digits_to_train_choose_and_judge_on_are_disjoint(gain):
    parts = gain.split(3, SAMPLES)
    assert [len(part.labels) for part in parts] == [SAMPLES, 200, 1297]
    assert len(torch.cat([part.inputs for part in parts]).flatten(1).unique(dim=0)) == 1797


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_keep_within_their_share_and_both_ways_have_them(cases, kind):
    case = cases[kind]
    layers = {"stack": 2, "residual": 6, "whole": 4, "selection": 4}
    assert len(case.names) == layers[kind] + 1
    sizes = case.sizes(0.6)
    assert sizes
    assert case.names[-1] not in sizes
    before, after = (way(sizes, 1e-2) for way in (case.at_once, case.in_turn))
    assert case.left(before) == case.left(after) <= 0.6
    assert case.left(case.at_once(case.sizes(0.7), 1e-2)) > case.left(before)
    assert case.error(before, case.test) != case.error(after, case.test)


@pytest.mark.filterwarnings("ignore::dalr_stream.errors.ParameterIncreaseWarning")  # full rank, on purpose
@pytest.mark.parametrize("kind", ["residual", "selection"])
def test_at_full_size_both_ways_lose_nothing(cases, kind):
    case = cases[kind]
    full = {name: one.order.size if kind == "selection" else one.max_rank for name, one in case.solutions[1e-3].items()}
    for way in (case.at_once, case.in_turn):
        assert case.error(way(full, 1e-3), case.test) < 1e-3


def test_the_ridge_is_that_of_validation_and_the_figures_are_of_the_test_digits(gain, cases):
    case = cases["stack"]
    sizes = case.sizes(0.5)
    found = gain.judged(case, sizes, case.in_turn)
    networks = [case.in_turn(sizes, ridge) for ridge in gain.RIDGES]
    last = case.names[-1]
    chosen = min(networks, key=lambda one: ds.output_errors(case.model, one, case.validation, [last])[last])
    with torch.inference_mode():
        gap = (case.model(case.test.inputs) - chosen(case.test.inputs)).norm()
        whole = (case.model(case.test.inputs) - case.model.get_submodule(last).bias).norm()
        right = (chosen(case.test.inputs).argmax(1) == case.test.labels).double().mean()
    assert found.error == pytest.approx(float(gap / whole), rel=1e-4)
    assert found.accuracy == pytest.approx(float(right))
    assert found.by_default == pytest.approx(case.error(networks[0], case.test))


def test_the_table_holds_what_was_measured(gain, cases):
    case = cases["stack"]
    lines = gain.table("two layers", [case], [0.5]).splitlines()
    assert lines[0].startswith("| two layers: ")
    sizes = case.sizes(0.5)
    before, now = (gain.judged(case, sizes, way) for way in (case.at_once, case.in_turn))
    assert lines[2] == (
        f"| {100 * case.left(case.at_once(sizes, 1e-3)):.1f} % of the parameters "
        f"| {100 * before.accuracy:.1f} %, {before.error:.3f} | {100 * now.accuracy:.1f} %, {now.error:.3f} "
        f"| {int(now.error < before.error)} of 1 "
        f"| {before.by_default:.3f} | {now.by_default:.3f} |"
    )


@torch.no_grad()
def nats(case, small):
    before, after = (network(case.test.inputs).double().log_softmax(1) for network in (case.model, small))
    return float((before.exp() * (before - after)).sum(1).mean())


@pytest.mark.parametrize(("kind", "ways"), [("stack", 2), ("residual", 3)])
def test_sizes_of_every_rule_are_scored_in_every_order(cases, kind, ways):
    script = importlib.import_module("sequential_sizes")
    case = cases[kind]
    lines = script.table("a network", [case], [0.6]).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(script.RULES)
    for line, rule in zip(lines[2:], script.RULES.values(), strict=True):
        small = [way(case, rule(case, 0.6, way)) for way in script.ways_of(case).values()]
        cells = [
            f" {100 * script.accuracy(one, case.test):.1f} %, {nats(case, one):.4f} nats "
            f"({100 * case.left(one):.1f} %) "
            for one in small
        ]
        assert line.split("|")[2:-1] == [" 60% ", *cells]
        assert all(0.4 < case.left(one) <= 0.7 for one in small)
        assert len(cells) == ways


def test_channels_of_blocks_go_in_every_order(cases):
    script = importlib.import_module("sequential_channels")
    case = cases["residual"]
    kept = script.channels(case, 0.5)
    assert kept
    lines = list(script.rows([case]))
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["75%", "50%", "25%"]
    small = script.in_turn(case, kept, "stream")
    assert script.cell([(case, small)]) == lines[3].split("|")[-2].strip()


def test_estimators_of_gradients_are_compared_with_bars(cases, monkeypatch):
    script = importlib.import_module("gradient_estimators")
    monkeypatch.setattr(script, "SHARDS", 3)
    monkeypatch.setattr(script, "FOLDING", ds.Folding(ds.HoldoutRule(0.0), shards=3))
    monkeypatch.setattr(script, "RIDGES", (1e-3,))
    monkeypatch.setattr(script, "SHARE", 0.4)
    case = cases["stack"]
    lines = list(script.rows([case]))
    assert [line.split("|")[1].strip() for line in lines[2:5]] == [
        "not weighted",
        "random vectors, 1 a sample",
        "random vectors, 2 a sample",
    ]
    assert len(lines) == 2 + 1 + 8 + 1 + 6 + 2 + 2
    known = script.Known(case, None)
    plain = {name: ds.dalr(known.statistics[name]) for name in case.names[:-1]}
    pairs = {
        name: found.at_rank(int(0.4 * found.outputs * found.inputs / (found.outputs + found.inputs)))
        for name, found in plain.items()
    }
    expected = 100 * script.accuracy(ds.compress(case.model, pairs), case.test)
    assert lines[2].split("|")[2] == f" {expected:.1f} % "
    without = [known.score(script.Setting("", None), known.without(shard)) for shard in range(3)]
    mean = sum(without) / 3
    by_hand = (2 / 3 * sum((one - mean) ** 2 for one in without)) ** 0.5
    assert lines[2].split("|")[3] == f" {100 * by_hand:.1f} "
