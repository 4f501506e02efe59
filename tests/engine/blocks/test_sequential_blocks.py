"""Layer after layer, block by block: the network that the whole one becomes, to the bit."""

import shutil
import warnings
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import cost_of_sequences
import pytest
import torch
from block_networks import WORDS, Tower, batches, in_shards, made
from notes import Notes
from stopping import StopAfter, StoppedError
from test_blocks import Remembering, Stages, pictures
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import (
    DiskSpaceError,
    FingerprintMismatchError,
    InvalidInputError,
    ParameterIncreaseWarning,
    StoreDamagedError,
    StoreLockedError,
    StoreNotFoundError,
    UnsupportedLayerError,
)
from dalr_stream.storage.lock import work_folder

DALR, OPTIMAL = "dalr_anchored_affine", "dalr_optimal_affine"
ROWS = ds.RowRule(mask="mask")
Small = partial(Tower, 3)


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture(autouse=True)
def _wide():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        yield


def choices(*names, method=DALR, size=3, **others):
    others = {name.replace("__", "."): ds.LayerChoice(*choice) for name, choice in others.items()}
    return {**{name: ds.LayerChoice(method, size) for name in names}, **others}


def in_blocks(model, chosen, store, data=None, *, rows=ROWS, **options):
    data = batches(3) if data is None else data
    return ds.compress_sequentially(model, data, chosen, store=store, rows=rows, blocks=True, **options)


def whole(model, chosen, data=None, *, rows=ROWS, **options):
    return ds.compress_sequentially(model, batches(3) if data is None else data, chosen, rows=rows, **options)


def numbers(network):
    known = vars(network).get("_weights_elsewhere")
    tensors = dict(network.named_parameters(remove_duplicate=False))
    return {name: known.numbers(name) if tensor.is_meta else tensor for name, tensor in tensors.items()}


def require_same(one, other):
    assert one.passes == other.passes
    told = [
        {name: (outcome.inherited, outcome.error, outcome.target) for name, outcome in result.layers.items()}
        for result in (one, other)
    ]
    assert told[0] == told[1]
    mine, its = numbers(one.network), numbers(other.network)
    assert mine.keys() == its.keys()
    assert [name for name, tensor in mine.items() if not torch.equal(tensor, its[name])] == []
    assert one.network.compression_plan == other.network.compression_plan
    assert one.network.compressed_from == other.network.compressed_from


EVERY = [f"blocks.{block}.{layer}" for block in range(2) for layer in ("q", "k", "v", "o", "up", "down")]
CASES = {
    "every layer": (choices(*EVERY), "outputs"),
    "some blocks": (choices("blocks.1.up", "blocks.2.q", "blocks.2.k", method=OPTIMAL), "outputs"),
    "selections": (
        choices("blocks.0.down", "blocks.2.o", blocks__1__up=("spectral", 6), blocks__2__up=("prune_max", 8)),
        "outputs",
    ),
    "towards the stream": (
        choices("blocks.0.o", "blocks.1.o", "blocks.2.q", "blocks.2.down", blocks__1__up=("spectral", 6)),
        "stream",
    ),
    "by weights alone": (choices("blocks.0.up", "blocks.2.up", method="svd"), "outputs"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_network_as_whole(case, tmp_path):
    chosen, target = CASES[case]
    model = made(Small)
    require_same(
        whole(model, chosen, target=target),
        in_blocks(model, chosen, tmp_path / "store", target=target),
    )
    left = sorted(path.name for path in (tmp_path / "store" / "blocks").iterdir())
    assert [name for name in left if not name.startswith("block-")] == ["writer.lock"]
    assert list((tmp_path / "store" / "blocks").glob("block-*/passes")) == []


OPEN = {}


def note_what_is_there(*_):
    """Hooks of a network that is compressed must not hold it: this one finds it by a name of the module."""
    names = [name for name, parameter in OPEN["network"].named_parameters() if not parameter.is_meta]
    OPEN["there"].append({name.split(".")[1] for name in names if name.startswith("blocks")})


def test_one_block_is_in_memory_and_so_it_stays(tmp_path, monkeypatch):
    model = made(Small)
    chosen = choices("blocks.0.o", "blocks.2.down", blocks__1__up=("spectral", 6))
    in_shards(model, tmp_path / "weights")
    network = ds.open_network(Small, tmp_path / "weights")
    monkeypatch.setitem(OPEN, "network", network)
    monkeypatch.setitem(OPEN, "there", there := [])
    for block in network.blocks:
        block.norm.register_forward_hook(note_what_is_there)
    found, expected = in_blocks(network, chosen, tmp_path / "store"), whole(model, chosen)
    require_same(expected, found)
    assert max(map(len, there)) == 1
    assert all(parameter.is_meta for parameter in (*network.parameters(), *found.network.parameters()))
    with torch.no_grad():
        assert torch.equal(expected.network(**batches()[1]), found.network(**batches()[1]))
    layers = ds.watch(found.network, ["blocks.2.up"])
    moments = [
        ds.accumulate(net, batches(), layers, store=tmp_path / name, rows=ROWS)["blocks.2.up"].inputs
        for name, net in (("one", found.network), ("other", expected.network))
    ]
    assert moments[0].same_bits(moments[1])
    folder = ds.compress_into(found.network, {}, tmp_path / "small")
    loaded = ds.load(folder, Small).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.network.state_dict().items())
    again = in_blocks(found.network, choices("blocks.2.up"), tmp_path / "again")
    require_same(whole(expected.network, choices("blocks.2.up")), again)


@pytest.mark.parametrize("network", [pictures, Stages])
def test_convolutions(network, tmp_path):
    model = made(network)
    data = list(torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(2)).split(5))
    names = [layer.name for layer in ds.watch(model, ["*"])][:4]
    chosen = choices(*names, size=2)
    if network is Stages:
        chosen |= choices(layer2__1__conv1=("spectral", 3))
    require_same(whole(model, chosen, data, rows=None), in_blocks(model, chosen, tmp_path, data, rows=None))


