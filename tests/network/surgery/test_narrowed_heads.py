"""Attention with narrower heads: the network computes what the one with projected keys and values would."""

import copy
import math
import warnings

import pytest
import torch
import transformers
from attentions import (
    Attention,
    ByCount,
    ByWidth,
    FixedScale,
    Masked,
    Unscaled,
    Written,
    block,
    tokens,
)

import dalr_stream as ds
from dalr_stream.errors import InvalidInputError, NonFiniteError, UnsupportedLayerError
from dalr_stream.network import Structure, parameter_count
from dalr_stream.network.surgery.plan import NarrowHeads, SurgeryPlan
from dalr_stream.numerics import head_factors

NAME = "attention.o"


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


def solved(network, *names, batch=None, rows=None):
    """The structure, and the factors of the attentions whose output layers are named."""
    batch = tokens() if batch is None else batch
    structure = Structure.of(network, batch)
    layouts = [structure.heads_of(name) for name in names or (NAME,)]
    watched = ds.watch(network, [layer for layout in layouts for layer in layout.layers])
    statistics = ds.accumulate(network, [batch], watched, rows=rows)
    return structure, {layout.output: head_factors(statistics, layout) for layout in layouts}


def narrowed(network, size, *names, **options):
    structure, factors = solved(network, *names, **options)
    return ds.compress(network, {name: one.at_size(size) for name, one in factors.items()}, example=structure)


def given(network, batch=None):
    with torch.no_grad():
        return network(tokens() if batch is None else batch)


def far(one, other):
    return float((one - other).norm() / other.norm())


KINDS = [Attention, FixedScale, Unscaled, Masked, ByCount, ByWidth]


