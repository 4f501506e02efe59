"""Passes that go on from one another: they make the networks of passes from the inputs, and run each layer once."""

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from notes import Notes
from torch import nn
from torch.nn import functional

import dalr_stream as ds
from dalr_stream.errors import ParameterIncreaseWarning

DALR = ("dalr_anchored_affine", 3)
SIZE = 20
WHOLE = "each pass runs both networks from their inputs"


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


def data(n=120, width=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, width, generator=generator) @ torch.randn(width, width, generator=generator)).split(SIZE)


def made(network, *arguments):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return network(*arguments).eval()


class Norm(nn.LayerNorm):
    """Counts how often it runs on a batch of the full size."""

    ran = 0

    def forward(self, x):
        self.ran += len(x) == SIZE
        return super().forward(x)


class Residual(nn.Module):
    """Blocks on a stream; an activation that overwrites; one that is shared; a skip over several layers."""

    def __init__(self, blocks=4):
        super().__init__()
        self.stem, self.relu = nn.Linear(6, 8), nn.ReLU(inplace=True)
        self.up = nn.ModuleList(nn.Linear(8, 12) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(12, 8) for _ in range(blocks))
        self.norms = nn.ModuleList(Norm(8) for _ in range(blocks))
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        first = x = self.stem(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x = x + down(self.relu(up(norm(x))))
        return self.head(torch.cat([x, first], dim=1))


class Halves(nn.Module):
    """Modules that give tuples and mappings, and functions between modules."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = _Pair(), _Pair(), nn.Linear(6, 5)

    def forward(self, x):
        a, named = self.first(x)
        b, other = self.second(functional.gelu(a) + named["x"])
        return self.third(b + other["x"].tanh_())


class _Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 7), nn.Linear(7, 6)

    def forward(self, x):
        h = torch.relu(self.inner(x))
        return self.outer(h), {"x": x[:, :6] * 2.0}


NETWORKS = {
    "residual": (Residual, [*(f"{part}.{i}" for i in range(4) for part in ("up", "down")), "head"]),
    "tuples": (Halves, ["first.inner", "first.outer", "second.inner", "second.outer", "third"]),
}


def compressed(model, plan, batches=None, *, notes=None, **options):
    choices = {name: ds.LayerChoice(*choice) for name, choice in plan.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        return ds.compress_sequentially(model, batches or data(), choices, progress=notes, **options)


def from_the_inputs(monkeypatch, *arguments, **options):
    with monkeypatch.context() as patched:
        patched.setattr("dalr_stream.engine.sequential.pass_plan.KEPT_BYTES", 0)
        return compressed(*arguments, **options)


def same(one, other):
    mine, its = one.network.state_dict(), other.network.state_dict()
    assert one.layers == other.layers
    return mine.keys() == its.keys() and all(torch.equal(tensor, its[name]) for name, tensor in mine.items())


def plan_of(names, selected=()):
    return {name: ("spectral", 5) if name in selected else DALR for name in names}


@pytest.mark.parametrize("case", NETWORKS)
def test_the_network_is_that_of_passes_from_the_inputs(case, monkeypatch):
    build, names = NETWORKS[case]
    notes = Notes()
    found = compressed(made(build), plan_of(names), notes=notes)
    assert not [line for line in notes.said if "inputs" in line]
    assert same(found, from_the_inputs(monkeypatch, made(build), plan_of(names)))


def test_selections_go_on_too(monkeypatch):
    _, names = NETWORKS["residual"]
    plan = plan_of(names, ["up.0", "up.2"])
    notes = Notes()
    found = compressed(made(Residual), plan, notes=notes)
    assert not [line for line in notes.said if "inputs" in line]
    assert same(found, from_the_inputs(monkeypatch, made(Residual), plan))


class Tied(Residual):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.relu(up(x)))
        return self.head(x)


def test_what_is_read_before_the_layer_that_a_selection_is_of_is_not_kept_from_it(monkeypatch):
    """The channels of the stream are those of the stem and of every `down`, and every `up` reads them."""
    plan = {"up.0": DALR, "down.1": ("spectral", 5), "up.3": DALR, "head": DALR}
    found = compressed(made(Tied), plan)
    assert same(found, from_the_inputs(monkeypatch, made(Tied), plan))


@pytest.mark.parametrize("blocks", [4, 8])
def test_the_originals_layers_run_once_whatever_the_depth(blocks):
    """But for the first batch, on which some is tried."""
    model = made(Residual, blocks)
    names = [f"{part}.{i}" for i in range(blocks) for part in ("up", "down")]
    compressed(model, plan_of(names))
    batches, tried = len(data()), 7 + len(names).bit_length()
    assert all(batches <= norm.ran <= batches + tried for norm in model.norms)


class _Leaving(nn.Linear):
    def forward(self, x):
        given = super().forward(x)
        self.left = given.abs().mean(1, keepdim=True)
        return given


class Behind(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.up, self.down = _Leaving(6, 8), nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x):
        h = torch.relu(self.up(self.stem(x)))
        return self.down(h * self.stem.left)


def test_a_module_that_leaves_something_behind_is_found_out(monkeypatch):
    notes = Notes()
    found = compressed(made(Behind), plan_of(["up", "down"]), notes=notes)
    assert [line for line in notes.said if line.startswith(WHOLE) and "'down' comes out otherwise" in line]
    assert same(found, from_the_inputs(monkeypatch, made(Behind), plan_of(["up", "down"])))


class Overwriting(nn.Module):
    """A module works by overwriting what it is given, and gives nothing."""

    def __init__(self):
        super().__init__()
        self.stem, self.over, self.up, self.down = nn.Linear(6, 8), _Over(), nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x):
        h = self.stem(x)
        self.over(h)
        return self.down(torch.relu(self.up(h)))


class _Over(nn.Module):
    def forward(self, x):
        x.relu_()


def test_a_module_that_overwrites_what_it_is_given_is_found_out(monkeypatch):
    notes = Notes()
    found = compressed(made(Overwriting), plan_of(["up", "down"]), notes=notes)
    assert same(found, from_the_inputs(monkeypatch, made(Overwriting), plan_of(["up", "down"])))


class Deciding(nn.Module):
    """Batches with a large value take another way, on which the stem is read once more."""

    def __init__(self):
        super().__init__()
        self.stem, self.up = nn.Linear(6, 8), nn.Linear(8, 8)
        self.down, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        stem = self.stem(x)
        h = torch.relu(self.up(stem))
        h = self.down(h)
        return self.last(h + stem if bool(x.max() > 50) else h)


def test_a_batch_that_takes_another_way_runs_from_its_inputs(monkeypatch):
    batches = [*data(), 20.0 * data(SIZE)[0], *data(seed=2)]
    assert not any(batch.max() > 50 for batch in data())
    assert batches[len(data())].max() > 50
    notes = Notes()
    found = compressed(made(Deciding), plan_of(["up", "down", "last"]), batches, notes=notes)
    assert any("what was not kept is used in one of the batches" in line for line in notes.said)
    assert same(found, from_the_inputs(monkeypatch, made(Deciding), plan_of(["up", "down", "last"]), batches))


def test_with_little_room_some_batches_run_from_their_inputs_and_that_is_said(monkeypatch):
    _, names = NETWORKS["residual"]
    expected = compressed(made(Residual), plan_of(names))
    monkeypatch.setattr("dalr_stream.engine.sequential.pass_plan.KEPT_BYTES", 4000)
    notes = Notes()
    assert same(compressed(made(Residual), plan_of(names), notes=notes), expected)
    assert any("not all batches fit into" in line for line in notes.said)


def test_a_memory_limit_leaves_room_for_what_is_beyond_the_sums():
    _, names = NETWORKS["residual"]
    expected = compressed(made(Residual), plan_of(names))
    notes = Notes()
    limited = ds.Folding(memory_limit_bytes=16 * 2**20)
    assert same(compressed(made(Residual), plan_of(names), notes=notes, folding=limited), expected)


KILLED = """
import os, signal, sys
from test_sequential_onward import NETWORKS, compressed, data, made, plan_of

class Killed(list):
    begun = 0
    def __iter__(self):
        Killed.begun += 1
        for number, batch in enumerate(super().__iter__()):
            if Killed.begun >= int(sys.argv[2]) and number == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

build, names = NETWORKS["residual"]
compressed(made(build), plan_of(names), Killed(data()), store=sys.argv[1])
"""


def test_killed_it_goes_on_without_what_was_in_memory_to_the_same_network(tmp_path):
    build, names = NETWORKS["residual"]
    for begun in (6, 10):
        killed = subprocess.run(  # noqa: S603  # this very file
            [sys.executable, "-c", KILLED, str(tmp_path / "s"), str(begun)],
            cwd=Path(__file__).parent,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL
    found = compressed(made(build), plan_of(names), store=tmp_path / "s")
    assert same(found, compressed(made(build), plan_of(names)))
