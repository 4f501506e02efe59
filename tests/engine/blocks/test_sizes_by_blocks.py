"""Sizes chosen among networks that go block by block: the choice that is made of the network in memory, to the bit."""

import dataclasses
import sys
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from block_networks import Tower, batches, in_shards, made
from stopping import StopAfter, StoppedError

import dalr_stream as ds
from dalr_stream.engine.sizes.by_blocks import ByBlocks, ScoreAsked
from dalr_stream.engine.sizes.measuring import Measured, SizedNetwork
from dalr_stream.engine.sizes.menus import Menu
from dalr_stream.errors import (
    DiskSpaceError,
    InvalidInputError,
    NonFiniteError,
    ParameterIncreaseWarning,
    UnsupportedLayerError,
)
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.blocks.scored import question_of
from dalr_stream.network.blocks.side_by_side import SideBySide
from dalr_stream.network.saved.shards import Shards
from dalr_stream.numerics.methods import Family, Method

sys.path.insert(0, str(Path(__file__).parents[2] / "network" / "blocks"))
from drawn_pairs import pair
from test_scored import likelihood

Small = partial(Tower, 3)
ROWS = ds.RowRule(mask="mask")


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        yield


def chosen(network, moments, share, **options):
    """Choose sizes, of layers that one block holds whole and others; selections where an example is given."""
    example, felt = options.pop("example", None), options.pop("felt", ())
    layers = ds.watch(network, ["blocks.*.up", "blocks.*.down", "blocks.*.v"], example=example, gradients=felt)
    rows = ds.RowRule(mask="mask", gradients=ds.GradientRule() if felt else None)
    statistics = ds.accumulate(network, batches(3), layers, store=moments, rows=rows)
    distance = ds.OutputDistance(network, batches(3), samples=10, rows=ROWS, distance=options.pop("distance", "energy"))
    names = ["blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down", "blocks.2.v", "blocks.2.up"]
    return ds.sizes(network, statistics, distance, share, layers=names, structure=layers.structure, **options)


def told(plan):
    candidates = [(one.plan, one.rule, dict(one.sizes), one.predicted, one.distance) for one in plan.choice.candidates]
    return candidates, {name: (one.by, one.size, one.ridge) for name, one in plan.choices.items()}


@pytest.mark.parametrize(
    ("example", "distance", "felt"),
    [(None, "kl", ()), (batches(1)[0], "energy", ()), (None, "energy", ["blocks.*.up", "blocks.*.down", "blocks.*.v"])],
    ids=["factors", "selections", "by gradients"],
)
def test_the_choice_is_that_of_the_network_in_memory(example, distance, felt, tmp_path):
    model = made(Small)
    network = ds.open_network(Small, in_shards(model, tmp_path / "weights"))
    whole = chosen(model, tmp_path / "whole", 0.6, example=example, distance=distance, felt=felt)
    by_blocks = chosen(
        network, tmp_path / "blocks", 0.6, example=example, distance=distance, felt=felt, store=tmp_path / "measuring"
    )
    assert told(by_blocks) == told(whole)
    assert any("nats" in one.rule for one in whole.choice.candidates) == bool(felt)
    families = {family for one in whole.choice.candidates for family, _ in one.sizes.values()}
    assert (Family.SELECTION in families) == (example is not None)
    assert not list((tmp_path / "measuring").iterdir())
    folder = ds.compress_into(network, by_blocks.replacements, tmp_path / "small", example=batches(1)[0])
    small = ds.compress(model, whole.replacements, example=batches(1)[0])
    assert all(torch.equal(ds.load(folder, Small).state_dict()[name], one) for name, one in small.state_dict().items())


class Drawn:
    """Solutions that are drawn numbers."""

    def __init__(self, wrong=""):
        self.asked, self.wrong = [], wrong

    def method(self, layer, family):  # noqa: ARG002  # as menus have it
        return Method.SVD

    def at_size(self, layer, family, size):  # noqa: ARG002
        self.asked.append(layer)
        shape = (8, 12) if layer.endswith("down") else (12, 8) if layer.endswith("up") else (8, 8)
        one = pair(*shape, rank=size, seed=len(layer))
        return dataclasses.replace(one, up=np.full_like(one.up, 3e38)) if layer == self.wrong else one


