"""Fewer rotary pairs: the network computes what the one before does without them, at every position."""

import copy
import io
import re

import pytest
import torch
import transformers
from attentions import block, tokens
from rotary_attentions import (
    ByPairs,
    Cached,
    CachedNeighbours,
    Complex,
    Learned,
    Neighbours,
    Partly,
    Rotary,
    Sections,
    Tokens,
    TwoBlocks,
    WithRope,
    made,
)
from test_narrowed_heads import PLAIN, far, given, narrowed, solved

import dalr_stream as ds
from dalr_stream.errors import InvalidInputError, LayerNotFoundError, RankError, UnsupportedLayerError
from dalr_stream.network import Structure
from dalr_stream.network.surgery.kept_rotations import KeptRotations
from dalr_stream.network.surgery.plan import NarrowHeads, SurgeryPlan
from dalr_stream.numerics import head_factors

NAME = "attention.o"
KINDS = [Rotary, Neighbours, Cached, CachedNeighbours, ByPairs, Complex, Learned, Partly, WithRope]
LONG = tokens(samples=3, length=50, seed=5)
"""Of tokens at positions that nothing was proved on."""


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


@torch.no_grad()
def by_hand(network, record):
    """A network with keys projected and values restored, in layers of their full size."""
    network, layout = copy.deepcopy(network), record.layout
    projection = torch.block_diag(*torch.from_numpy(record.queries).mT @ torch.from_numpy(record.keys)).float()
    keys, output = network.get_submodule(layout.keys), network.get_submodule(layout.output)
    keys.weight.copy_(projection @ keys.weight)
    if keys.bias is not None:
        keys.bias.copy_(projection @ keys.bias)
    weight = output.weight.clone()
    output.weight.copy_(weight @ torch.from_numpy(record.restore @ record.kept).float())
    shift = weight @ torch.from_numpy(record.offset).float()
    output.bias = torch.nn.Parameter(shift if output.bias is None else output.bias + shift)
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_network_without_these_pairs_and_is_saved_loaded_and_copied(kind, tmp_path):
    network = block(kind)
    structure, factors = solved(network)
    for size in (2, 6, 8):
        record = factors[NAME].at_size(size)
        small = ds.compress(network, {NAME: record}, example=structure)
        assert small.attention.q.out_features == small.attention.o.in_features == 4 * size
        assert small.attention.k.out_features == small.attention.v.out_features == 2 * size
        for batch in (tokens(), LONG):
            assert far(given(small, batch), given(by_hand(network, record), batch)) < 1e-5
    assert far(given(network), given(block(kind))) == 0.0
    small = ds.compress(network, {NAME: factors[NAME].at_size(4)}, example=structure)
    ds.save(small, tmp_path)
    loaded = ds.load(tmp_path, lambda: block(kind))
    assert [type(step) for step in loaded.compression_plan.steps] == [NarrowHeads]
    for other in (loaded, copy.deepcopy(small)):
        assert torch.equal(given(other, LONG), given(small, LONG))


def test_tables_that_are_given_are_narrowed_before_each_call(tmp_path):
    network, names = made(Tokens), ("layers.0.o", "layers.1.o")
    structure, factors = solved(network, *names)
    records = {name: one.at_size(4) for name, one in factors.items()}
    small = ds.compress(network, records, example=structure)
    assert small.layers[0].kept_rotations.extra_repr() == "cos: 4 of 8, sin: 4 of 8"
    assert not any("kept" in name for name in small.state_dict())
    twin = network
    for record in records.values():
        twin = by_hand(twin, record)
    assert far(given(small, LONG), given(twin, LONG)) < 1e-5
    ds.save(small, tmp_path)
    loaded = ds.load(tmp_path, lambda: made(Tokens))
    written = io.BytesIO()
    torch.save(small, written)
    written.seek(0)
    for other in (loaded, copy.deepcopy(small), torch.load(written, weights_only=False)):
        assert torch.equal(given(other, LONG), given(small, LONG))


def test_heads_are_narrowed_once_more(tmp_path):
    for kind, names in ((Tokens, ("layers.0.o", "layers.1.o")), (TwoBlocks, ("first.attention.o",))):
        small = narrowed(narrowed(made(kind), 6, *names), 2, *names)
        ds.save(small, tmp_path / kind.__name__)
        assert torch.equal(
            given(ds.load(tmp_path / kind.__name__, lambda kind=kind: made(kind)), LONG), given(small, LONG)
        )
    assert len(small.compression_plan.steps) == 2


