"""The sentence encoder: its sentences, what a missing package says, and the table on a tiny encoder."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

from dalr_stream.errors import ConfigError

FOLDER = Path(__file__).parents[2] / "pipelines" / "sentences"


@pytest.fixture
def pipeline(monkeypatch):
    """The modules of the pipeline, by their names."""
    for folder in (FOLDER.parent / "shared", FOLDER):
        monkeypatch.syspath_prepend(str(folder))
    parts = ("network", "data", "budgets", "in_turn", "recovered", "attention")
    names = [f"sentences_{part}" for part in parts]
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        sys.modules.pop(name, None)


def test_no_sentence_is_in_both_parts_and_the_seed_decides_which(pipeline):
    data = pipeline["sentences_data"]
    target, unseen = data.target(seed=0), data.unseen(seed=0)
    assert target.samples == unseen.samples == 400
    assert not set(target.sentences) & set(unseen.sentences)
    assert target.sentences == data.target(seed=0).sentences != data.target(seed=1).sentences
    assert len(target) == 20
    assert all(40 <= len(sentence) <= 300 for sentence in target.sentences)


def test_a_missing_package_is_one_line(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline["sentences_network"], "PACKAGE", "no_such_package")
    with pytest.raises(ConfigError, match=r"no_such_package is not installed: pip install 'dalr_stream\[sentences\]'"):
        pipeline["sentences_network"].build()


def test_embeddings_are_means_over_tokens_of_length_one(pipeline):
    hidden = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]]])
    found = pipeline["sentences_network"].embeddings(hidden, torch.tensor([[1, 1, 0]]))
    assert torch.allclose(found, torch.tensor([[0.6, 0.8]]))
    near = pipeline["sentences_budgets"].nearest(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]))
    assert near.tolist() == [1, 0, 1]


@pytest.fixture
def encoder():
    """A tiny encoder, and batches for it."""
    transformers = pytest.importorskip("transformers")
    settings = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    torch.manual_seed(0)
    model = transformers.BertModel(settings).eval()
    tokens = torch.randint(1, 50, (40, 6))
    mask = (torch.arange(6) < torch.randint(2, 7, (40, 1))).long()
    batches = [{"input_ids": tokens[i : i + 8], "attention_mask": mask[i : i + 8]} for i in range(0, 40, 8)]
    return model, batches


def test_the_table_of_a_tiny_encoder(pipeline, monkeypatch, encoder):
    (model, batches), budgets = encoder, pipeline["sentences_budgets"]
    monkeypatch.setattr(budgets, "BUDGETS", (0.5,))
    lines = list(budgets.rows(model, batches, budgets.Scores.of(model, batches)))
    cosines = [float(line.split("|")[2].split(",")[0]) for line in lines[2:] if "rank correlation" not in line]
    assert len(cosines) == 8
    assert all(0.0 < cosine <= 1.0 for cosine in cosines)


def test_the_table_layer_after_layer_of_a_tiny_encoder(pipeline, monkeypatch, encoder):
    (model, batches), in_turn = encoder, pipeline["sentences_in_turn"]
    monkeypatch.setattr(in_turn, "BUDGETS", (0.5,))
    lines = list(in_turn.rows(model, batches, pipeline["sentences_budgets"].Scores.of(model, batches)))
    cosines = [float(line.split("|")[2].split(",")[0]) for line in lines[2:]]
    assert len(cosines) == 14
    assert all(0.0 < cosine <= 1.0 for cosine in cosines)


def test_training_towards_the_originals_outputs_brings_a_tiny_encoder_nearer(pipeline, monkeypatch, encoder):
    (model, batches), script = encoder, pipeline["sentences_recovered"]
    monkeypatch.setattr(script, "BUDGETS", (0.1,))
    monkeypatch.setattr(script, "RATE", 1e-3)
    many = type("Sentences", (list,), {"samples": 40})(batches)
    lines = list(script.rows(model, many, pipeline["sentences_budgets"].Scores.of(model, batches)))
    assert [line.count("|") for line in lines] == [3] * 4
    (small,) = script.towards_stream(model, batches, (0.1,))
    distance = script.ds.OutputDistance(model, batches, rows=script.ROWS)
    assert distance(script.recovered(model, small, batches)) < distance(small)


def test_the_table_of_a_tiny_encoders_attention(pipeline, monkeypatch, encoder):
    (model, batches), attention = encoder, pipeline["sentences_attention"]
    monkeypatch.setattr(attention, "BUDGETS", (0.5,))
    lines = list(attention.rows(model, batches, pipeline["sentences_budgets"].Scores.of(model, batches)))
    cosines = [float(line.split("|")[2].split(",")[0]) for line in lines[2:]]
    assert len(cosines) == 9
    assert all(0.0 < cosine <= 1.0 for cosine in cosines)
    assert lines[-1].endswith("(50.0%) |")
