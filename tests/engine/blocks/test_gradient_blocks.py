"""Gradient moments block by block, on the way back: the same files, to the byte, as of the whole network."""

import numpy as np
import pytest
import torch
from block_networks import WIDTH, Block, Tower, batches, in_shards, made, same_files
from notes import Notes
from stopping import StopAfter, StoppedError
from torch import nn
from torch.utils.checkpoint import checkpoint

import dalr_stream as ds
from dalr_stream.engine.estimate import BatchMemory, load_of
from dalr_stream.engine.fold_passes import direct_plan
from dalr_stream.errors import DiskSpaceError, FingerprintMismatchError, InvalidInputError, UnsupportedLayerError
from dalr_stream.network.blocks.backward_proof import BackwardProof
from dalr_stream.network.saved.shards import Shards
from dalr_stream.streaming.lanes import Pace

LAYERS = ["re:blocks.*(v|o|up)", "head"]
READINGS = 7 + 6
"""Of each weight: as without gradients, two that prove whose gradients are whose, one forward and two back of a few
samples, beside either neighbour, and one on the way back. The last block has one neighbour, and goes one way only."""


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


def rule(**options):
    return ds.RowRule(mask="mask", gradients=ds.GradientRule(**options))


def watched(network, gradients=LAYERS, layers=LAYERS, **options):
    return ds.watch(network, layers, gradients=gradients, **options)


def stored(network, store, *, rows=None, gradients=LAYERS, layers=LAYERS, **options):
    specs = watched(network, gradients, layers)
    return ds.accumulate(network, batches(3), specs, store=store, rows=rows or rule(), **options)


def both(build, tmp_path, layers, data, rows, **options):
    """Accumulate whole and, from shards, by blocks; return the files that differ."""
    model = made(build)
    network = ds.open_network(build, in_shards(model, tmp_path / "weights"))
    for name, net in (("whole", model), ("blocks", network)):
        ds.accumulate(net, data, layers(net), store=tmp_path / name, rows=rows, **options)
    return same_files(tmp_path / "whole", tmp_path / "blocks")


@pytest.mark.parametrize(
    ("rows", "gradients"),
    [
        (rule(draws=3, seed=5), LAYERS),
        (rule(estimator="sampled", draws=2, clip=0.1), ["blocks.2.o", "blocks.1.down"]),
        (ds.RowRule(mask="mask", most_per_sample=2, gradients=ds.GradientRule(metric="values")), ["blocks.0.o"]),
    ],
)
def test_files_are_those_of_the_whole_network(rows, gradients, tmp_path):
    assert both(Tower, tmp_path, lambda net: watched(net, gradients, outputs=["blocks.3.o"]), batches(3), rows) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_of_other_types(dtype, tmp_path):
    assert both(lambda: Tower().to(dtype), tmp_path, watched, batches(2), rule()) == []


def test_one_block_at_a_time_each_weight_read_a_few_times_more(tmp_path, monkeypatch):
    network, read, real = ds.open_network(Tower, in_shards(made(Tower), tmp_path / "weights")), [], Shards.tensor
    monkeypatch.setattr(Shards, "tensor", lambda shards, name: read.append(name) or real(shards, name))
    there, notes = [], Notes()

    def count(*_):
        there.append(
            {name.split(".")[1] for name, p in network.named_parameters() if "blocks" in name and not p.is_meta}
        )

    for block in network.blocks:
        block.register_forward_hook(count)
    stored(network, tmp_path / "store", progress=notes)
    forward, back = (
        [f"block {number} of 4" for number in (1, 2, 3)],
        [f"block {number} of 4" for number in (4, 3, 2, 1)],
    )
    assert notes.started == [*forward, *(f"{title}, backward" for title in back)]
    assert read.count("blocks.1.up.weight") == READINGS
    assert read.count("blocks.3.norm.weight") == READINGS - 2
    assert max(map(len, there)) == 2  # in the proof alone
    assert max(map(len, there[-7 * 3 :])) == 1
    assert all(parameter.is_meta for parameter in network.parameters())


def test_a_network_that_fits(tmp_path):
    model = made(Tower)
    whole = stored(model, tmp_path / "whole")
    blocks = stored(model, tmp_path / "blocks", blocks=True)
    assert same_files(tmp_path / "whole", tmp_path / "blocks") == []
    factors = [ds.dalr(one["blocks.2.up"], variant="weighted").at_rank(3) for one in (whole, blocks)]
    assert np.array_equal(factors[0].down, factors[1].down)


def linear():
    """Layers that are blocks themselves, one of them overwritten in place."""
    return nn.Sequential(
        nn.Linear(6, 8), nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 5)
    )


def pictures():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8 * 16, 5),
    )  # fmt: skip


