"""Block by block, a network gives the store that it gives whole: the same files, to the byte."""

import shutil
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from block_networks import WORDS, Block, Tower, batches, in_shards, made, same_files
from notes import Notes
from stopping import StopAfter, StoppedError
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.capture import network_record
from dalr_stream.engine.estimate import BatchMemory, load_of
from dalr_stream.engine.fold_passes import direct_plan
from dalr_stream.errors import (
    DiskSpaceError,
    FingerprintMismatchError,
    InvalidInputError,
    LayerNotFoundError,
    StoreDamagedError,
    UnsupportedLayerError,
)
from dalr_stream.network.saved.shards import Shards
from dalr_stream.streaming.lanes import Pace

LAYERS = ["blocks.*", "head"]
ROWS = ds.RowRule(mask="mask")
READINGS = 7
"""Of each weight: for what identifies it, a probe, two ways of running a batch and a look at it, four passes together
that prove whose rows are whose, and the pass itself."""


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


def accumulate(model, store, data=None, *, outputs=(), **options):
    layers = ds.watch(model, LAYERS, outputs=outputs)
    return ds.accumulate(model, batches() if data is None else data, layers, store=store, rows=ROWS, **options)


def opened(folder, model=None):
    return ds.open_network(lambda: Tower().to(model.head.weight.dtype) if model else Tower(), folder)


def pictures():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8 * 16, 5),
    )  # fmt: skip


class Stages(nn.Module):
    """Two stages of residual blocks, as a ResNet's."""

    class Residual(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.conv1, self.bn = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
            self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

        def forward(self, x):
            return x + self.conv2(torch.relu(self.bn(self.conv1(x))))

    def __init__(self):
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 2, stride=2)
        self.layer1 = nn.Sequential(self.Residual(4), self.Residual(4))
        self.layer2 = nn.Sequential(self.Residual(6), self.Residual(6), self.Residual(6))
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.layer2(self.down(self.layer1(self.stem(x)))).mean((2, 3)))


@pytest.mark.parametrize("network", [pictures, Stages])
def test_convolutions(network, tmp_path):
    model = made(network)
    data = list(torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(2)).split(5))
    layers = ds.watch(model, ["*"], outputs=["*"])
    ds.accumulate(model, data, layers, store=tmp_path / "whole")
    ds.accumulate(model, data, layers, store=tmp_path / "blocks", blocks=True)
    assert same_files(tmp_path / "whole", tmp_path / "blocks") == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_from_shards_one_block_at_a_time(dtype, tmp_path):
    model = made(Tower).to(dtype)
    whole = accumulate(model, tmp_path / "whole", outputs=["blocks.*.o"])
    in_shards(model, tmp_path / "weights")
    network = opened(tmp_path / "weights", model)
    there = []

    def count(module, *_):
        there.append(
            {name.split(".")[1] for name, p in network.named_parameters() if "blocks" in name and not p.is_meta}
        )
        assert next(module.parameters()).dtype == dtype

    for block in network.blocks:
        block.register_forward_hook(count)
    blocks = accumulate(network, tmp_path / "blocks", outputs=["blocks.*.o"])
    assert same_files(tmp_path / "whole", tmp_path / "blocks") == []
    assert max(map(len, there)) == 1
    assert all(parameter.is_meta for parameter in network.parameters())
    factors = [ds.dalr(statistics["blocks.2.up"], ridge=1e-3).at_rank(3) for statistics in (whole, blocks)]
    assert np.array_equal(factors[0].down, factors[1].down)


def test_how_often_weights_are_read(tmp_path, monkeypatch):
    network, read, real = ds.open_network(Tower, in_shards(made(Tower), tmp_path / "weights")), [], Shards.tensor
    monkeypatch.setattr(Shards, "tensor", lambda shards, name: read.append(name) or real(shards, name))
    accumulate(network, tmp_path / "store")
    assert read.count("blocks.1.up.weight") == READINGS
    assert read.count("blocks.3.norm.weight") == READINGS
    read.clear()
    network_record(network, ds.watch(network, LAYERS))  # what identifies it is known by then
    assert read.count("blocks.1.norm.weight") == 1  # with the layers' own records


