"""Heads layer after layer, against a twin that holds all rows of both networks, and by their laws."""

import copy

import numpy as np
import pytest
import torch
from attentions import Attention, Block, Masked, tokens
from notes import Notes
from rotary_attentions import Partly, Rotary
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.sequential import pass_plan
from dalr_stream.engine.sequential.passes import sequential_passes
from dalr_stream.errors import InvalidInputError, MemoryLimitError, RankError, UnsupportedLayerError
from dalr_stream.network.surgery.plan import NarrowHeads
from dalr_stream.numerics import head_factors

ALL = ds.Folding(ds.HoldoutRule(0.0))
FIRST, SECOND = "0.attention.o", "1.attention.o"
RIDGE = 1e-3


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


def network(kind=Attention, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*(Block(kind(**options)) for _ in range(2))).double().eval()


def batches():
    return [tokens(samples=20, seed=seed).double() for seed in range(3)]


def heads(size, **options):
    return ds.LayerChoice(size=size, **{"method": "heads", "restore_ridge": RIDGE, **options})


def sequence(model, choices, **options):
    return ds.compress_sequentially(model, batches(), choices, **{"folding": ALL, **options})


def given(model):
    with torch.no_grad():
        return torch.cat([model(batch) for batch in batches()])


def far(one, other):
    return float((one - other).norm() / other.norm())


# --- a twin that holds the rows -------------------------------------------------------------------------------------


@torch.no_grad()
def rows_of(model, name):
    """(n, d) and (n, m): all rows that a layer reads, and gives."""
    seen = []
    hook = model.get_submodule(name).register_forward_hook(lambda _, read, out: seen.append((read[0], out)))
    given(model)
    hook.remove()
    return [torch.cat([one.flatten(0, -2) for one in part]).numpy() for part in zip(*seen, strict=True)]


def stream_of(model, name):
    """(n, m): what a block's stream is before its attention is added, which is what the block reads."""
    return rows_of(model, f"{name.split('.')[0]}.norm")[0]


def anchored(weight, x, z, ridge):
    """min ||z - V x - b||^2 + lambda ||V - W||^2 about the mean, lambda relative to the mean of E x^2."""
    lam = ridge * float(np.mean(x**2)) * len(x)
    own, gap = x - x.mean(axis=0), (z - x @ weight.T) - (z - x @ weight.T).mean(axis=0)
    step = gap.T @ own @ np.linalg.inv(own.T @ own + lam * np.eye(x.shape[1]))
    solved = weight + step
    return solved, z.mean(axis=0) - solved @ x.mean(axis=0)


def twin(model, sizes, *, stream=False):
    """The network with heads narrowed one attention after the other, each output layer solved on all rows."""
    small = model
    for name, size in sizes.items():
        structure = ds.network.Structure.of(small, batches()[0])
        layout = structure.heads_of(name)
        layers = {}
        for layer in layout.layers:
            module = small.get_submodule(layer)
            read = ds.Moments.of(rows_of(small, layer)[0])
            layers[layer] = ds.Layer(layer, module.weight.detach().numpy(), module.bias.detach().numpy(), inputs=read)
        record = head_factors(layers, layout, ridge=RIDGE).at_size(size)
        small = copy.deepcopy(ds.compress(small, {name: record}, example=structure))
        output = small.get_submodule(name)
        target = rows_of(model, name)[1]
        if stream:
            target = target + stream_of(model, name) - stream_of(small, name)
        solved = anchored(output.weight.detach().numpy(), rows_of(small, name)[0], target, RIDGE)
        with torch.no_grad():
            output.weight.copy_(torch.from_numpy(solved[0]))
            output.bias.copy_(torch.from_numpy(solved[1]))
    return small


@pytest.mark.parametrize("kind", [Attention, Masked, Rotary, Partly])
@pytest.mark.parametrize("target", ["outputs", "stream"])
def test_it_is_what_the_twin_makes_of_all_rows(kind, target):
    model = network(kind)
    sizes = {FIRST: 2, SECOND: 2}
    result = sequence(model, {name: heads(size) for name, size in sizes.items()}, target=target)
    assert result.passes == ((FIRST,), (SECOND,))
    expected = twin(model, sizes, stream=target == "stream")
    assert far(given(result.network), given(expected)) < 1e-6
    assert [type(step) for step in result.network.compression_plan.steps] == [NarrowHeads] * 2
    assert [outcome.target.value for outcome in result.layers.values()] == ["outputs", target]  # nothing is lost yet


@pytest.mark.parametrize("kind", [Attention, Rotary])
def test_errors_are_what_the_output_layer_lacks_before_it_is_solved_and_after(kind):
    model = network(kind)
    result = sequence(model, {FIRST: heads(2)})
    (outcome,) = result.layers.values()
    target = rows_of(model, FIRST)[1]
    structure = ds.network.Structure.of(model, batches()[0])
    layout = structure.heads_of(FIRST)
    statistics = ds.accumulate(model, batches(), ds.watch(model, layout.layers), folding=ALL)
    narrow = ds.compress(model, {FIRST: head_factors(statistics, layout).at_size(2)}, example=structure)
    for name in ("q", "k", "v"):
        assert torch.equal(
            result.network[0].attention.get_submodule(name).weight, narrow[0].attention.get_submodule(name).weight
        )
    errors = [rows_of(one, FIRST)[1] - target for one in (narrow, result.network)]
    whole = np.sum((target - narrow.get_submodule(FIRST).bias.detach().numpy()) ** 2)
    assert (outcome.inherited, outcome.error) == pytest.approx(
        [np.sqrt(np.sum(e**2) / whole) for e in errors], rel=1e-6
    )
    assert outcome.error < outcome.inherited
    assert "narrower heads, 2: error" in str(outcome)