@torch.no_grad()
def by_hand(network, record):
    """What a block with these heads gives, in double precision, head by head."""
    network = copy.deepcopy(network).double()
    attention, x = network.attention, network.norm(tokens().double())
    layout = record.layout
    q, k, v = (getattr(attention, name)(x).numpy() for name in "qkv")
    kept = []
    for head in range(layout.heads):
        group, here = head // layout.shared, slice(head * layout.size, (head + 1) * layout.size)
        its = slice(group * layout.size, (group + 1) * layout.size)
        scores = (q[..., here] @ record.queries[group].T) @ (k[..., its] @ record.keys[group].T).swapaxes(-1, -2)
        scores = torch.from_numpy(scores) / (1 if isinstance(attention, Unscaled) else math.sqrt(layout.size))
        if isinstance(attention, Masked):
            scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -1e9)
        kept.append(scores.softmax(-1) @ torch.from_numpy(v[..., its] @ record.values[group].T))
    read = torch.cat(kept, -1) @ torch.from_numpy(record.restore).T + torch.from_numpy(record.offset)
    x = tokens().double() + attention.o(read)
    return x + network.down(torch.relu(network.up(x)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_it_is_attention_with_these_heads_written_out(kind, size):
    network = block(kind)
    structure, factors = solved(network)
    record = factors[NAME].at_size(size)
    small = ds.compress(network, {NAME: record}, example=structure)
    assert small.attention.q.out_features == 4 * size
    assert small.attention.k.out_features == small.attention.v.out_features == 2 * size
    assert small.attention.o.in_features == 4 * size
    assert network.attention.q.out_features == 16
    assert far(given(small), by_hand(network, record).float()) < 1e-5


@pytest.mark.parametrize("kind", [*KINDS, Written])
@pytest.mark.parametrize("bias", [True, False])
def test_at_full_size_nothing_changes_and_less_is_lost_the_larger_heads_are(kind, bias):
    network = block(kind, bias=bias)
    errors = [
        far(given(narrowed(network, size)), given(network)) for size in ((1, 2, 4) if kind is not Written else (4,))
    ]
    assert errors[-1] < 1e-6
    assert errors == sorted(errors, reverse=True)


def test_a_size_that_is_written_into_the_network_is_refused():
    with pytest.raises(UnsupportedLayerError, match=r"layer 'attention\.o': .* have their size written into them"):
        narrowed(block(Written), 2)


def test_the_difference_of_a_size_by_one_shows_in_the_scale():
    """Scores divided by the root of another size would be off by half a per cent, which no batch might show."""
    for kind in (Attention, FixedScale):
        network = block(kind, heads=2, groups=2, size=40)
        record = solved(network)[1][NAME].at_size(39)
        small = ds.compress(network, {NAME: record}, example=tokens())
        assert far(given(small), by_hand(network, record).float()) < 1e-5


def test_heads_that_data_leave_empty_are_removed_at_no_loss():
    network = block(Attention, groups=4)
    with torch.no_grad():
        for layer in (network.attention.q, network.attention.v):
            layer.weight[1::2] = 0.0
            layer.bias[1::2] = 0.0
    small = narrowed(network, 2)
    assert far(given(small), given(network)) < 1e-4  # the restoration's ridge


def test_a_store_has_all_that_is_needed(tmp_path):
    network = block(Attention)
    heads = Structure.of(network, tokens()).heads_of(NAME)
    statistics = ds.accumulate(network, [tokens()], ds.watch(network, heads.layers), store=tmp_path / "s")
    store = ds.open_store(tmp_path / "s")
    here, there = (
        head_factors(layers, heads).at_size(2)
        for layers in (statistics, {name: store.layer(name) for name in heads.layers})
    )
    assert (here.restore == there.restore).all()
    assert (here.queries == there.queries).all()


def test_it_is_saved_and_loaded(tmp_path):
    network = block(Attention)
    small = narrowed(network, 2)
    ds.save(small, tmp_path)
    loaded = ds.load(tmp_path, lambda: block(Attention))
    assert torch.equal(given(loaded), given(small))
    assert loaded.attention.head_dim == 2
    assert [type(step) for step in loaded.compression_plan.steps] == [NarrowHeads]


def test_a_network_whose_heads_are_narrow_is_narrowed_further_and_its_layers_compressed(tmp_path):
    network = block(Attention)
    small = narrowed(narrowed(network, 3), 2)
    statistics = ds.accumulate(small, [tokens()], ds.watch(small, ["up", "attention.o"], example=tokens()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pairs = {name: ds.dalr(statistics[name]).at_rank(2) for name in ("up", "attention.o")}
    smaller = ds.compress(small, pairs)
    ds.save(smaller, tmp_path)
    assert torch.equal(given(ds.load(tmp_path, lambda: block(Attention))), given(smaller))
    assert smaller.compressed_from.parameters == parameter_count(network)


def test_heads_beside_a_selection_and_a_pair_in_one_call():
    network = block(Attention)
    structure, factors = solved(network)
    statistics = ds.accumulate(network, [tokens()], ds.watch(network, ["up", "down"], example=tokens()))
    heads = factors[NAME].at_size(2)
    others = {"up": ds.spectral(statistics["up"]).at_size(11), "down": ds.dalr(statistics["down"]).at_rank(3)}
    together = ds.compress(network, {NAME: heads, **others}, example=structure)
    apart = ds.compress(ds.compress(network, {NAME: heads}, example=structure), others, example=tokens())
    assert torch.equal(given(together), given(apart))
    assert len(together.compression_plan.steps) == 3


def test_bad_input():
    network = block(Attention)
    structure, factors = solved(network)
    record = factors[NAME].at_size(2)
    with pytest.raises(InvalidInputError, match=r"layer 'attention\.o': which layers are narrowed .* example=batch"):
        ds.compress(network, {NAME: record})
    with pytest.raises(InvalidInputError, match=r"layer 'attention\.o': the heads are for .* solved for another layer"):
        ds.compress(block(Attention, groups=4), {NAME: record}, example=tokens())
    with pytest.raises(InvalidInputError, match="must be of the network that is compressed"):
        ds.compress(block(Attention), {NAME: record}, example=structure)
    with pytest.raises(UnsupportedLayerError, match="layer 'up': the heads of its attention cannot be narrowed"):
        ds.compress(network, {"up": record}, example=structure)
    object.__setattr__(record, "restore", record.restore * 1e300)
    with pytest.raises(NonFiniteError, match=r"layer 'attention\.o': its replacement must fit into torch\.float32"):
        ds.compress(network, {NAME: record}, example=structure)
    assert far(given(network), given(block(Attention))) == 0.0


PLAIN = {
    "step": "heads", "layer": NAME, "queries": "attention.q", "keys": "attention.k", "values": "attention.v",
    "heads": 4, "groups": 2, "before": 4, "size": 2, "bias": True, "attributes": [["attention", "head_dim", 2]],
}  # fmt: skip


def test_a_plan_is_read_and_applied():
    network = block(Attention)
    plan = SurgeryPlan.from_plain([PLAIN])
    assert plan.to_plain() == [{**PLAIN, "attributes": (("attention", "head_dim", 2),), "tables": ()}]
    plan.apply(network)
    assert network.attention.head_dim == 2
    assert given(network).shape == (20, 7, 12)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 0}, "size must be a positive integer, got 0"),
        ({"before": 5}, "does not have heads of 5 features"),
        ({"attributes": [["attention", "forward", 2]]}, "does not have a number as 'forward'"),
        ({"attributes": [["attention", "head_dim", "2"]]}, "head_dim must be a positive integer, got '2'"),
        ({"attributes": [["attention", "training", 2]]}, "does not have a number as 'training'"),
        ({"attributes": [["attention", "head_dim"]]}, "cannot be read"),
        ({"queries": 3}, "the name of a layer must be text"),
    ],
)
def test_a_plan_from_a_damaged_file_is_refused(changed, message):
    with pytest.raises((InvalidInputError, UnsupportedLayerError), match=message):
        SurgeryPlan.from_plain([{**PLAIN, **changed}]).apply(block(Attention))