def test_a_folder_of_save_pretrained(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    model = made(lambda: transformers.AutoModelForCausalLM.from_config(config))
    model.save_pretrained(tmp_path / "weights", max_shard_size="4KB")
    network = ds.open_network(lambda: transformers.AutoModelForCausalLM.from_config(config), tmp_path / "weights")
    assert network.model.rotary_emb.inv_freq.equal(model.model.rotary_emb.inv_freq)
    data = [{"input_ids": one["words"], "attention_mask": one["mask"].long()} for one in batches()]
    for net, name in ((model, "whole"), (network, "blocks")):
        layers = ds.watch(net, ["re:model.layers.*proj", "lm_head"])
        ds.accumulate(net, data, layers, store=tmp_path / name, rows=ds.RowRule(mask="attention_mask"))
    assert same_files(tmp_path / "whole", tmp_path / "blocks") == []
    assert network.config.use_cache


def test_stopped_anywhere_it_goes_on_to_the_same_bits_and_keeps_two_generations(tmp_path):
    model, folding = made(Tower), ds.Folding(ds.HoldoutRule(0.0), pace=lambda: Pace(every_tiles=1))

    def accumulate(network, store, **options):
        layers = ds.watch(network, ["blocks.*.up", "blocks.*.down"])
        ds.accumulate(network, batches(), layers, store=store, rows=ROWS, folding=folding, **options)

    accumulate(model, tmp_path / "whole")
    in_shards(model, tmp_path / "weights")
    network = opened(tmp_path / "weights")
    for stop in (4, 5, 11):
        store = tmp_path / f"stopped-{stop}"
        with pytest.raises(StoppedError):
            accumulate(network, store, progress=StopAfter(stop))
        streams = [path.name for path in (store / "unfinished" / "target").glob("@stream-*")]
        assert len(streams) <= 3
        notes = Notes()
        accumulate(network, store, progress=notes)
        assert len(notes.started) == 4 - (stop - 1) // 5
        assert same_files(tmp_path / "whole", store) == []


def test_a_block_that_does_not_fit_takes_several_passes(tmp_path):
    model = made(Tower)
    apart = ds.watch(model, ["re:blocks.0.(q|o|up|down)"])
    needed = direct_plan([load_of(layer, 0, BatchMemory()) for layer in apart], ds.Folding()).peak_bytes
    notes = Notes()
    accumulate(model, tmp_path / "whole")
    limit = ds.Folding(memory_limit_bytes=needed - 1)
    network = opened(in_shards(model, tmp_path / "weights"))
    accumulate(network, tmp_path / "blocks", folding=limit, blocks="blocks", progress=notes)
    assert len(notes.started) == 2 * 4
    assert same_files(tmp_path / "whole", tmp_path / "blocks") == []


def test_blocks_without_watched_layers_are_passed_through(tmp_path):
    model, data = made(Tower), batches()
    for name, net in (("whole", model), ("blocks", opened(in_shards(model, tmp_path / "weights")))):
        notes = Notes()
        ds.accumulate(net, data, ds.watch(net, ["blocks.2.up"]), store=tmp_path / name, progress=notes)
    assert same_files(tmp_path / "whole", tmp_path / "blocks") == []
    assert notes.started == [f"block {number} of 4" for number in (1, 2, 3)]


def test_a_record_of_the_stream_that_is_damaged_or_gone_is_named(tmp_path):
    model = made(Tower)
    with pytest.raises(StoppedError):
        accumulate(model, tmp_path / "store", blocks=True, progress=StopAfter(6))
    records = sorted((tmp_path / "store" / "unfinished" / "target" / "@stream-0").iterdir())
    chunk = next(path for path in records[3].rglob("c/*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreDamagedError, match=r"delete '.*unfinished/target' and run again"):
        accumulate(model, tmp_path / "store", blocks=True)
    shutil.rmtree(records[3])
    with pytest.raises(StoreDamagedError, match="is gone, where the block before left the batch of sample 12"):
        accumulate(model, tmp_path / "store", blocks=True)
    shutil.rmtree(tmp_path / "store" / "unfinished" / "target")
    accumulate(model, tmp_path / "store", blocks=True)
    accumulate(model, tmp_path / "whole")
    assert same_files(tmp_path / "whole", tmp_path / "store") == []


def test_ended_once_its_moments_are_kept_it_leaves_no_stream(tmp_path, monkeypatch):
    model = made(Tower)
    monkeypatch.setattr("dalr_stream.storage.checkpoints.Checkpoints.drop", lambda _: stop())
    with pytest.raises(StoppedError):
        accumulate(model, tmp_path / "store", blocks=True)
    monkeypatch.undo()
    assert list((tmp_path / "store" / "unfinished").rglob("@stream-*")) == []
    notes = Notes()
    accumulate(model, tmp_path / "store", blocks=True, progress=notes)
    assert notes.started == []
    accumulate(model, tmp_path / "whole")
    assert same_files(tmp_path / "whole", tmp_path / "store") == []


def stop():
    raise StoppedError


def test_other_data_on_resuming_are_refused(tmp_path):
    model = made(Tower)
    with pytest.raises(StoppedError):
        accumulate(model, tmp_path / "store", blocks=True, progress=StopAfter(7))
    changed = batches()
    changed[3]["words"] = changed[3]["words"].flip(0)
    with pytest.raises(FingerprintMismatchError, match="has other batches than the first"):
        accumulate(model, tmp_path / "store", changed, blocks=True)


def test_no_room_for_the_stream(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 3000})())
    with pytest.raises(DiskSpaceError, match="the stream between blocks takes"):
        accumulate(made(Tower), tmp_path / "store", blocks=True)
    assert not (tmp_path / "store").exists()


class Skipping(Tower):
    """What the first block gives is used at the end."""

    def forward(self, words, mask):
        x = first = self.blocks[0](self.words(words), mask[:, None])
        for block in self.blocks[1:]:
            x = block(x, mask[:, None])
        return self.head(x + first)


class Shared(Tower):
    def __init__(self):
        super().__init__()
        self.blocks[2] = self.blocks[1]


class Twice(Tower):
    def forward(self, words, mask):
        x = self.words(words)
        for block in (*self.blocks, self.blocks[1]):
            x = block(x, mask[:, None])
        return self.head(x)


class Remembering(Tower):
    """A block that adds what it gave for the batch before."""

    class Block(Block):
        before = 0.0

        def forward(self, x, bias):
            given = super().forward(x, bias)
            self.before, before = given.mean(), self.before
            return given + before

    def __init__(self):
        super().__init__()
        self.blocks[2] = self.Block()


class State(NamedTuple):
    hidden: torch.Tensor
    bias: torch.Tensor | None = None


class Named(Tower):
    """Its blocks give a named tuple."""

    class Block(Block):
        def forward(self, x, bias):
            return State(super().forward(x[0] if isinstance(x, State) else x, bias), bias)

    def __init__(self):
        super().__init__()
        self.blocks, self.norm = nn.ModuleList(self.Block() for _ in range(3)), nn.Identity()

    def forward(self, words, mask):
        x = self.words(words)
        for block in self.blocks:
            x = block(x, mask[:, None])
        return self.head(x.hidden)


class Parts(Tower):
    """Its blocks give a part of a tensor, as where tokens that were put in front are left out again."""

    class Block(Block):
        def forward(self, x, bias):
            more = super().forward(torch.cat([x, x], 1), torch.cat([bias, bias], -1))
            return more[:, x.shape[1] :]

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))


