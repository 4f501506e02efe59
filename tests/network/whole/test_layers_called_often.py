"""Layers that a forward pass calls several times: one matrix, the rows of all calls, one replacement."""

import copy
import fnmatch

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.errors import InvalidInputError, UnsupportedLayerError
from dalr_stream.network.layers.spec import select_layers
from dalr_stream.numerics.lowrank.factors import LowRankLayer
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.progress import Silent

WIDTH, TIMES = 6, 3
ALL_ROWS = ds.Folding(holdout=HoldoutRule(0.0))


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Looped(nn.Module):
    """One block, called over and over, as in an ALBERT or a looped transformer."""

    def __init__(self, times=TIMES):
        super().__init__()
        self.times = times
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x, attention_mask=None):
        for _ in range(self.times):
            x = self.norm(x + self.down(torch.relu(self.up(x))))
            if attention_mask is not None:
                x = x * attention_mask[..., None]
        return self.head(x)


class Towers(nn.Module):
    """Two inputs through one tower; the second one may come position after position."""

    def __init__(self, *, turned=False):
        super().__init__()
        self.up, self.down, self.head = nn.Linear(WIDTH, 12), nn.Linear(12, 5), nn.Linear(10, 3)
        self.turned = turned

    def tower(self, x):
        return self.down(torch.relu(self.up(x)))

    def forward(self, one, other):
        other = other.transpose(0, 1) if self.turned else other
        other = self.tower(other)
        other = other.transpose(0, 1) if self.turned else other
        return self.head(torch.cat([self.tower(one).mean(1), other.mean(1)], 1))


class Relative(nn.Module):
    """A layer that reads tokens and, at another call, the table of their relative positions, as in DeBERTa-v3."""

    def __init__(self, positions=9):
        super().__init__()
        self.table, self.key = nn.Parameter(drawn(positions, WIDTH, seed=2)), nn.Linear(WIDTH, 4)

    def forward(self, x, attention_mask=None):  # noqa: ARG002  # what the mask is named by
        return self.key(x) @ self.key(self.table).T


def torched(net_class, *arguments, **keywords):
    torch.manual_seed(0)
    return net_class(*arguments, **keywords).eval()


def read_by(net, layer, batch):
    """What a layer reads at each call, as it is, from hooks of its own."""
    reads = []
    hook = net.get_submodule(layer).register_forward_pre_hook(lambda _, given: reads.append(given[0].detach().clone()))
    with torch.no_grad():
        net(**batch) if isinstance(batch, dict) else net(batch)
    hook.remove()
    return reads


def moments(net, batches, layer, **rule):
    layers = select_layers(net, [layer])
    return accumulate_stream(net, batches, layers, rows=ds.RowRule(**rule), folding=ALL_ROWS)[layer]


def same_as(found, rows):
    rows = rows.double().reshape(-1, rows.shape[-1])
    assert found.count == len(rows)
    np.testing.assert_allclose(found.mean, rows.mean(0), atol=1e-9)
    np.testing.assert_allclose(found.scatter, (rows - rows.mean(0)).T @ (rows - rows.mean(0)), atol=1e-9)


def flat(reads):
    return torch.cat([read.reshape(-1, read.shape[-1]) for read in reads])


# --- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["up", "down"])
def test_the_rows_of_all_calls_are_those_of_one_record(layer):
    net, x = torched(Looped), drawn(8, 5, WIDTH)
    found = moments(net, [x[:5], x[5:]], layer)
    same_as(found, flat(read_by(net, layer, x)))
    assert found.samples == 8


def test_of_each_sample_the_calls_follow_one_another(tmp_path):
    net, x = torched(Looped), drawn(4, 5, WIDTH)
    store = ds.capture(net, [x], select_layers(net, ["up"]), tmp_path, domain="t")
    kept = store.read_tile("t", "up", 0).rows
    expected = torch.stack(read_by(net, "up", x), 1)  # (N, calls, T, d)
    np.testing.assert_array_equal(kept, expected.flatten(0, 2))


@pytest.mark.parametrize("turned", [True, False])
def test_two_towers_of_other_lengths_and_orders_have_one_record(turned):
    net = torched(Towers, turned=turned)
    batch = {"one": drawn(4, 3, WIDTH), "other": drawn(4, 6, WIDTH, seed=2)}
    found = moments(net, [batch], "up")
    same_as(found, torch.cat([batch["one"].flatten(0, 1), batch["other"].flatten(0, 1)]))
    held = accumulate_stream(net, [batch], select_layers(net, ["up"]), folding=ds.Folding(holdout=HoldoutRule(0.5)))
    assert held.heldout["up"].count == 9 * held.heldout["up"].samples  # of each sample both calls


