"""A clock that only the modules move: what is slower is called slower, and noise is not."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import InvalidInputError
from dalr_stream.network.measure.profile import Stopwatch, of_size
from dalr_stream.numerics.latency import WHOLE, Turns, Verdict
from dalr_stream.numerics.lowrank.factors import LowRankLayer


class Clock:
    """Shows the time that layers said they took."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def watch(self, **options):
        return Stopwatch(clock=self, least_seconds=0.0, **options)


def taking(module, clock, seconds):
    """Let each call of a module move the clock, by `seconds(samples)`."""
    module.register_forward_hook(lambda _, inputs, __: setattr(clock, "now", clock.now + seconds(len(inputs[0]))))


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 3)).eval()


@pytest.fixture
def small(model):
    pairs = {}
    for name in ("0", "2"):
        weight, bias = ds.network.weights_of(model, name)
        pairs[name] = LowRankLayer(down=weight[:4], up=weight[:, :4], bias=bias)
    return ds.compress(model, pairs)


def test_macs_and_seconds_of_each_replaced_layer_at_each_batch_size(model, small):
    clock = Clock()
    taking(model[0], clock, lambda samples: 1e-3 * samples)
    taking(model[4], clock, lambda _: 5e-3)
    taking(small[0][0], clock, lambda samples: 1e-4 * samples)
    taking(small[0][1], clock, lambda samples: 4e-4 * samples)
    taking(small[4], clock, lambda _: 5e-3)
    taking(model[2], clock, lambda _: 2e-3)
    taking(small[2][0], clock, lambda samples: 1.9e-3 if samples < 8 else 3e-3)
    found = ds.profile(model, small, torch.zeros(3, 12), batch_sizes=(8, 1, 64), stopwatch=clock.watch(turns=5))
    assert found.batch_sizes == (1, 8, 64)
    assert {one.name for one in found.layers} == {"0", "2"}
    first, second, whole = found.of("0"), found.of("2"), found.of(WHOLE)
    assert [(one.macs_before, one.macs_after) for one in first] == [(b * 192, b * 4 * 28) for b in (1, 8, 64)]
    assert [one.seconds_before for one in first] == pytest.approx([1e-3, 8e-3, 64e-3])
    assert [one.ratio for one in first] == pytest.approx([0.5] * 3)
    assert {one.verdict for one in first} == {Verdict.FASTER}
    assert [one.verdict for one in second] == [Verdict.FASTER, Verdict.SLOWER, Verdict.SLOWER]
    assert [one.slower for one in second] == [False, True, True]
    assert whole[1].seconds_before == pytest.approx(15e-3)
    assert whole[1].seconds_after == pytest.approx(4e-3 + 3e-3 + 5e-3)
    assert whole[1].macs_before == 8 * (192 + 160 + 30)
    assert whole[1].macs_after == 8 * (4 * 28 + 4 * 26 + 30)


def test_what_is_slower_is_said_with_where_and_what_to_do(model, small):
    clock = Clock()
    taking(model[0], clock, lambda _: 1e-3)
    taking(small[0][0], clock, lambda _: 1.5e-3)
    taking(model[2], clock, lambda _: 10e-3)
    taking(small[2][1], clock, lambda samples: 9e-3 if samples == 1 else 12e-3)
    found = ds.profile(model, small, torch.zeros(3, 12), stopwatch=clock.watch(turns=5))
    every, late, whole = found.warnings
    assert every == (
        "layer '0': what replaces it is slower than the layer at every batch size measured (1.50 times the time at 1, "
        "1.50 times the time at 8, 1.50 times the time at 64): try a larger multiple (compress.multiple_of), a lower "
        "rank, or leave the layer alone"
    )
    assert late.startswith("layer '2': what replaces it is slower than the layer from batch size 8 on (1.20 times")
    assert whole.startswith("the whole compressed network is slower than the original from batch size 8 on")


