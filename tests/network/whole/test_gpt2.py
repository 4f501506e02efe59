"""A real GPT-2 block of transformers, whose layers are Conv1D: watched, compressed, and exact at full rank."""

import pytest
import torch

import dalr_stream as ds
from dalr_stream.engine.from_store import accumulate_stored

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::dalr_stream.errors.ParameterIncreaseWarning")  # full rank, on purpose
LAYERS = ["*.c_attn", "*.c_proj", "*.c_fc"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=16, n_positions=12, vocab_size=40, attn_implementation="eager"
    )
    return transformers.GPT2LMHeadModel(config).eval()


def batches():
    drawn = torch.randint(40, (30, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(drawn)
    mask[:, 6:] = 0
    return [{"input_ids": ids, "attention_mask": m} for ids, m in zip(drawn.split(11), mask.split(11), strict=True)]


def test_every_projection_is_found_watched_and_exact_at_full_rank(model, tmp_path):
    layers = ds.network.select_layers(model, LAYERS)
    names = [layer.name.removeprefix("transformer.h.0.") for layer in layers]
    assert names == ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    assert {layer.kind for layer in layers} == {"Conv1D"}
    rule = ds.RowRule(mask="attention_mask")
    store = ds.capture(model, batches(), layers, tmp_path, domain="text", rows=rule)
    assert {store.rows("text", layer.name).rows for layer in layers} == {30 * 6}
    moments = accumulate_stored(tmp_path, domain="text")
    solved = {name: ds.dalr(*ds.network.weights_of(model, name), moments[name]) for name in moments}
    whole = ds.compress(model, {name: factors.at_rank(factors.max_rank) for name, factors in solved.items()})
    small = ds.compress(model, {name: factors.at_rank(3) for name, factors in solved.items()})
    with torch.no_grad():
        expected, found, rough = (one(**batches()[0]).logits for one in (model, whole, small))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(rough, expected, atol=1e-5)
    pair = small.transformer.h[0].attn.c_attn
    assert [tuple(layer.weight.shape) for layer in pair] == [(3, 16), (48, 3)]


def test_the_tied_head_is_refused_by_both_names(model):
    (head,) = ds.network.select_layers(model, ["lm_head"])
    record = ds.truncated_svd(*ds.network.weights_of(model, head.name)).at_rank(2)
    with pytest.raises(ds.DalrStreamError, match=r"'lm_head.weight' is shared with 'transformer.wte.weight'"):
        ds.compress(model, {"lm_head": record})


def test_channels_are_found_although_the_model_caches(model):
    assert model.config.use_cache
    group = ds.network.Structure.of(model, batches()[0]).group_of("transformer.h.0.mlp.c_fc")
    assert [reader.span.layer for reader in group.readers] == ["transformer.h.0.mlp.c_proj"]
    record = ds.spectral(ds.Moments.of(torch.eye(64).double().numpy())).at_size(5)
    small = ds.compress(model, {"transformer.h.0.mlp.c_fc": record}, example=batches()[0])
    assert small.transformer.h[0].mlp.c_fc.weight.shape == (5, 16)
    assert model.config.use_cache
    assert small.config.use_cache
