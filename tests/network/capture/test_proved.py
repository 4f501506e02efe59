"""What is proved once for several passes: on a few samples, where they show as much as the whole batch."""

import pytest
import torch
from torch import nn

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.proofs.proved import FEW, prove
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.spec import select_layers

SAMPLES = 2 * FEW


class Tokens(nn.Module):
    """Remembers how many samples each forward pass had; leaking lets padding into the words beside it."""

    def __init__(self, *, leaks=False):
        super().__init__()
        self.embedding, self.fc = nn.Embedding(9, 6), nn.Linear(6, 4)
        self.leaks, self.seen = leaks, []

    def forward(self, tokens, mask):  # noqa: ARG002  # given as transformers are
        self.seen.append(len(tokens))
        x = self.embedding(tokens)
        return self.fc(x.cumsum(1).flip(1) if self.leaks else x)


class Routed(nn.Module):
    """Samples with a large value go another way: none of the first ones does."""

    def __init__(self):
        super().__init__()
        self.one, self.other, self.seen = nn.Linear(6, 4), nn.Linear(6, 4), []

    def forward(self, x):
        self.seen.append(len(x))
        return self.one(x) + (self.other(x) if bool(x.max() > 50) else 0.0)


def batch(*, padded):
    mask = torch.ones(SAMPLES, 5, dtype=torch.bool)
    mask[list(padded), 3:] = False
    tokens = torch.randint(1, 9, (SAMPLES, 5), generator=torch.Generator().manual_seed(0))
    return {"tokens": tokens * mask, "mask": mask}


def orders(model, batches, mask=None):
    layers = select_layers(model.eval(), ["*"])
    return prove(model, batches, [layer for layer in layers if layer.name != "embedding"], RowRule(mask=mask))


def test_a_few_samples_show_it():
    model = Tokens()
    assert set(orders(model, [batch(padded=[0])], "mask")) == {"fc"}
    assert set(model.seen) == {FEW}


@pytest.mark.parametrize("padded", [0, SAMPLES - 1])
def test_padding_is_proved_wherever_it_stands(padded):
    """In the first samples, or in others alone: then all of them are taken."""
    with pytest.raises(InvalidInputError, match="padding"):
        orders(Tokens(leaks=True), [batch(padded=[padded])], "mask")
    model = Tokens()
    orders(model, [batch(padded=[padded])], "mask")
    assert set(model.seen) == {FEW if padded < FEW else SAMPLES}


def test_a_layer_that_the_first_samples_do_not_reach_is_proved_on_all():
    x = torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(0))
    x[-1] += 100.0
    assert set(orders(Routed(), [x])) == {"one", "other"}