SMALL = {"vocab_size": 99, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
BART = {
    "vocab_size": 99, "d_model": 48, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 32,
}  # fmt: skip
GPT2 = {"vocab_size": 99, "n_embd": 48, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
IMAGES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


MODELS = {
    "bert": (lambda t: t.BertModel(t.BertConfig(**SMALL)), "encoder.layer.{}.attention.output.dense"),
    "distilbert": (
        lambda t: t.DistilBertModel(t.DistilBertConfig(vocab_size=99, dim=48, n_layers=2, n_heads=4, hidden_dim=64)),
        "transformer.layer.{}.attention.out_lin",
    ),
    "t5": (
        lambda t: t.T5EncoderModel(t.T5Config(vocab_size=99, d_model=48, d_kv=12, num_heads=4, d_ff=64, num_layers=2)),
        "encoder.block.{}.layer.0.SelfAttention.o",
    ),
    "vit": (lambda t: t.ViTModel(t.ViTConfig(**IMAGES, image_size=8, patch_size=4)), "layers.{}.attention.o_proj"),
    "bart": (lambda t: t.BartModel(t.BartConfig(**BART)), "decoder.layers.0.{}_attn.out_proj"),
    "llama": (lambda t: t.LlamaModel(t.LlamaConfig(**SMALL, num_key_value_heads=2)), "layers.{}.self_attn.o_proj"),
    "gpt2": (lambda t: t.GPT2Model(t.GPT2Config(**GPT2)), "h.{}.attn.c_proj"),
}


def of_transformers(name):
    """A network of random weights, a batch, and the output layers of two of its attentions."""
    generator = torch.Generator().manual_seed(1)
    words, mask = torch.randint(1, 90, (24, 9), generator=generator), torch.ones(24, 9).long()
    batch = {"input_ids": words, "attention_mask": mask}
    mask[::2, 6:] = 0
    if name == "vit":
        batch = {"pixel_values": torch.randn(24, 3, 8, 8, generator=generator)}
    make, pattern = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make(transformers).eval()
    return model, batch, [pattern.format(part) for part in (("self", "encoder") if name == "bart" else range(2))]


def last_state(model, batch):
    with torch.no_grad():
        return model(**batch).last_hidden_state[:, :6]


@pytest.mark.parametrize("name", ["bert", "distilbert", "t5", "vit", "bart"])
def test_attention_of_transformers(name, tmp_path):
    model, batch, layers = of_transformers(name)
    rows = ds.RowRule(mask="attention_mask") if "attention_mask" in batch and name != "bart" else None
    structure, factors = solved(model, *layers, batch=batch, rows=rows)
    whole = last_state(model, batch)
    errors = []
    for size in (1, 6, 11, 12):
        replacements = {layer: one.at_size(size) for layer, one in factors.items()}
        small = ds.compress(model, replacements, example=structure)
        errors.append(far(last_state(small, batch), whole))
    assert errors[-1] < 1e-5
    assert errors == sorted(errors, reverse=True)
    ds.save(ds.compress(model, {layer: one.at_size(6) for layer, one in factors.items()}, example=structure), tmp_path)
    loaded = ds.load(tmp_path, lambda: of_transformers(name)[0])
    assert far(last_state(loaded, batch), whole) == pytest.approx(errors[1], rel=1e-3)


def test_what_is_fused_is_refused():
    model, batch, layers = of_transformers("gpt2")
    with pytest.raises(UnsupportedLayerError, match=r"'h\.0\.attn\.c_attn' before it"):
        Structure.of(model, batch).heads_of(layers[0])