def decoder(transformers):
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config)


def encoder_and_decoder(transformers):
    config = transformers.T5Config(
        vocab_size=WORDS, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


@pytest.mark.parametrize("build", [decoder, encoder_and_decoder])
def test_models_of_transformers(build, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = made(lambda: build(transformers))
    data = [{"input_ids": one["words"], "attention_mask": one["mask"].long()} for one in batches()]
    if build is encoder_and_decoder:
        data = [{**one, "decoder_input_ids": one["input_ids"]} for one in data]
    names = {
        decoder: "re:model.layers.*(q|k|o|gate|down)_proj",
        encoder_and_decoder: r"re:.*block.1.*(EncDecAttention.k|\.o|\.wi|\.wo)",
    }
    chosen = choices(*(layer.name for layer in ds.watch(model, [names[build]])))
    rows = ds.RowRule(mask="attention_mask") if build is decoder else None
    require_same(
        whole(model, chosen, data, rows=rows, target="stream"),
        in_blocks(model, chosen, tmp_path, data, rows=rows, target="stream"),
    )


def test_stopped_anywhere_it_goes_on_to_the_same_bits(tmp_path):
    model = made(Tower)
    chosen = choices("blocks.0.o", "blocks.3.q", blocks__1__up=("spectral", 6))
    network, expected = ds.open_network(Tower, in_shards(model, tmp_path / "weights")), whole(model, chosen)
    most = {"@stream": 0, "@compressed": 0}
    for stop in (3, 6, 11, 17):
        store, left, found = tmp_path / f"stopped-{stop}", stop, None
        while found is None:
            with suppress(StoppedError):
                found = in_blocks(network, chosen, store, progress=StopAfter(left))
            left += stop  # a pass that a checkpoint does not reach begins again
            streams = [path.name.rpartition("-")[0] for path in store.rglob("@*-*") if path.parent.name == "target"]
            most = {name: max(number, streams.count(name)) for name, number in most.items()}
        require_same(expected, found)
    assert most == {"@stream": 3, "@compressed": 3}  # what comes before the blocks, and two generations


def test_what_is_done_is_not_done_again(tmp_path):
    model = made(Small)
    chosen = choices("blocks.0.o", "blocks.1.up", "blocks.2.q")
    in_blocks(model, chosen, tmp_path)
    notes = Notes()
    require_same(whole(model, chosen), in_blocks(model, chosen, tmp_path, progress=notes))
    assert notes.started == []
    chosen["blocks.1.up"] = ds.LayerChoice(DALR, 4)
    notes = Notes()
    require_same(whole(model, chosen), in_blocks(model, chosen, tmp_path, progress=notes))
    passes = [line.partition(": ")[2] for line in notes.said if "over the data" in line]
    assert passes == ["1 pass over the data: blocks.1.up", "1 pass over the data: blocks.2.q"]
    changed = batches()
    changed[2]["words"] = changed[2]["words"].flip(0)
    require_same(whole(model, chosen, changed), in_blocks(model, chosen, tmp_path, changed))


def test_a_result_whose_blocks_were_replaced_since_is_refused(tmp_path):
    weights = in_shards(made(Small), tmp_path / "weights")
    network = ds.open_network(Small, weights)
    before = in_blocks(network, choices("blocks.0.o"), tmp_path / "store").network
    before(**batches()[0])
    in_blocks(network, choices("blocks.0.o", method="svd"), tmp_path / "store")
    with pytest.raises(FingerprintMismatchError, match=r"block-0000.* was replaced since the network was opened"):
        before(**batches()[0])
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(StoreNotFoundError, match="was removed since the network was opened"):
        ds.compress_into(before, {}, tmp_path / "small", made_from="all")


def test_other_sweeps_leave_nothing_to_begin_from(tmp_path):
    model, chosen = made(Small), choices("blocks.0.o", "blocks.1.up", "blocks.2.q")
    for change, reports in (("blocks.2.q", 12), ("blocks.1.up", 6), ("blocks.0.o", 6)):
        chosen[change] = ds.LayerChoice(DALR, 4)
        with pytest.raises(StoppedError):
            in_blocks(model, chosen, tmp_path, progress=StopAfter(reports))
    require_same(whole(model, chosen), in_blocks(model, chosen, tmp_path))


def test_damage_is_named(tmp_path):
    model, chosen = made(Small), choices("blocks.0.o", "blocks.1.up", "blocks.2.q")
    with pytest.raises(StoppedError):
        in_blocks(model, chosen, tmp_path, progress=StopAfter(18))
    streams = tmp_path / "blocks" / "unfinished" / "target"
    record = sorted((streams / "@compressed-1").iterdir())[2]
    chunk = next(path for path in record.rglob("c/*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreDamagedError, match=r"delete '.*unfinished/target' and run again"):
        in_blocks(model, chosen, tmp_path)
    shutil.rmtree(streams)
    weights = tmp_path / "blocks" / "block-0001" / "network"
    chunk = next(path for path in weights.rglob("c/*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    require_same(whole(model, chosen), in_blocks(model, chosen, tmp_path))


@pytest.mark.parametrize("samples", [1, 2])
def test_few_samples_batches_that_come_twice_and_empty_ones(samples, tmp_path):
    model, data = made(Small), batches(4, samples)
    data = [data[0], {key: value[:0] for key, value in data[0].items()}, data[1], data[1], *data[2:]]
    chosen = choices("blocks.0.o", "blocks.1.down")
    every = ds.Folding(ds.HoldoutRule(0.0))
    require_same(whole(model, chosen, data, folding=every), in_blocks(model, chosen, tmp_path, data, folding=every))


class Dead(Tower):
    """Nodes that are never active, others that are the same, and a feature of large mean."""

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            for block in self.blocks:
                block.up.bias[:3] = -1e3
                block.up.weight[3], block.up.bias[3] = block.up.weight[4], block.up.bias[4]
                block.down.bias[0] = 1e4


def test_dead_and_equal_nodes(tmp_path):
    model = made(Dead)
    chosen = choices("blocks.1.down", "blocks.2.down", "blocks.2.o", blocks__1__up=("spectral", 6))
    require_same(whole(model, chosen), in_blocks(model, chosen, tmp_path))


class Tied(Tower):
    """Two blocks that are tied by their nodes, and a layer that two of them call."""

    def __init__(self):
        super().__init__()
        self.both = nn.Linear(8, 8)

    def forward(self, words, mask):
        x = self.words(words)
        for block in self.blocks:
            x = self.both(block(x, mask[:, None]))
        return self.head(x)


BEYOND = "block by block, whoever gives, carries or reads its nodes must be in one block"


@pytest.mark.parametrize(
    ("build", "chosen", "message"),
    [
        (Small, choices(blocks__1__down=("spectral", 4)), BEYOND),
        (Small, choices("head"), "'head.weight' is shared with 'words.weight'"),
        (Tied, choices("both"), "layer 'both': is called by several blocks"),
        (Remembering, choices("blocks.0.up"), "does not run block by block"),
        (Small, choices(blocks__1__up=("momasp_node", 4)), "momasp_node compares two domains: give source="),
    ],
)
def test_what_crosses_blocks_is_refused_before_any_pass(build, chosen, message, tmp_path):
    notes = Notes()
    with pytest.raises((UnsupportedLayerError, InvalidInputError), match=message):
        in_blocks(made(build), chosen, tmp_path / "store", progress=notes)
    assert notes.started == []
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("target", ["outputs", "stream"])
def test_momasp_compares_both_domains_in_the_network_as_compressed_so_far(target, tmp_path):
    model = made(Small)
    chosen = choices(
        "blocks.0.down", blocks__0__up=("momasp_node", 5), blocks__1__up=("momasp_subset", 7), blocks__2__o=(DALR, 3)
    )
    source = [{**batch, "words": batch["words"].flip(0)} for batch in batches(4)[2:]]
    expected = whole(model, chosen, source=source, target=target)
    for stopped in (5, 12, 19):
        with suppress(StoppedError):
            in_blocks(model, chosen, tmp_path, source=source, target=target, progress=StopAfter(stopped))
    require_same(in_blocks(model, chosen, tmp_path, source=source, target=target), expected)
    other = source[:1]  # of which nothing is taken over
    found = in_blocks(model, chosen, tmp_path, source=other, target=target)
    require_same(found, whole(model, chosen, source=other, target=target))


def test_a_target_without_a_stream_is_refused(tmp_path):
    with pytest.raises(UnsupportedLayerError, match=r"no residual stream takes in what the layers give: 'blocks.0.up'"):
        in_blocks(made(Small), choices("blocks.0.up", "blocks.2.q"), tmp_path, target="stream")
    notes = Notes()
    in_blocks(made(Small), choices("blocks.0.up", "blocks.2.o"), tmp_path, target="stream", progress=notes)
    assert any(line.startswith("layer 'blocks.0.up' is solved towards its own outputs") for line in notes.said)


def test_a_store_on_disk_that_nobody_else_writes_is_needed(tmp_path, monkeypatch):
    model, chosen = made(Small), choices("blocks.0.o", "blocks.1.up")
    with pytest.raises(InvalidInputError, match=r"block by block, what the blocks give lies in a store: give store"):
        ds.compress_sequentially(model, batches(), chosen, blocks=True)
    with work_folder(tmp_path / "blocks"), pytest.raises(StoreLockedError):
        in_blocks(model, chosen, tmp_path)
    shutil.rmtree(tmp_path / "blocks")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 3000})())
    with pytest.raises(DiskSpaceError, match="compressing block by block takes"):
        in_blocks(model, chosen, tmp_path)
    assert not (tmp_path / "blocks").exists()


class Changing(Notes):
    """Changes the batches as soon as a pass begins."""

    def __init__(self, data):
        super().__init__()
        self.data = data

    def track(self, title, total, unit):
        self.data[1] = {**self.data[1], "words": self.data[1]["words"].flip(0)}
        return super().track(title, total, unit)


def test_batches_that_change_are_found_out(tmp_path):
    data = batches(3)
    with pytest.raises(FingerprintMismatchError, match="is not the one of the first pass"):
        in_blocks(made(Small), choices("blocks.0.o", "blocks.1.up"), tmp_path, data, progress=Changing(data))


def test_what_a_sequence_costs_is_measured(tmp_path):
    pytest.importorskip("transformers")
    args = SimpleNamespace(hidden=16, between=16, heads=2, samples=6, tokens=4, batch=3, rank=2, folder=tmp_path)
    (found,) = cost_of_sequences.measure(args, [2])
    assert found["same"]
    assert found["kept"]["runs"] < found["blocks"]["runs"]
    assert found["kept"]["runs"] < found["streamed"]["runs"]