class Drifting(Clock):
    """A machine whose speed wanders: each call takes what the next of `seconds` says."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = iter(seconds)

    def spend(self, factor=1.0):
        self.now += factor * next(self.seconds)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("factor", "expected"), [(1.0, Verdict.SAME), (2.0, Verdict.SLOWER), (0.5, Verdict.FASTER)])
def test_noise_is_no_difference_and_a_factor_of_two_is_one(seed, factor, expected):
    """Times of either side spread by a tenth and drift to twice as much; only what is twice as slow is slower."""
    drift = np.linspace(1.0, 2.0, 100)
    clock = Drifting(drift * np.random.default_rng(seed).lognormal(sigma=0.1, size=100))
    turns = clock.watch(turns=31).compare(clock.spend, lambda: clock.spend(factor))
    assert turns.profile("fc", 1, 1, 1).verdict is expected


def test_a_machine_that_disturbs_one_side_most_of_the_time_does_not_decide():
    """Fourteen of fifteen turns of the second are ten times as slow, and it is the same work."""
    before, after = (1.0,) * 15, (10.0,) * 7 + (1.0,) + (10.0,) * 7
    found = Turns(before, after).profile("fc", 1, 1, 1)
    assert found.ratio_low == 10
    assert found.verdict is Verdict.SAME
    assert Turns(after, before).profile("fc", 1, 1, 1).verdict is Verdict.SAME


def test_a_constant_difference_too_small_to_act_on_is_none():
    clock = Clock()
    works = [lambda seconds=seconds: setattr(clock, "now", clock.now + seconds) for seconds in (1.0, 1.02)]
    assert clock.watch().compare(*works).profile("fc", 1, 1, 1).verdict is Verdict.SAME


def test_short_work_is_repeated_until_a_turn_is_long_enough():
    clock, calls = Clock(), []

    def work():
        calls.append(clock.now)
        clock.now += 1e-4

    turns = Stopwatch(turns=3, warm_up=2, least_seconds=0.01, clock=clock).compare(work, work)
    assert len(calls) == 2 * 2 + 2 * 3 * 100
    assert turns.before == pytest.approx([1e-4] * 3)


def test_a_replacement_with_a_big_loop_is_slower_and_an_identical_module_is_not(model):
    clock = Clock()

    class Loop(nn.Module):
        def forward(self, x):
            for _ in range(200):
                clock.now += 1e-5
                x = x + 0.0 * x.square().sum()
            return x

    slow = copy.deepcopy(model)
    slow[0], slow[4] = nn.Sequential(slow[0], Loop()), nn.Sequential(slow[4])
    for net in (model, slow):
        for layer in net.modules():
            if isinstance(layer, nn.Linear):
                taking(layer, clock, lambda _: 1e-3)
    found = ds.profile(model, slow.eval(), torch.zeros(3, 12), batch_sizes=[4], stopwatch=clock.watch())
    assert found.of("0")[0].seconds_after == pytest.approx(3e-3)
    assert found.of("0")[0].slower
    assert found.of("4")[0].verdict is Verdict.SAME
    assert found.of(WHOLE)[0].ratio == pytest.approx(5 / 3)


def test_batches_of_any_size_are_made_of_the_samples_there_are():
    rows = torch.arange(6.0).reshape(3, 2)
    assert of_size((rows, torch.arange(3)), 5)[:, 0].tolist() == [0, 2, 4, 0, 2]
    sized = of_size({"ids": rows, "shape": torch.ones(1, 2), "flag": True}, 2)
    assert sized["ids"].tolist() == rows[:2].tolist()
    assert sized["shape"].tolist() == [[1, 1]]
    assert sized["flag"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": (1, 0)}, "batch sizes must be 1 or more, got 1, 0"),
        ({"batch_sizes": ()}, "batch sizes must be 1 or more"),
    ],
)
def test_what_cannot_be_profiled_is_refused(model, small, options, message):
    with pytest.raises(InvalidInputError, match=message):
        ds.profile(model, small, torch.zeros(3, 12), **options)
    with pytest.raises(InvalidInputError, match="must be in eval mode"):
        ds.profile(model, small.train(), torch.zeros(3, 12))
    with pytest.raises(InvalidInputError, match="must hold a sample"):
        ds.profile(model, small.eval(), torch.zeros(0, 12))
    with pytest.raises(InvalidInputError, match="got 1 and 3"):
        Stopwatch(turns=1)


def test_an_unknown_layer_is_named_with_those_there_are(model, small):
    clock = Clock()
    taking(model, clock, lambda _: 1.0)
    taking(small, clock, lambda _: 1.0)
    for net in (model, small):
        taking(net[0], clock, lambda _: 1.0)
        taking(net[2], clock, lambda _: 1.0)
    found = ds.profile(model, small, torch.zeros(3, 12), batch_sizes=[1], stopwatch=clock.watch())
    assert found.warnings == ()
    with pytest.raises(InvalidInputError, match="layer '4': was not profiled, the replaced layers are '0', '2'"):
        found.of("4")