def test_a_mask_holds_for_every_call():
    net, x = torched(Looped), drawn(4, 5, WIDTH)
    mask = torch.arange(5) < torch.tensor([5, 2, 4, 1])[:, None]
    batch = {"x": x, "attention_mask": mask.long()}
    found = moments(net, [batch], "up", mask="attention_mask")
    same_as(found, torch.cat([read[mask] for read in read_by(net, "up", batch)]))


def test_at_most_so_many_rows_of_each_call_and_the_same_positions():
    net, x = torched(Looped), drawn(6, 5, WIDTH)
    assert moments(net, [x], "up", most_per_sample=2).count == 6 * 2 * TIMES


def test_layers_that_read_one_tensor_at_every_call_share_their_rows():
    class Gated(Looped):
        def forward(self, x):
            for _ in range(self.times):
                x = self.down(torch.relu(self.up(x)) * self.gate(x))
            return x

    net = torched(Gated)
    net.gate = nn.Linear(WIDTH, 12)
    found = accumulate_stream(net.eval(), [drawn(4, WIDTH)], select_layers(net, ["up", "gate"]), folding=ALL_ROWS)
    assert found["up"] is found["gate"]


def test_a_table_is_read_by_each_sample_whatever_the_batch():
    net, x = torched(Relative), drawn(6, 5, WIDTH)
    table = net.table.detach().expand(6, -1, -1)
    for batches in ([x], list(x.split(2)), list(x.split(1))):
        same_as(moments(net, batches, "key"), torch.cat([x.flatten(0, 1), table.flatten(0, 1)]))


def test_the_mask_of_the_tokens_is_not_that_of_a_table():
    net, x = torched(Relative, positions=5), drawn(4, 5, WIDTH)
    mask = torch.arange(5) < torch.tensor([5, 2, 4, 1])[:, None]
    found = moments(net, [{"x": x, "attention_mask": mask.long()}], "key", mask="attention_mask")
    same_as(found, torch.cat([x[mask], net.table.detach().repeat(4, 1)]))


def test_how_many_calls_is_told(tmp_path):
    class Notes(Silent):
        said = ""

        def note(self, message):
            self.said += message

    notes = Notes()
    for net, name in ((torched(Looped), "up"), (torched(Relative), "key")):
        layers = select_layers(net, [name])
        ds.capture(net, [drawn(4, 5, WIDTH)], layers, tmp_path / name, domain="t", progress=notes)
    assert "the rows of all calls in a forward pass are taken together of 'up' (3 calls)" in notes.said
    assert "each sample is taken to read all rows of a table, which have none, of key" in notes.said


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prove", [True, False])
def test_another_number_of_calls_than_in_the_first_batch_is_refused(prove):
    class Adaptive(Looped):
        def forward(self, x):
            self.times = 2 if float(x[0, 0, 0]) > 0 else 4
            return super().forward(x)

    one = drawn(4, 5, WIDTH).abs()
    reason = "layer 'up': is called 4 times in a forward pass of this batch, and was called 2 times in the first one"
    with pytest.raises(UnsupportedLayerError, match=reason):
        moments(torched(Adaptive), [one, -one], "up", prove=prove)


def test_a_call_that_mixes_samples_is_named():
    class Mixing(Looped):
        def forward(self, x):
            return self.up(x).sum() + self.up(x - x.mean(0)).sum()

    with pytest.raises(InvalidInputError, match=r"layer 'up', call 2 of 2: .* rows of others change too"):
        moments(torched(Mixing), [drawn(4, 5, WIDTH)], "up")


# --- compressed -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::dalr_stream.errors.ParameterIncreaseWarning")
@pytest.mark.parametrize(
    ("net", "batch"),
    [
        (torched(Looped), drawn(16, 5, WIDTH)),
        (torched(Towers), {"one": drawn(16, 3, WIDTH), "other": drawn(16, 6, WIDTH, seed=2)}),
        (torched(Relative), drawn(16, 5, WIDTH)),
    ],
    ids=["looped", "towers", "table"],
)
def test_a_pair_of_full_rank_computes_what_the_layer_did_at_every_call(net, batch):
    layers = select_layers(net, ["re:up|down|key"])
    found = ds.accumulate(net, [batch], layers)
    pairs = {layer.name: ds.dalr(found[layer.name]).at_rank(min(layer.inputs, layer.outputs)) for layer in layers}
    small = ds.compress(net, pairs, example=batch)
    with torch.no_grad():
        outputs, expected = ((one(**batch) if isinstance(batch, dict) else one(batch)) for one in (small, net))
    torch.testing.assert_close(outputs, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("net", "batch"),
    [
        (torched(Looped), drawn(40, 5, WIDTH)),
        (torched(Towers), {"one": drawn(40, 3, WIDTH), "other": drawn(40, 6, WIDTH, seed=2)}),
    ],
    ids=["looped", "towers"],
)
def test_nodes_are_selected_from_what_the_reader_reads_at_all_calls(net, batch):
    net = copy.deepcopy(net)
    with torch.no_grad():
        net.up.weight[3], net.up.bias[3] = net.up.weight[7], net.up.bias[7]  # one of the two can be restored
    layers = ds.watch(net, ["up"], example=batch)
    assert layers[0].group is not None, layers[0].unprunable
    found = ds.accumulate(net, [batch], layers)
    everything = accumulate_stream(net, [batch], layers, folding=ALL_ROWS)
    same_as(everything["down"], flat(read_by(net, "down", batch)))
    selection = ds.spectral(found["up"])
    for size, precise in ((12, True), (11, True), (4, False)):
        small = ds.compress(net, {"up": selection.at_size(size)}, example=layers.structure)
        assert small.up.out_features == small.down.in_features == size
        with torch.no_grad():
            outputs, expected = ((one(**batch) if isinstance(batch, dict) else one(batch)) for one in (small, net))
        assert bool(torch.allclose(outputs, expected, atol=1e-3)) is precise