def networks():
    names = ("blocks.0.up", "blocks.2.down", "blocks.1.v", "blocks.1.down")
    cut = [SizedNetwork(name, {name: (Family.LOW_RANK, 2)}) for name in names]
    return [*cut, SizedNetwork("all", dict.fromkeys(names, (Family.LOW_RANK, 3))), SizedNetwork("as it is", {})]


def bench(tmp_path, **options):
    model = made(Small)
    network = ds.open_network(Small, in_shards(model, tmp_path / "weights"))
    distance = ds.OutputDistance(network, batches(3), samples=10)
    return model, ByBlocks(network, distance, tmp_path / "measuring", **options)


def measured(bench, solutions=None, *, scored=False, wanted=None):
    menu = Menu(solutions or Drawn(), [])
    return list(bench.at_once(menu)("measuring", wanted or networks(), scored=scored))


def whole(model, solutions=None, data=None):
    """The same of networks built whole, one after the other."""
    solutions, distance = solutions or Drawn(), ds.OutputDistance(model, batches(3), samples=10)
    menu = Menu(solutions, [])
    small = [ds.compress(model, menu.replacements(one.sizes)) for one in networks()]
    return [Measured(distance(one), None if data is None else likelihood(one, data)) for one in small]


def test_all_networks_are_measured_as_each_is_alone(tmp_path):
    score = ScoreAsked(question_of(likelihood, batches(2)))
    model, by_blocks = bench(tmp_path, score=score)
    assert measured(by_blocks, scored=True) == whole(model, data=batches(2))
    assert measured(by_blocks) == whole(model)
    assert measured(by_blocks)[-1].distance == 0.0


def test_weights_are_read_as_often_for_many_networks_as_for_one(tmp_path, monkeypatch):
    read, there, tensor, hold = [], [], Shards.tensor, Pieces._hold
    monkeypatch.setattr(Shards, "tensor", lambda self, name: read.append(name) or tensor(self, name))

    def held(pieces, piece):
        hold(pieces, piece)
        there.append([one for one, times in pieces._held.items() if times and one.startswith("blocks")])

    monkeypatch.setattr(Pieces, "_hold", held)
    _, by_blocks = bench(tmp_path)
    counts = []
    for wanted in (networks()[:1], networks()):
        solutions = Drawn()
        measured(by_blocks, solutions, wanted=wanted)
        counts.append(read.count("blocks.1.up.weight"))
        read.clear()
        assert len(solutions.asked) == sum(len(one.sizes) for one in wanted)  # cut once each, where their block is
    assert counts == [5, 1]  # before the first: looked at, proved, and what each piece is called with
    assert max(map(len, there)) == 1


def test_where_the_disk_is_short_networks_go_in_groups(tmp_path, monkeypatch):
    model, by_blocks = bench(tmp_path)
    swept, outcomes = [], SideBySide.outcomes
    monkeypatch.setattr(SideBySide, "outcomes", lambda *given: swept.append(len(given[1])) or outcomes(*given))
    each = by_blocks.candidates._proved[1].sample_bytes * 10
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=3.9 * each / 0.8))
    assert measured(by_blocks) == whole(model)
    assert swept == [2, 2, 2]
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1.9 * each / 0.8))
    with pytest.raises(DiskSpaceError, match="measuring a network block by block takes"):
        measured(by_blocks)


def test_what_was_measured_is_not_measured_again_after_a_kill(tmp_path):
    model, stopped = bench(tmp_path, made_from="x", progress=StopAfter(3))
    with pytest.raises(StoppedError):
        measured(stopped)
    _, by_blocks = bench(tmp_path, made_from="x")
    solutions = Drawn()
    assert measured(by_blocks, solutions) == whole(model)
    assert not any(layer.startswith(("blocks.0", "blocks.1")) for layer in solutions.asked)  # it goes on in block 2
    assert measured(bench(tmp_path, made_from="x")[1], again := Drawn()) == whole(model)
    assert again.asked == []
    other = Drawn()
    measured(bench(tmp_path, made_from="y")[1], other)
    assert len(other.asked) == 8