class Recomputing(nn.Sequential):
    """Blocks that run again on the way back, as none of their values are kept."""

    def forward(self, x):
        for block in self:
            x = checkpoint(block, x, use_reentrant=False)
        return x


def recomputing():
    return Recomputing(nn.Linear(6, 8), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 5))


@pytest.mark.parametrize(("network", "shape"), [(linear, (6,)), (pictures, (3, 8, 8)), (recomputing, (6,))])
@pytest.mark.parametrize("estimator", ["vectors", "labels"])
def test_sequences_of_layers(network, shape, estimator, tmp_path):
    data = torch.randn(24, *shape, generator=torch.Generator().manual_seed(2)).split(5)
    data = [(batch, torch.arange(len(batch)) % 5) for batch in data]
    rows = ds.RowRule(gradients=ds.GradientRule(estimator))
    assert both(network, tmp_path, lambda net: watched(net, ["*"], ["*"]), data, rows) == []


class Reading(Block):
    """A block that reads states of an encoder beside its own stream, twice."""

    def forward(self, x, states):
        y = self.norm(x)
        weights = (self.q(y) @ self.k(states).transpose(1, 2)).softmax(-1)
        x = x + self.o(weights @ self.v(states))
        return x + self.down(torch.relu(self.up(x)))


class TwoTowers(Tower):
    """States that every block of the second half reads: their gradients add up over blocks."""

    scale = 1.0

    def __init__(self):
        super().__init__(2)
        self.readers = nn.ModuleList(Reading() for _ in range(4))

    def forward(self, words, mask):
        states, bias = self.words(words), (1 - mask)[:, None, :] * -1e4
        for block in self.blocks:
            states = block(states, bias)
        states = self.norm(states)
        if self.scale != 1.0:
            states = states * self.scale
        x = self.words(words.flip(1))
        for block in self.readers:
            x = block(x, states)
        return self.head(x)


TOWERS = ["blocks.*", "re:readers.*(q|o|up|down)", "head"]


def test_what_several_blocks_read(tmp_path):
    rows = ds.RowRule(mask={"blocks.*": "mask", "*": None}, gradients=ds.GradientRule(draws=2))
    assert both(TwoTowers, tmp_path, lambda net: watched(net, ["*"], TOWERS), batches(2), rows) == []


class Routed(nn.Module):
    """Sends each token to one of four layers; few samples reach not all of them."""

    def __init__(self):
        super().__init__()
        self.router, self.experts = nn.Linear(6, 4), nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        flat = x.reshape(-1, 6)
        chosen, out = self.router(4 * flat).argmax(-1), torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            (token,) = torch.where(chosen == number)
            if len(token):
                out.index_add_(0, token, expert(flat[token]))
        return x + torch.tanh(out).reshape(x.shape)


def test_layers_that_no_row_of_the_first_samples_reaches(tmp_path, monkeypatch):
    proofs, proved = [], BackwardProof.places
    monkeypatch.setattr(BackwardProof, "places", lambda self, streams: proofs.append(self) or proved(self, streams))
    data = torch.randn(24, 2, 6, generator=torch.Generator().manual_seed(3)).split(8)
    rows, experts = ds.RowRule(gradients=ds.GradientRule(metric="values")), ["1.experts.*"]

    def build():
        return nn.Sequential(Routed(), Routed(), nn.Linear(6, 5))

    assert both(build, tmp_path, lambda net: watched(net, experts, experts), data, rows) == []
    assert proofs[0]._unreached


class Scaled(TwoTowers):
    """All readers' gradients would be added before they are scaled, and by blocks each block's is scaled by itself."""

    scale = 1.7


class InPlace(Tower):
    """Overwrites, outside of any module, what the embedding, a block and the last block gave."""

    def __init__(self):
        super().__init__(2)

    def forward(self, words, mask):
        x = self.words(words)
        x *= WIDTH**0.5
        x = self.blocks[0](x, (1 - mask)[:, None, :] * -1e4)
        x += x.mean(-1, keepdim=True)
        x[:, 0] *= 3
        x = self.blocks[1](x, (1 - mask)[:, None, :] * -1e4)
        x.unsqueeze_(1)
        return self.head(x.squeeze(1))


def test_what_is_overwritten_outside_of_any_module(tmp_path):
    assert both(InPlace, tmp_path, lambda net: watched(net, ["blocks.*"]), batches(2), rule()) == []


def test_an_old_torch_that_cannot_go_back_from_what_is_overwritten_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.__version__", torch.torch_version.TorchVersion("2.4.1"))
    with pytest.raises(UnsupportedLayerError, match=r"'blocks.0' gives is overwritten in place .* torch 2.5 or later"):
        stored(made(InPlace), tmp_path, gradients=["blocks.*"], blocks=True)