def test_a_state_that_begins_as_wide_as_the_nodes_is_no_selection():
    """A recurrent cell reads its own channels; its first state is made as wide as they were."""

    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.reads, self.recalls = nn.Linear(WIDTH, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            state = x.new_zeros(len(x), 8)
            for step in x.unbind(1):
                state = torch.tanh(self.reads(step) + self.recalls(state))
            return self.head(state)

    net, x = torched(Cell), drawn(40, 4, WIDTH)
    layers = ds.watch(net, ["reads"], example=x)
    if layers[0].group is None:
        return
    found = ds.accumulate(net, [x], layers)
    with pytest.raises(UnsupportedLayerError, match="its channels cannot be pruned"):
        ds.compress(net, {"reads": ds.spectral(found["reads"]).at_size(4)}, example=layers.structure)


# --- of transformers ------------------------------------------------------------------------------------------------

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_buckets": 4}
SHARED = {
    "albert": (
        hf.AlbertModel,
        hf.AlbertConfig(**SIZES, vocab_size=40, embedding_size=8),
        "encoder.albert_layer_groups.*",
    ),
    "deberta-v3": (hf.DebertaV2Model, hf.DebertaV2Config(**SIZES, **RELATIVE, vocab_size=40), "*.self.*_proj"),
}


def shared(name):
    kind, config, pattern = SHARED[name]
    net = torched(kind, config)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.3)
    ids = torch.randint(3, 40, (6, 7), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(7) < torch.tensor([7, 4, 3, 6, 2, 5])[:, None]).long()
    layers = [layer for layer in select_layers(net, [nn.Linear]) if fnmatch.fnmatchcase(layer.name, pattern)]
    return net, {"input_ids": ids * mask, "attention_mask": mask}, layers


@pytest.mark.parametrize("name", SHARED)
def test_of_transformers_too_every_call_is_measured_and_replaced(name):
    net, batch, layers = shared(name)
    found = accumulate_stream(net, [batch], layers, rows=ds.RowRule(mask="attention_mask"), folding=ALL_ROWS)
    counted = batch["attention_mask"].bool()
    for layer in layers:
        reads = [r[counted] if len(r) == 6 else r.flatten(0, -2).repeat(6, 1) for r in read_by(net, layer.name, batch)]
        same_as(found[layer.name], torch.cat(reads))
    assert max(len(read_by(net, layer.name, batch)) for layer in layers) == (3 if name == "albert" else 2)
    pairs = {layer.name: exactly(net.get_submodule(layer.name)) for layer in layers}
    small = ds.compress(net, pairs, example=batch)
    with torch.no_grad():
        torch.testing.assert_close(small(**batch)[0], net(**batch)[0], atol=1e-4, rtol=1e-4)


def exactly(linear):
    weight, bias = (parameter.detach().double().numpy() for parameter in (linear.weight, linear.bias))
    identity = np.eye(min(weight.shape))
    return LowRankLayer(*((identity, weight) if weight.shape[1] <= weight.shape[0] else (weight, identity)), bias)


def test_nodes_of_a_block_that_an_albert_repeats_are_selected_once_for_all_calls():
    net, batch, _ = shared("albert")
    name = "encoder.albert_layer_groups.0.albert_layers.0.ffn"
    layers = ds.watch(net, [name], example=batch)
    assert layers[0].group is not None, layers[0].unprunable
    selection = ds.spectral(ds.accumulate(net, [batch], layers)[name])
    small = ds.compress(net, {name: selection.at_size(24)}, example=layers.structure)
    with torch.no_grad():
        torch.testing.assert_close(small(**batch)[0], net(**batch)[0], atol=1e-3, rtol=1e-3)
