"""The function of docs/how-to/load-elsewhere.md, which users copy: it loads what this package saved, without it."""

from pathlib import Path

import pytest
import torch

import dalr_stream as ds

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "load-elsewhere.md"


def load_plain(model, file):
    text = PAGE.read_text(encoding="utf-8")
    names = {}
    exec(text[text.index("from safetensors.torch") : text.index("plain = load_plain(")], names)  # noqa: S102
    return names["load_plain"](model, file)


@pytest.mark.parametrize("untied", [False, True], ids=["tied", "untied"])
def test_a_decoder_with_tied_weights_and_gpt2s_own_layers(tmp_path, untied):
    transformers = pytest.importorskip("transformers")
    settings = {"vocab_size": 40, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}

    def build():
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(bos_token_id=0, eos_token_id=0, **settings)).eval()

    model, batches = build(), [torch.randint(40, (8, 12)) for _ in range(4)]
    if untied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    layers = ds.watch(model, ["transformer.h.*", *(["lm_head"] if untied else [])], example=batches[0])
    statistics = ds.accumulate(model, batches, layers)
    pair = "lm_head" if untied else "transformer.h.0.attn.c_attn"
    nodes = ds.spectral(statistics["transformer.h.0.mlp.c_fc"]).at_size(40)
    solved = {"transformer.h.0.mlp.c_fc": nodes, pair: ds.dalr(statistics[pair]).at_rank(5)}
    small = ds.compress(model, solved, example=layers.structure)
    ds.save(small, tmp_path / "small")
    plain = load_plain(build(), tmp_path / "small" / "model.safetensors")
    assert torch.equal(plain(batches[0]).logits, small(batches[0]).logits)
    assert torch.equal(*(one.generate(batches[0], max_new_tokens=3, do_sample=False) for one in (plain, small)))