class Completing(Tower):
    """Its first block completes a mask in place that all blocks read: where nothing is padded, to no effect."""

    class Block(Block):
        def forward(self, x, bias):
            bias.masked_fill_(bias < 0, -1e4)
            return super().forward(x, bias)

    def __init__(self):
        super().__init__()
        self.blocks[0] = self.Block()

    def forward(self, words, mask):
        x, bias = self.words(words), mask[:, None] - 1
        for block in self.blocks:
            x = block(x, bias)
        return self.head(x)


class Clipped(Tower):
    """Clips in place what the blocks read beside what it gives."""

    def __init__(self):
        super().__init__()
        self.clip = nn.Hardtanh(-1e3, 1e3, inplace=True)

    def forward(self, words, mask):
        given = self.words(words)
        x = self.clip(given)
        for block in self.blocks:
            x = block(x, mask[:, None] + given.mean())
        return self.head(x)


class Adding(Tower):
    """Blocks that add to the stream in place, which nothing else reads."""

    class Block(Block):
        def forward(self, x, bias):
            return x.add_(super().forward(x, bias))

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))


def test_blocks_that_overwrite_what_nothing_else_reads(tmp_path):
    model = made(Adding)
    for name, blocks in (("whole", False), ("blocks", True)):
        accumulate(model, tmp_path / name, blocks=blocks)
    assert same_files(tmp_path / "whole", tmp_path / "blocks") == []