@pytest.mark.parametrize("names", [["first"], ["first", "second"]])
def test_of_a_module_that_several_call_each_gets_its_own(names, tmp_path):
    network, outputs = made(TwoBlocks), [f"{name}.attention.o" for name in names]
    structure, factors = solved(network, *outputs)
    records = {name: one.at_size(4) for name, one in factors.items()}
    small = ds.compress(network, records, example=structure)
    assert len(small.first.attention.rope.turns) == 2
    assert len(small.second.attention.rope.turns) == (2 if len(names) == 2 else 4)
    twin = network
    for record in records.values():
        twin = by_hand(twin, record)
    assert far(given(small, LONG), given(twin, LONG)) < 1e-5
    ds.save(small, tmp_path)
    assert torch.equal(given(ds.load(tmp_path, lambda: made(TwoBlocks)), LONG), given(small, LONG))


def test_layers_of_it_are_compressed_afterwards(tmp_path):
    small = narrowed(made(Tokens), 4, "layers.0.o")
    statistics = ds.accumulate(small, [tokens()], ds.watch(small, ["layers.0.q", "layers.1.o"]))
    smaller = ds.compress(small, {name: ds.dalr(layer).at_rank(2) for name, layer in statistics.items()})
    ds.save(smaller, tmp_path)
    assert torch.equal(given(ds.load(tmp_path, lambda: made(Tokens)), LONG), given(smaller, LONG))


def test_it_is_exported():
    small = narrowed(made(Tokens), 4, "layers.0.o")
    exported = torch.export.export(small, (tokens(),)).module()
    assert torch.allclose(exported(tokens()), given(small), atol=1e-5)


def test_less_is_lost_the_more_pairs_stay():
    network = block(Rotary)
    errors = [far(given(narrowed(network, size)), given(network)) for size in (2, 4, 6, 8)]
    assert errors[-1] < 1e-5
    assert errors == sorted(errors, reverse=True)


def test_what_is_refused():
    with pytest.raises(UnsupportedLayerError, match=r"layer 'attention\.o': .* have their size written into them"):
        narrowed(block(Sections), 2)
    with pytest.raises(RankError, match="must be even, as pairs that positions rotate stay together, got 3"):
        narrowed(block(Rotary), 3)
    tables = made(Tokens)
    tables.layers[0].kept_rotations = torch.nn.Identity().eval()
    with pytest.raises(UnsupportedLayerError, match=r"layer 'layers\.0': has a 'kept_rotations' of its own: rename it"):
        narrowed(tables, 4, "layers.0.o")


TABLE = {"module": "attention", "name": "turns", "argument": False, "axis": -1, "before": 4, "kept": [1, 3]}


def rotary_plan(**changed):
    return SurgeryPlan.from_plain([{**PLAIN, "before": 8, "size": 4, "attributes": [["attention", "head_dim", 4]],
                                    "tables": [{**TABLE, **changed}]}])  # fmt: skip


def test_a_plan_is_read_and_applied():
    network, plan = block(Rotary), rotary_plan()
    (step,) = plan.to_plain()
    assert SurgeryPlan.from_plain([step]) == plan
    turns = network.attention.turns
    plan.apply(network)
    assert torch.equal(network.attention.turns, turns[[1, 3]])
    assert given(network).shape == (20, 7, 12)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kept": [1, 4]}, "must keep some of its entries along axis -1 or -2, got (1, 4) of 4"),
        ({"kept": []}, "must keep some of its entries"),
        ({"kept": ["1"]}, "must keep some of its entries"),
        ({"axis": 0}, "along 0"),
        ({"before": True}, "must keep some of its entries"),
        ({"name": 3}, "a table is an argument or attribute of a module"),
        ({"argument": 1}, "a table is an argument or attribute of a module"),
        ({"before": 5}, "its 'turns' must be a tensor of 5 entries along axis -1, and is not"),
        ({"name": "forward"}, "its 'forward' must be a tensor of 4 entries"),
        ({"module": "attention.rope"}, "there is no layer 'attention.rope'"),
        ({"other": 1}, "cannot be read"),
    ],
)
def test_a_plan_from_a_damaged_file_is_refused(changed, message):
    with pytest.raises((InvalidInputError, UnsupportedLayerError, LayerNotFoundError), match=re.escape(message)):
        rotary_plan(**changed).apply(block(Rotary))