@pytest.mark.parametrize("kind", [Attention, Rotary])
def test_in_turn_less_is_lost_than_all_at_once(kind):
    model = network(kind)
    structure = ds.network.Structure.of(model, batches()[0])
    layouts = [structure.heads_of(name) for name in (FIRST, SECOND)]
    watched = ds.watch(model, [layer for layout in layouts for layer in layout.layers])
    statistics = ds.accumulate(model, batches(), watched, folding=ALL)
    records = {one.output: head_factors(statistics, one).at_size(2) for one in layouts}
    at_once = ds.compress(model, records, example=structure)
    in_turn = sequence(model, {FIRST: heads(2), SECOND: heads(2)}).network
    assert far(given(in_turn), given(model)) < far(given(at_once), given(model))


def test_at_full_size_nothing_changes():
    model = network()
    result = sequence(model, {FIRST: heads(4), SECOND: heads(4)})
    assert far(given(result.network), given(model)) < 1e-6
    assert all(outcome.error < 1e-6 for outcome in result.layers.values())


def test_beside_factors_and_selections_saved_and_loaded(tmp_path):
    model = network()
    spectral, pair = ds.LayerChoice("spectral", 11), ds.LayerChoice("dalr_anchored_affine", 4)
    choices = {SECOND: heads(2), "0.up": spectral, FIRST: heads(3), "1.down": pair}
    result = sequence(model, choices)
    assert result.passes == ((FIRST,), ("0.up",), (SECOND,), ("1.down",))
    assert result.network[0].attention.q.out_features == 12
    assert result.network[0].up.out_features == 11
    assert result.network[1].attention.head_dim == 2
    assert result.network[1].down[0].out_features == 4
    ds.save(result.network, tmp_path)
    loaded = ds.load(tmp_path, network)
    assert torch.equal(given(loaded), given(result.network))


def test_held_out_rows_measure_and_decide_nothing():
    model = network()
    whole, part = (
        sequence(model, {FIRST: heads(2)}, folding=ds.Folding(ds.HoldoutRule(share))) for share in (0.0, 0.3)
    )
    (one,), (other,) = whole.layers.values(), part.layers.values()
    assert other.error != one.error
    assert far(given(part.network), given(whole.network)) < 0.3


@pytest.mark.parametrize("kept", [0, 2**30])
def test_what_is_kept_between_passes_changes_no_bit(monkeypatch, kept):
    expected = sequence(network(), {FIRST: heads(2), SECOND: heads(3)})
    monkeypatch.setattr(pass_plan, "KEPT_BYTES", kept)
    found = sequence(network(), {FIRST: heads(2), SECOND: heads(3)})
    assert torch.equal(given(found.network), given(expected.network))


def test_a_sequence_resumes_after_a_pass_and_at_other_sizes_from_what_was_kept(tmp_path):
    model, choices = network(), {FIRST: heads(2), SECOND: heads(3)}
    states = list(sequential_passes(model, batches(), choices, folding=ALL, store=tmp_path))
    assert [len(state.layers) for state in states] == [0, 1, 2]
    resumed = list(sequential_passes(model, batches(), choices, folding=ALL, begun=states[1]))
    assert torch.equal(given(resumed[-1].network), given(states[-1].network))
    notes = Notes()
    again = sequence(model, {**choices, SECOND: heads(2)}, store=tmp_path, progress=notes)
    assert again.layers[FIRST].error == states[-1].layers[FIRST].error
    assert sum("no pass is needed" in note for note in notes.said) == 3
    assert torch.equal(given(again.network), given(sequence(model, {**choices, SECOND: heads(2)}).network))


def test_memory_is_counted_before_the_first_pass():
    model = network()
    with pytest.raises(MemoryLimitError):
        sequence(model, {FIRST: heads(2)}, folding=ds.Folding(ds.HoldoutRule(0.0), memory_limit_bytes=2**10))
    limited = ds.Folding(ds.HoldoutRule(0.0), memory_limit_bytes=2**28)
    found, expected = (sequence(model, {FIRST: heads(2)}, folding=one) for one in (limited, ALL))
    assert torch.equal(given(found.network), given(expected.network))


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({FIRST: heads(5)}, RankError, r"layer '0\.attention\.o': size of a head must lie in 1\.\.4, got 5"),
        ({FIRST: heads(0)}, RankError, r"size of a head must lie in 1\.\.\d+, got 0"),
        ({FIRST: heads(1.5)}, RankError, r"size of a head must lie in"),
        ({"0.up": heads(2)}, UnsupportedLayerError, r"layer '0\.up': the heads of its attention cannot be narrowed"),
        (
            {FIRST: heads(2), "0.attention.q": ds.LayerChoice("svd", 2)},
            InvalidInputError,
            r"layer '0\.attention\.q': belongs to the attention of '0\.attention\.o'",
        ),
    ],
)
def test_what_is_refused_before_any_pass(choices, error, message):
    notes = Notes()
    with pytest.raises(error, match=message):
        sequence(network(), choices, progress=notes)
    assert not notes.said


def test_rotary_heads_have_even_sizes():
    with pytest.raises(RankError, match=r"size of a head must lie in 2\.\.8, in steps of 2, got 3"):
        sequence(network(Rotary), {FIRST: heads(3)})