@pytest.mark.parametrize(("network", "name"), [(Completing, "blocks.0"), (Clipped, "clip")])
def test_what_is_overwritten_to_no_effect_in_the_first_batch_is_refused(network, name, tmp_path):
    full = [{**batch, "mask": torch.ones(4, 6)} for batch in batches(1)]
    with pytest.raises(UnsupportedLayerError, match=f"'{name}' overwrites in place what it is given, and others use"):
        accumulate(made(network), tmp_path / "store", [*full, *batches(2)], blocks=True)
    assert not (tmp_path / "store").exists()


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, 8), nn.Linear(8, 3)

    def forward(self, words, mask):
        return self.head(self.words(words) * mask[..., None])


class TwoHeads(Tower):
    """Two lists that read the same: they do not follow one another, so the longest list alone has the blocks."""

    def __init__(self):
        super().__init__()
        self.classes = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
        self.boxes = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))

    def forward(self, words, mask):
        x = self.words(words)
        for block in self.blocks:
            x = block(x, mask[:, None])
        return self.classes(x), self.boxes(x)


def test_the_longest_list_where_all_lists_together_do_not_follow_one_another(tmp_path):
    model, notes = made(TwoHeads), Notes()
    for name, blocks in (("whole", None), ("blocks", True)):
        layers = ds.watch(model, ["blocks.*", "classes.*", "boxes.*"])
        ds.accumulate(model, batches(), layers, store=tmp_path / name, blocks=blocks, progress=notes)
    assert notes.started[-1] == "block 4 of 4"
    assert same_files(tmp_path / "whole", tmp_path / "blocks") == []


