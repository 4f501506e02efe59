"""Batches of named inputs, with labels and without: wherever a batch is taken, its inputs are found the same way."""

from collections import UserDict
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.engine.estimate import estimate
from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.batches import samples_in
from dalr_stream.network.measure.accuracy import accuracy
from dalr_stream.streaming.folding import Folding


class Named(nn.Module):
    """Takes its inputs by name, and gives an object with logits, as transformers' networks do."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, tokens, attention_mask=None):
        kept = tokens if attention_mask is None else tokens * attention_mask[..., None]
        return SimpleNamespace(logits=self.fc(kept).sum(dim=1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Named().eval()


def inputs(samples=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(samples, 5, dtype=torch.long)
    mask[:, 3:] = 0
    return {"tokens": torch.randn(samples, 5, 4, generator=generator), "attention_mask": mask}


def answers(model, batch):
    with torch.inference_mode():
        return model(**batch).logits.argmax(dim=1)


MASKED = ds.RowRule(mask="attention_mask")


def test_labels_change_no_moments(model):
    layers = ds.network.select_layers(model, ["fc"])
    plain, pairs = [inputs()], [(inputs(), torch.zeros(6))]
    alone, beside = (accumulate_stream(model, batches, layers, rows=MASKED)["fc"] for batches in (plain, pairs))
    assert alone.same_bits(beside)
    assert samples_in(pairs[0]) == 6


def test_a_capture_goes_on_whether_the_loader_gives_labels_or_not(model, tmp_path):
    layers = ds.network.select_layers(model, ["fc"])
    plain = [inputs(seed=seed) for seed in range(3)]
    ds.capture(model, plain, layers, tmp_path / "s.zarr", domain="target", rows=MASKED)
    pairs = [(batch, torch.zeros(6)) for batch in plain]
    store = ds.capture(model, pairs, layers, tmp_path / "s.zarr", domain="target", rows=MASKED)
    assert store.rows("target", "fc").rows == 3 * 6 * 3


def test_the_cost_is_told_from_a_batch_of_named_inputs(model):
    layers = ds.network.select_layers(model, ["fc"])
    pairs = [(inputs(), torch.zeros(6))] * 4
    alone = estimate(model, {"target": [inputs()] * 4}, layers, Folding(), rows=MASKED)
    assert estimate(model, {"target": pairs}, layers, Folding(), rows=MASKED) == alone


@pytest.mark.parametrize("kind", [dict, UserDict])  # transformers' BatchEncoding is a UserDict
def test_accuracy_of_named_inputs_and_of_labels_among_them(model, kind):
    right = answers(model, inputs())
    half = torch.where(torch.arange(6) < 3, right, (right + 1) % 3)
    assert accuracy(model, [(kind(inputs()), right)]) == 1.0
    assert accuracy(model, [(kind(inputs()), half)]) == 0.5
    assert accuracy(model, [kind({**inputs(), "labels": half})]) == 0.5


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (inputs(), r"must be \(inputs, labels\) pairs or mappings with 'labels', got a dict"),
        (("text", torch.zeros(6)), "first member is one of these; got str"),
        ((inputs(), torch.zeros(6, 5)), r"6 samples need as many class numbers as labels, got \(6, 5\)"),
    ],
)
def test_batches_that_cannot_be_scored_are_named(model, batch, said):
    with pytest.raises(InvalidInputError, match=said):
        accuracy(model, [batch])


@pytest.mark.parametrize(
    ("outputs", "said"),
    [((1, 2), "it gave a tuple"), (torch.zeros(2, 5, 3), r"it gave \(2, 5, 3\)"), (SimpleNamespace(), "SimpleNamesp")],
)
def test_outputs_without_scores_are_named(outputs, said):
    class Gives(nn.Module):
        def forward(self, _):
            return outputs

    with pytest.raises(InvalidInputError, match=said):
        accuracy(Gives().eval(), [(torch.zeros(2, 3), torch.zeros(2))])