SMALL = {"vocab_size": 99, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
GROUPED = {**SMALL, "num_key_value_heads": 2}
NO_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPTJ = {
    "vocab_size": 99,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 4,
    "rotary_dim": 8,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
DECODER = "layers.{}.self_attn.o_proj"
MODELS = {
    "llama": (lambda t: t.LlamaModel(t.LlamaConfig(**GROUPED)), DECODER, 12, False),
    "mistral": (lambda t: t.MistralModel(t.MistralConfig(**GROUPED)), DECODER, 12, False),
    "qwen2": (lambda t: t.Qwen2Model(t.Qwen2Config(**GROUPED)), DECODER, 12, False),
    "phi": (lambda t: t.PhiModel(t.PhiConfig(**GROUPED)), "layers.{}.self_attn.dense", 6, False),
    "cohere": (lambda t: t.CohereModel(t.CohereConfig(**GROUPED, **NO_TOKENS)), DECODER, 12, True),
    "glm": (lambda t: t.GlmModel(t.GlmConfig(**GROUPED, **NO_TOKENS, head_dim=12)), DECODER, 6, True),
    "gptj": (lambda t: t.GPTJModel(t.GPTJConfig(**GPTJ)), "h.{}.attn.out_proj", 8, True),
    "gemma": (lambda t: t.GemmaModel(t.GemmaConfig(**GROUPED, head_dim=12)), DECODER, 12, False),
    "stablelm": (lambda t: t.StableLmModel(t.StableLmConfig(**{**GROUPED, "hidden_size": 64})), DECODER, 4, False),
    "starcoder2": (lambda t: t.Starcoder2Model(t.Starcoder2Config(**GROUPED, **NO_TOKENS)), DECODER, 12, False),
    "olmo": (lambda t: t.OlmoModel(t.OlmoConfig(**GROUPED, **NO_TOKENS)), DECODER, 12, False),
    "esm": (
        lambda t: t.EsmModel(t.EsmConfig(**SMALL, position_embedding_type="rotary", pad_token_id=0, mask_token_id=3)),
        "encoder.layer.{}.attention.output.dense", 12, False,
    ),
}  # fmt: skip


def of_transformers(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[name][0](transformers).eval()


def words(samples, length):
    return {"input_ids": torch.randint(4, 90, (samples, length), generator=torch.Generator().manual_seed(length))}


def last_state(model, batch):
    with torch.no_grad():
        return model(**batch).last_hidden_state


@pytest.mark.parametrize("name", MODELS)
def test_rotary_attention_of_transformers(name, tmp_path):
    model, batch, (_, pattern, rotated, interleaved) = of_transformers(name), words(24, 9), MODELS[name]
    structure, factors = solved(model, *(pattern.format(number) for number in range(2)), batch=batch)
    assert {(one.layout.rotated, one.layout.interleaved) for one in factors.values()} == {(rotated, interleaved)}
    long, errors, whole = words(2, 60), [], next(iter(factors.values())).layout.size
    for size in (4, whole):
        records = {layer: one.at_size(size) for layer, one in factors.items()}
        small, twin = ds.compress(model, records, example=structure), model
        for record in records.values():
            twin = by_hand(twin, record)
        assert far(last_state(small, long), last_state(twin, long)) < 1e-4
        errors.append(far(last_state(small, batch), last_state(model, batch)))
    assert errors[1] < 1e-5 < errors[0]
    small = ds.compress(model, {layer: one.at_size(4) for layer, one in factors.items()}, example=structure)
    ds.save(small, tmp_path)
    assert torch.equal(last_state(ds.load(tmp_path, lambda: of_transformers(name)), long), last_state(small, long))


def test_words_are_written_one_by_one_with_a_cache():
    model = made(lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED)))
    structure = Structure.of(model, words(8, 9))
    layouts = [structure.heads_of(f"model.layers.{number}.self_attn.o_proj") for number in range(2)]
    statistics = ds.accumulate(model, [words(8, 9)], ds.watch(model, [name for one in layouts for name in one.layers]))
    records = {one.output: head_factors(statistics, one).at_size(6) for one in layouts}
    small = ds.compress(model, records, example=structure)
    assert isinstance(small.model.layers[0].self_attn.kept_rotations, KeptRotations)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached, plain = (small.generate(**words(2, 5), **options, use_cache=cache) for cache in (True, False))
    assert cached.shape == (2, 11)
    assert torch.equal(cached, plain)


def test_normalised_queries_and_keys_of_transformers_are_refused():
    model = made(lambda: transformers.Qwen3Model(transformers.Qwen3Config(**GROUPED, head_dim=12)))
    with pytest.raises(UnsupportedLayerError, match="rotated otherwise, normalised"):
        Structure.of(model, words(4, 9)).heads_of("layers.0.self_attn.o_proj")