def test_a_network_that_is_not_finite_is_named(tmp_path):
    _, by_blocks = bench(tmp_path)
    with pytest.raises(NonFiniteError, match=r"blocks\.2\.down.*not finite"):
        measured(by_blocks, Drawn("blocks.2.down"))


SCORES = {
    "metric": (lambda _: ds.Score(likelihood, batches(2)), True),
    "distance": (lambda network: ds.OutputDistance(network, batches(2), rows=ROWS, distance="kl"), False),
    "distance from another": (lambda _: ds.OutputDistance(made(Small, seed=7), batches(2), rows=ROWS), False),
}


@pytest.mark.parametrize("which", SCORES)
def test_candidates_are_chosen_by_the_score_that_each_has_in_memory(which, tmp_path):
    model = made(Small)
    score_of, higher = SCORES[which]
    whole, by_blocks = (
        chosen(one, tmp_path / f"{number}", 0.6, score=score_of(one), higher=higher)
        for number, one in enumerate((model, ds.open_network(Small, in_shards(model, tmp_path / "weights"))))
    )
    assert told(by_blocks) == told(whole)
    values = [one.score for one in by_blocks.choice.candidates]
    assert values == [one.score for one in whole.choice.candidates]
    assert values == sorted(values, reverse=higher)
    assert len(set(values)) > 1


def test_a_distance_from_another_network_is_one_in_both_ways(tmp_path):
    other = made(Small, seed=7)
    model, by_blocks = bench(tmp_path)
    by_blocks.distance = distance = ds.OutputDistance(other, batches(3), samples=10)
    found = [one.distance for one in measured(by_blocks)]
    menu = Menu(Drawn(), [])
    assert found == [distance(ds.compress(model, menu.replacements(one.sizes))) for one in networks()]
    assert found[-1] > 0.0


def test_a_score_that_is_no_number_is_named(tmp_path):
    _, by_blocks = bench(tmp_path)
    for value, error in ((None, InvalidInputError), (float("nan"), NonFiniteError)):
        by_blocks.score = ScoreAsked(question_of(lambda *given, value=value: likelihood(*given) and value, batches(1)))
        with pytest.raises(error, match=r"blocks\.0\.up: the score must be a number, got (None|nan)"):
            measured(by_blocks, scored=True)


def looks_inside(model, data):
    return likelihood(model, data) + float(model.blocks[1].up.weight.sum())


def test_a_score_that_cannot_go_block_by_block_is_refused_before_anything_is_solved(tmp_path, monkeypatch):
    monkeypatch.setattr("dalr_stream.engine.sizes.sizes.Solver", None)  # not called
    network = ds.open_network(Small, in_shards(made(Small), tmp_path / "weights"))
    with pytest.raises(InvalidInputError, match=r"give Score\(metric, batches\), whose metric calls .* got a function"):
        chosen(network, tmp_path / "store", 0.6, score=lambda _: 1.0)
    for metric, reason in (
        (lambda *_: 1.0, "does not call the network"),
        (lambda model, _: model.blocks[0], "no attr"),
    ):
        with pytest.raises(UnsupportedLayerError, match=f"the metric of score= may do no more .*{reason}"):
            chosen(network, tmp_path / "store", 0.6, score=ds.Score(metric, batches(1)))
    with pytest.raises(
        InvalidInputError, match="score: batches: several passes go through them, a generator allows one"
    ):
        ds.Score(likelihood, (one for one in batches(1)))


def test_a_metric_that_looks_inside_after_its_calls_is_refused(tmp_path):
    network = ds.open_network(Small, in_shards(made(Small), tmp_path / "weights"))
    with pytest.raises(UnsupportedLayerError, match=r"the metric of score= may do no more .*'Module' object"):
        chosen(network, tmp_path / "store", 0.6, score=ds.Score(looks_inside, batches(1)))