class Caching(Tower):
    """Gives a state beside its scores, as its config says, as recurrent models of transformers do."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(use_cache=True)

    def forward(self, words, mask):
        scores = super().forward(words, mask)
        return (scores, scores.mean(0)) if self.config.use_cache else (scores,)


def test_what_identifies_a_network_is_seen_with_its_cache(tmp_path):
    model = made(Caching)
    accumulate(model, tmp_path / "whole")
    accumulate(model, tmp_path / "blocks", blocks=True)
    assert same_files(tmp_path / "whole", tmp_path / "blocks") == []
    assert model.config.use_cache


class Leaving(Tower):
    """Leaves after the third block where a batch is short."""

    def forward(self, words, mask):
        x = self.words(words)
        for block in self.blocks[: 3 if len(words) < 4 else 4]:
            x = block(x, mask[:, None])
        return self.head(x)


def test_a_batch_that_goes_another_way_is_refused(tmp_path):
    model = made(Leaving)
    data = [*batches(2), batches(1, samples=3)[0]]
    with pytest.raises(UnsupportedLayerError, match=r"layer 'blocks\.3\.up': is never called"):
        ds.accumulate(model, data, ds.watch(model, ["blocks.3.up", "head"]), store=tmp_path / "store", blocks=True)


class Half(nn.Module):
    """An operation in a module of its own."""

    def forward(self, x):
        return 0.5 * x


class Between(Tower):
    """Does something between the blocks."""

    def __init__(self, between):
        super().__init__()
        self.between = between

    def forward(self, words, mask):
        x = self.words(words)
        for block in self.blocks:
            x = self.between(block(x, (1 - mask)[:, None, :] * -1e4))
        return self.head(x)


def test_what_is_computed_between_blocks_must_be_a_module(tmp_path):
    network, store = made(lambda: Between(lambda x: 0.5 * x)), tmp_path / "refused"
    with pytest.raises(UnsupportedLayerError, match="outside of any module is done for each of them again: put that"):
        accumulate(network, store, blocks=True)
    for name, blocks in (("whole", None), ("blocks", True)):
        accumulate(made(lambda: Between(Half())), tmp_path / name, blocks=blocks)
    assert same_files(tmp_path / "whole", tmp_path / "blocks") == []


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Skipping, "what 'blocks.0' gives is used beyond the block after it, by 'blocks.2' or later"),
        (Shared, "members of 'blocks' are one and the same module: blocks may not be shared"),
        (Twice, "'blocks.1' is called 2 times in a forward pass"),
        (Remembering, "what 'blocks.2' gives is not the same in block 'blocks.2' as in the whole network"),
        (Named, "'blocks.0' gives a State, which is not kept between blocks: let it give tensors"),
        (Parts, "'blocks.0' gives a tensor of 4 x 6 x 8 that is a part or an expansion of another one"),
        (Flat, "no nn.ModuleList or nn.Sequential whose members are called once each"),
    ],
)
def test_networks_that_have_no_such_blocks_are_refused(network, message, tmp_path):
    model = made(network)
    with pytest.raises(UnsupportedLayerError, match=message):
        ds.accumulate(model, batches(), ds.watch(model, ["head"]), store=tmp_path / "store", blocks=True)
    assert not (tmp_path / "store").exists()


def test_what_is_asked_for_wrongly(tmp_path):
    model, store = made(Tower), tmp_path / "store"
    for blocks, message in (
        ("block", "there is no module 'block'; nearest: blocks"),
        ("head", "is a Linear: name an nn.ModuleList"),
        (4, "blocks: got 4: give True, the name of a list of modules"),
        (["blocks", 4], r"blocks: got \['blocks', 4\]: give True"),
        ([["blocks"]], r"blocks: got \[\['blocks'\]\]: give True"),
    ):
        with pytest.raises((LayerNotFoundError, InvalidInputError), match=message):
            accumulate(model, store, blocks=blocks)
    with pytest.raises(InvalidInputError, match="lies in a store: give store="):
        accumulate(model, None, blocks=True)
    with pytest.raises(InvalidInputError, match="several passes go through them"):
        accumulate(model, store, iter(batches()), blocks=True)
    with pytest.raises(InvalidInputError, match="must be in eval mode"):
        accumulate(made(Tower).train(), store, blocks=True)
    assert not store.exists()


def test_a_network_on_disk_does_nothing_else(tmp_path):
    in_shards(made(Tower), tmp_path / "weights")
    network = opened(tmp_path / "weights")
    with pytest.raises(InvalidInputError, match="which is not done here: load the network whole"):
        ds.capture(network, batches(), ds.watch(network, LAYERS), tmp_path / "store", domain="target")


def test_called_as_it_is_it_gives_what_the_whole_network_gives(tmp_path):
    model, batch = made(Tower), batches(1)[0]
    network = opened(in_shards(model, tmp_path / "weights"))
    for _ in range(2):
        with pytest.raises(TypeError):
            network(batch["words"])
        assert network(**batch).equal(model(**batch))
        assert all(parameter.is_meta for parameter in network.parameters())
    for save in (lambda: ds.save(network, tmp_path / "saved"), lambda: ds.network.weights_of(network, "head")):
        with pytest.raises(InvalidInputError, match=r"on the meta device.*: load the network whole"):
            save()


def test_rows_that_are_not_proved(tmp_path):
    model, rule = made(Tower), ds.RowRule(prove=False)
    for name, blocks in (("whole", None), ("blocks", True)):
        ds.accumulate(model, batches(), ds.watch(model, LAYERS), store=tmp_path / name, rows=rule, blocks=blocks)
    assert same_files(tmp_path / "whole", tmp_path / "blocks") == []


class WithNothing(nn.Module):
    """Each block also takes, and gives, a tensor without elements."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(6, 6)

        def forward(self, x, nothing):
            return x + self.up(torch.cat((x, nothing), 1)), nothing[:, :0]

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        nothing = x[:, :0]
        for block in self.blocks:
            x, nothing = block(x, nothing)
        return self.head(x)


def test_a_tensor_without_elements_between_blocks(tmp_path):
    model, data = made(WithNothing), list(torch.randn(9, 4, generator=torch.Generator().manual_seed(2)).split(4))
    layers = ds.watch(model, ["blocks.*"])
    ds.accumulate(model, data, layers, store=tmp_path / "whole")
    ds.accumulate(model, data, layers, store=tmp_path / "blocks", blocks=True)
    assert same_files(tmp_path / "whole", tmp_path / "blocks") == []