class States(Tower):
    """Gives what its blocks gave, too."""

    def forward(self, words, mask):
        x, states = self.words(words), []
        for block in self.blocks:
            x = block(x, (1 - mask)[:, None, :] * -1e4)
            states.append(x)
        return {"logits": self.head(x), "first": states[0], "third": states[2]}


def test_a_loss_of_what_the_last_block_reads(tmp_path):
    layers = ["blocks.0.*", "blocks.2.*"]
    assert (
        both(States, tmp_path, lambda net: watched(net, layers), batches(2), rule(outputs="third", metric="values"))
        == []
    )


@pytest.mark.parametrize(
    ("network", "rows", "message"),
    [
        (Scaled, ds.RowRule(gradients=ds.GradientRule()), "what 'norm' gives is not the same by block 'readers.2'"),
        (States, rule(outputs="first", metric="values"), "uses what an earlier block gave, which no later one does"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_no_record(network, rows, message, tmp_path):
    layers = [name for name in dict(made(network).named_children()) if name in ("blocks", "readers")]
    data, model = [batches(1)[0]], made(network)
    specs = ds.watch(model, [f"{name}.*" for name in layers], gradients=[f"{name}.*" for name in layers])
    with pytest.raises(UnsupportedLayerError, match=message):
        ds.accumulate(model, data, specs, store=tmp_path / "store", rows=rows, blocks=True)
    assert list((tmp_path / "store").rglob("@*")) == []


def test_samples_that_are_mixed_on_the_way_to_the_loss(tmp_path):
    class Mixed(Tower):
        def forward(self, words, mask):
            scores = super().forward(words, mask)
            return scores - scores.mean(0)

    with pytest.raises(InvalidInputError, match="with one of 2 samples replaced, the network's outputs"):
        stored(made(Mixed), tmp_path / "store", blocks=True)


def test_stopped_anywhere_it_goes_on_to_the_same_bits_and_keeps_two_generations_of_gradients(tmp_path):
    model, folding = made(Tower), ds.Folding(ds.HoldoutRule(0.0), pace=lambda: Pace(every_tiles=1))
    options = {"rows": rule(draws=2), "folding": folding, "gradients": ["blocks.1.o", "blocks.3.up"]}
    options["layers"] = ["blocks.0.up", "blocks.1.o"]
    stored(model, tmp_path / "whole", **options)
    network = ds.open_network(Tower, in_shards(model, tmp_path / "weights"))
    for stop in (8, 11, 16):  # batches: 9 on the way forward, 9 back
        store = tmp_path / f"stopped-{stop}"
        with pytest.raises(StoppedError):
            stored(network, store, progress=StopAfter(stop), **options)
        left = [path.name for path in (store / "unfinished" / "target").glob("@*")]
        assert len([name for name in left if name.startswith("@back-")]) <= 2
        assert not [name for name in left if name.startswith("@proof-")]
        assert ("@stream-2" in left) == (6 < stop <= 12)  # what the last block begins with
        notes = Notes()
        stored(network, store, progress=notes, **options)
        assert len(notes.started) == 6 - (stop - 1) // 3
        assert same_files(tmp_path / "whole", store) == []


def test_other_draws_on_resuming_are_refused(tmp_path):
    model = made(Tower)
    with pytest.raises(StoppedError):
        stored(model, tmp_path / "store", blocks=True, progress=StopAfter(11))
    with pytest.raises(FingerprintMismatchError, match="2 random vectors a sample by seed 0"):
        stored(model, tmp_path / "store", blocks=True, rows=rule(draws=2))


def test_a_block_that_does_not_fit_takes_several_passes(tmp_path):
    notes, model = Notes(), made(Tower)
    gradients = ["blocks.1.v", "blocks.1.o"]
    stored(model, tmp_path / "whole", gradients=gradients)
    within = watched(model, gradients, [name for name in LAYERS if name != "head"])
    within = [layer for layer in within if layer.name.startswith("blocks.1.")]
    needed = direct_plan([load_of(layer, 0, BatchMemory()) for layer in within], ds.Folding()).peak_bytes
    limit = ds.Folding(memory_limit_bytes=needed - 1)
    stored(model, tmp_path / "blocks", gradients=gradients, folding=limit, blocks=True, progress=notes)
    assert notes.started.count("block 2 of 4, backward") > 1
    assert same_files(tmp_path / "whole", tmp_path / "blocks") == []


def test_no_room_for_the_stream(tmp_path, monkeypatch):
    given, places = 4 * 6 * 8 * 4, 6 * 8 * 4  # samples, positions, width, bytes; the table of places is of no sample
    needed = 3 * (5 * given + places)  # batches; words, three blocks, and gradients by what the last of them gave
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": needed - 1})())
    with pytest.raises(DiskSpaceError, match=r"the stream between blocks, which with gradients .* watch gradients of"):
        stored(made(Tower), tmp_path / "store", blocks=True)
    assert not (tmp_path / "store").exists()
