"""Networks of the transformers library: which rows count, what compression gives, and how it is kept and read back."""

import copy
import json
import pickle

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForSequenceClassification

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.errors import FingerprintMismatchError, InvalidInputError, StoreDamagedError, StoreNotFoundError
from dalr_stream.network.saved.pretrained import load_pretrained
from dalr_stream.network.saved.weights import load_weights, save_weights
from dalr_stream.network.surgery.compress import PLAN_ATTRIBUTE
from dalr_stream.network.surgery.plan import SurgeryPlan

pytestmark = pytest.mark.filterwarnings(
    "ignore::dalr_stream.errors.ParameterIncreaseWarning"  # full rank, on purpose
)
WORDS, LENGTHS = 40, (7, 4, 1, 6)
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TOKENS = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def bert():
    return AutoModelForSequenceClassification.from_config(transformers.BertConfig(**SIZES, **TOKENS, num_labels=3))


def distilbert():
    config = transformers.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=24, vocab_size=WORDS)
    return AutoModelForSequenceClassification.from_config(config)


def gpt2():
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=16, **TOKENS)
    return AutoModelForCausalLM.from_config(config)


def llama():
    config = transformers.LlamaConfig(**SIZES, **TOKENS, num_key_value_heads=1)
    return AutoModelForCausalLM.from_config(config)


def vit():
    config = transformers.ViTConfig(**SIZES, image_size=8, patch_size=4, num_labels=3)
    return AutoModelForImageClassification.from_config(config)


BERT = ["bert.encoder.layer.*.attention.self.*", "bert.encoder.layer.*.dense"]
TEXT = {
    "bert": (bert, BERT, 12),
    "distilbert": (distilbert, ["*_lin", "*.ffn.lin?"], 12),
    "gpt2": (gpt2, ["*.c_attn", "*.c_proj", "*.c_fc"], 8),  # transformers' Conv1D
    "llama": (llama, ["*.[qkvo]_proj", "*.gate_proj", "*.up_proj", "*.down_proj"], 14),  # without biases
}
text_networks = pytest.mark.parametrize(("build", "patterns", "count"), TEXT.values(), ids=TEXT)
all_networks = pytest.mark.parametrize(
    ("build", "patterns"), [(build, patterns) for build, patterns, _ in TEXT.values()] + [(vit, ["vit.layers.*"])]
)


def seeded(build):
    """A network whose weights are large enough for its layers to matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(std=0.3)
            elif name.endswith("bias"):
                parameter.data.normal_(std=0.1)
    return model


def texts(seed, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.randint(3, WORDS, mask.shape, generator=generator) * mask, "attention_mask": mask}


def inputs_for(build, seed=0):
    if build is vit:
        return {"pixel_values": torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))}
    return texts(seed)


def factors_of(build, patterns, rows=None):
    model = seeded(build)
    layers = ds.network.select_layers(model, patterns)
    moments = accumulate_stream(model, [inputs_for(build, seed) for seed in range(8)], layers, rows=rows)
    return model, {
        layer.name: ds.dalr(*ds.network.weights_of(model, layer.name), moments[layer.name]) for layer in layers
    }


def scores(model, inputs):
    with torch.inference_mode():
        return model(**inputs).logits


@text_networks
def test_moments_under_the_mask_are_those_of_each_text_alone(build, patterns, count):
    """Padding is neither a row nor seen by what is one: the naive twin runs each text by itself, without padding."""
    model, batches = seeded(build), [texts(seed) for seed in range(3)]
    layers = ds.network.select_layers(model, patterns)
    assert len(layers) == count
    masked = accumulate_stream(model, batches, layers, rows=ds.RowRule(mask="attention_mask"))
    labelled = accumulate_stream(
        model, [(batch, torch.zeros(4)) for batch in batches], layers, rows=ds.RowRule(mask="attention_mask")
    )
    read = {layer.name: [] for layer in layers}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, arguments, name=name: read[name].append(arguments[0].flatten(0, -2).double().numpy())
        )
        for name in read
    ]
    for batch in batches:
        for ids, length in zip(batch["input_ids"], LENGTHS, strict=True):
            scores(model, {"input_ids": ids[None, :length], "attention_mask": torch.ones(1, length, dtype=torch.long)})
    for hook in hooks:
        hook.remove()
    for layer in layers:
        rows, both = np.concatenate(read[layer.name]), (masked[layer.name], masked.heldout.get(layer.name))
        moments = both[0] if both[1] is None else both[0] + both[1]
        assert moments.count == len(rows) == 3 * sum(LENGTHS)
        np.testing.assert_allclose(moments.mean, rows.mean(0), atol=2e-6)
        np.testing.assert_allclose(moments.second_moment, rows.T @ rows / len(rows), rtol=1e-5, atol=2e-6)
        assert labelled[layer.name].same_bits(masked[layer.name])


@all_networks
def test_anchored_at_full_rank_gives_what_the_network_gave(build, patterns):
    model, factors = factors_of(build, patterns)
    small = ds.compress(model, {name: found.at_rank(found.max_rank) for name, found in factors.items()})
    inputs = inputs_for(build, 99)
    expected = scores(model, inputs)
    assert torch.allclose(scores(small, inputs), expected, atol=2e-6 * float(expected.abs().max()))


@all_networks
def test_compressed_outputs_are_those_computed_by_hand_from_the_factors(build, patterns):
    """The network as it was, each layer's output replaced in a hook by up (down x) + bias of what it read."""
    model, factors = factors_of(build, patterns)
    records = {name: found.at_rank(5) for name, found in factors.items()}
    small, inputs = ds.compress(model, records), inputs_for(build, 99)
    before, found = scores(model, inputs), scores(small, inputs)
    for name, record in records.items():
        up, down, bias = (torch.tensor(part, dtype=torch.float32) for part in (record.up, record.down, record.bias))

        def by_hand(_, arguments, __, up=up, down=down, bias=bias):
            return arguments[0] @ (up @ down).T + bias

        model.get_submodule(name).register_forward_hook(by_hand)
    expected = scores(model, inputs)
    size = float(expected.abs().max())
    assert torch.allclose(found, expected, atol=1e-5 * size)
    assert float((before - expected).abs().max()) > 1e-3 * size  # rank 5 does change it


