"""A network on the meta device is planned as the same one with numbers is, and what the plan rests on is said."""

import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.estimate import estimate as plan_of
from dalr_stream.engine.planning.rates import ASSUMED
from dalr_stream.errors import InvalidInputError
from dalr_stream.network.measure.flops import forward_flops

RATES = ds.Rates(forward=1e9, sums=1e8)


class TwoReaders(nn.Module):
    """Two layers read one tensor, and a third another."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, inputs):
        return self.last(torch.relu(self.first(inputs) * self.second(inputs)))


class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(11, 8), nn.Linear(8, 5)

    def forward(self, ids):
        return self.head(self.table(ids))


def convolutions():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10))


NETWORKS = {
    "dense": (lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 2)), lambda: torch.ones(4, 6)),
    "convolutions": (convolutions, lambda: torch.ones(4, 3, 8, 8)),
    "one tensor read twice": (TwoReaders, lambda: torch.ones(4, 5, 6)),
    "token ids": (Embedding, lambda: torch.ones(4, 7, dtype=torch.long)),
}


@pytest.fixture(params=NETWORKS)
def case(request):
    return NETWORKS[request.param]


def on_meta(case):
    with torch.device("meta"):
        return case[0]().eval(), case[1]()


@pytest.mark.parametrize("keep_rows", [False, True])
def test_shapes_alone_give_the_plan_of_numbers(case, keep_rows):
    model, example = case[0]().eval(), case[1]()
    layers = ds.watch(model, ["*"])
    known = plan_of(model, {"target": [example] * 5}, layers, ds.Folding(), direct=not keep_rows)
    bare, stated = on_meta(case)
    found = ds.estimate(bare, stated, ds.watch(bare, ["*"]), samples=18, keep_rows=keep_rows, rates=RATES)
    assert found.plan == known
    assert forward_flops(bare, stated) == forward_flops(model, example)


def test_time_follows_from_rates():
    bare, example = on_meta(NETWORKS["dense"])
    found = ds.estimate(bare, example, ds.watch(bare, ["*"]), samples=20, rates=RATES)
    assert found.passes_seconds == pytest.approx(20 * 2 * (6 * 9 + 9 * 2) / 1e9)
    assert [layer.sums_seconds for layer in found.layers] == pytest.approx([20 * 36 / 1e8, 20 * 81 / 1e8])
    assert found.seconds == pytest.approx(found.passes_seconds + found.sums_seconds)
    assert found.requests.puts == 0
    assert len(found.basis) == 2
    assert all("as stated" in line for line in found.basis)


def test_ranks_share_the_work_and_send_their_sums():
    bare, example = on_meta(NETWORKS["dense"])
    layers, folding = ds.watch(bare, ["*"]), ds.Folding(ds.HoldoutRule(0.1), segment_batches=1)
    one = ds.estimate(bare, example, layers, samples=20, folding=folding, rates=RATES)
    five = ds.estimate(bare, example, layers, samples=20, folding=folding, rates=RATES, ranks=5)
    sums = 2 * 8 * (6 * 7 // 2 + 9 * 10 // 2)
    assert five.sent_bytes == 4 * sums
    assert five.received_bytes == 3 * sums
    assert five.seconds == pytest.approx(one.seconds / 5 + 3 * sums / ASSUMED["link"])
    assert "assumed" in five.basis[-1]
    shared = ds.estimate(bare, example, layers, samples=20, rates=RATES, ranks=5)
    assert shared.sent_bytes == 5 * shared.received_bytes == 4 * 20 * (6 + 9) * 4  # each row goes to four others
    kept = ds.estimate(bare, example, layers, samples=20, rates=RATES, ranks=5, keep_rows=True)
    assert kept.sent_bytes == kept.received_bytes == 20 * 6 * 4 * 4 // 5 + 20 * 9 * 4 * 4 // 5


def test_a_bucket_is_asked_nothing_and_what_it_would_be_asked_takes_time():
    bare, example = on_meta(NETWORKS["one tensor read twice"])
    rates = ds.Rates(1e9, 1e8, bucket=1e6, request=0.5)
    found = ds.estimate(bare, example, ds.watch(bare, ["*"]), samples=20, rates=rates, store="s3://none/x.zarr")
    asked = found.requests
    assert found.layers[1].requests.puts == 5  # reads what another reads: its weights alone
    assert sum(layer.requests.puts for layer in found.layers) + found.beside.puts == asked.puts
    requests = asked.puts + asked.gets + asked.small
    assert found.bucket_seconds == pytest.approx(requests * 0.5 + asked.put_bytes / 1e6)
    assert "1e+06 bytes a second (as stated), 0.5 s a request (as stated)" in found.basis[-1]
    assert f"{asked.puts:,} puts" in next(line for line in found.lines if "puts" in line)
    assert found.facts()["requests"]["puts"] == asked.puts


def test_what_nobody_states_is_measured_here():
    bare, example = on_meta(NETWORKS["dense"])
    found = ds.estimate(bare, example, ds.watch(bare, ["*"]), samples=20)
    assert "measured here, which is a bound" in found.basis[0]
    assert "timed here" in found.basis[1]
    model, example = NETWORKS["dense"][0]().eval(), NETWORKS["dense"][1]()
    assert "timed here" in ds.estimate(model, example, ds.watch(model, ["*"]), samples=20).basis[0]


def test_gradients_are_passes_back():
    model = NETWORKS["dense"][0]().eval()
    layers = ds.watch(model, ["*"], gradients=["*"])
    rule = ds.RowRule(gradients=ds.GradientRule(draws=3))
    found = ds.estimate(model, torch.ones(4, 6), layers, samples=4, rows=rule, rates=RATES)
    assert found.passes_seconds == pytest.approx(7 * forward_flops(model, torch.ones(4, 6)) / 1e9)


class LooksAtNumbers(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 2)

    def forward(self, inputs):
        return self.head(inputs[inputs.sum(1) > 0])


def test_a_network_that_looks_at_numbers_is_one_line():
    with torch.device("meta"):
        model, example = LooksAtNumbers().eval(), torch.ones(4, 6)
    with pytest.raises(
        InvalidInputError, match=r"network: a forward pass without numbers fails .*check the shape"
    ) as one:
        ds.estimate(model, example, ds.watch(model, ["*"]), samples=4)
    assert "\n" not in str(one.value)


@pytest.mark.parametrize("rates", [{"forward": 0.0}, {"link": -1.0}, {"sums": float("nan")}])
def test_rates_are_above_nought(rates):
    with pytest.raises(InvalidInputError, match=f"rates: {next(iter(rates))} must be above 0"):
        ds.Rates(**rates)


def test_there_is_one_rank_at_least():
    bare, example = on_meta(NETWORKS["dense"])
    with pytest.raises(InvalidInputError, match="ranks must be at least 1, got 0"):
        ds.estimate(bare, example, ds.watch(bare, ["*"]), samples=4, ranks=0)