@all_networks
def test_a_compressed_network_is_loaded_from_its_own_folder(build, patterns, tmp_path):
    model, factors = factors_of(build, patterns)
    small = ds.compress(model, {name: found.at_rank(4) for name, found in factors.items()})
    ds.save(small, tmp_path / "small")
    loaded, inputs = ds.load(tmp_path / "small", build), inputs_for(build, 99)
    assert torch.equal(scores(loaded, inputs), scores(small, inputs))


@all_networks
def test_save_pretrained_of_a_compressed_network_is_loaded_with_its_plan(build, patterns, tmp_path):
    model, factors = factors_of(build, patterns)
    small = ds.compress(model, {name: found.at_rank(4) for name, found in factors.items()})
    small.save_pretrained(tmp_path, save_original_format=False)  # the names that the plan speaks of
    plan = SurgeryPlan.from_plain(json.loads(json.dumps(getattr(small, PLAN_ATTRIBUTE).to_plain())))
    config = transformers.AutoConfig.from_pretrained(tmp_path, local_files_only=True)
    loaded = type(model)._from_config(config).eval()
    plan.apply(loaded)
    load_weights(loaded, tmp_path / "model.safetensors")
    inputs = inputs_for(build, 99)
    assert torch.equal(scores(loaded, inputs), scores(small, inputs))


REFUSED = r"compressed by dalr_stream, .* dalr_stream\.save\(network, folder\), .* dalr_stream\.load\(folder, build\)"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("auto", [True, False])
@all_networks
def test_from_pretrained_refuses_a_saved_folder_and_says_how_to_load_it(build, patterns, auto, tmp_path):
    """It made random layers in place of those that were replaced."""
    model, factors = factors_of(build, patterns)
    small = ds.compress(model, {name: found.at_rank(4) for name, found in factors.items()})
    folder = ds.save(small, tmp_path / "small")
    with pytest.raises(ValueError, match=REFUSED):
        (transformers.AutoModel if auto else type(model)).from_pretrained(folder)
    loaded = ds.load(folder, lambda: type(model)(transformers.AutoConfig.from_pretrained(folder)))
    inputs = inputs_for(build, 99)
    assert torch.equal(scores(loaded, inputs), scores(small, inputs))
    again = ds.save(loaded, tmp_path / "again")
    assert (again / "config.json").read_text() == (folder / "config.json").read_text()
    assert not hasattr(loaded.config, "transformers_weights")


REFUSING = {
    "itself": lambda small, _: small,
    "a copy": lambda small, _: copy.deepcopy(small),
    "loaded": lambda small, folder: ds.load(ds.save(small, folder), bert),
    "pickled": lambda small, _: pickle.loads(pickle.dumps(small)),  # noqa: S301
    "compressed again": lambda small, _: ds.compress(small, {}),
    "a part": lambda small, _: small.bert,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("which", REFUSING.values(), ids=REFUSING)
def test_from_pretrained_refuses_what_a_compressed_network_saved_itself(which, tmp_path):
    """As trainers do for their checkpoints."""
    model, factors = factors_of(bert, BERT)
    small = which(ds.compress(model, {name: found.at_rank(4) for name, found in factors.items()}), tmp_path / "kept")
    small.save_pretrained(tmp_path / "own", max_shard_size="8KB")
    with pytest.raises(ValueError, match=REFUSED):
        type(small).from_pretrained(tmp_path / "own")
    model.save_pretrained(tmp_path / "original")
    inputs = inputs_for(bert, 99)
    assert torch.equal(scores(type(model).from_pretrained(tmp_path / "original"), inputs), scores(model, inputs))


def test_other_libraries_save_no_compressed_network_as_their_own(tmp_path):
    """What PyTorchModelHubMixin saves, its `from_pretrained` loads with random layers for those that it lacks."""

    class Net(torch.nn.Module, huggingface_hub.PyTorchModelHubMixin):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(6, 6)

        def forward(self, x):
            return self.fc(x)

    model = Net().eval()
    fc = ds.accumulate(model, [torch.randn(32, 6)], ds.watch(model, ["fc"]))["fc"]
    small = ds.compress(model, {"fc": ds.dalr(fc).at_rank(2)})
    with pytest.raises(InvalidInputError, match=REFUSED):
        small.save_pretrained(tmp_path / "own")
    assert not (tmp_path / "own").exists()
    assert ds.load(ds.save(small, tmp_path / "small"), Net).fc[0].out_features == 2
    ds.compress(model, {}).save_pretrained(tmp_path / "whole")


def test_a_network_that_was_saved_as_it_is_may_be_loaded_by_anyone(tmp_path):
    model = seeded(bert)
    folder = ds.save(model, tmp_path / "whole")
    inputs = inputs_for(bert, 99)
    assert torch.equal(scores(type(model).from_pretrained(folder), inputs), scores(model, inputs))


class TestFoldersOfSavePretrained:
    @pytest.fixture
    def folder(self, tmp_path):
        seeded(bert).save_pretrained(tmp_path, max_shard_size="8KB")
        return tmp_path

    @pytest.mark.parametrize("build", [bert, gpt2, vit])  # tied weights; names that the library changes
    @pytest.mark.parametrize("shard", ["1GB", "8KB"])
    def test_the_network_comes_back(self, build, shard, tmp_path):
        model, inputs = seeded(build), inputs_for(build)
        model.save_pretrained(tmp_path, max_shard_size=shard)
        assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "8KB")
        loaded = build().eval()
        load_pretrained(loaded, tmp_path)
        assert torch.equal(scores(loaded, inputs), scores(model, inputs))

    def test_a_folder_of_any_other_network_has_one_file(self, tmp_path):
        model = torch.nn.Linear(3, 2)
        save_weights(model, tmp_path / "model.safetensors")
        loaded = torch.nn.Linear(3, 2)
        load_pretrained(loaded, tmp_path)
        assert torch.equal(loaded.weight, model.weight)

    def test_a_folder_without_weights_is_named(self, tmp_path):
        with pytest.raises(StoreNotFoundError, match=r"no weights at '.*model\.safetensors'"):
            load_pretrained(bert(), tmp_path)

    def test_a_cut_file_and_a_lost_one_are_refused(self, folder):
        first = min(folder.glob("*.safetensors"))
        first.write_bytes(first.read_bytes()[:100])
        with pytest.raises(StoreDamagedError, match="not readable"):
            load_pretrained(bert(), folder)
        first.unlink()
        with pytest.raises(FingerprintMismatchError, match=first.name):
            load_pretrained(bert(), folder)

    def test_weights_that_are_missing_or_left_over_are_named_not_drawn_anew(self, tmp_path):
        seeded(bert).bert.save_pretrained(tmp_path)  # without its classifier
        with pytest.raises(FingerprintMismatchError, match=r"missing classifier\.bias"):
            load_pretrained(bert(), tmp_path)

    def test_weights_of_another_shape_are_refused(self, folder):
        other = transformers.BertConfig(**{**SIZES, "intermediate_size": 32}, **TOKENS, num_labels=3)
        with pytest.raises(FingerprintMismatchError, match="does not fit"):
            load_pretrained(AutoModelForSequenceClassification.from_config(other), folder)


def test_a_mask_of_one_key_must_be_there():
    model = seeded(bert)
    with pytest.raises(InvalidInputError, match="no 'mask', it has input_ids, attention_mask"):
        accumulate_stream(
            model, [(texts(0), None)], ds.network.select_layers(model, BERT), rows=ds.RowRule(mask="mask")
        )
