"""A layer that reads tokens however they are laid out, and what of its rows must come out: for tests of captures."""

import numpy as np
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.network.layers.spec import select_layers
from dalr_stream.numerics.rows.sampling import HoldoutRule

WIDTH = 6
ALL_ROWS = ds.Folding(holdout=HoldoutRule(0.0))


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def padded(samples, positions, *, left=False):
    """(N, T): the last positions of each sample, or the first, are padding; of the first sample none."""
    lengths = positions - torch.arange(samples) % (positions - 1)
    places = torch.arange(positions)
    return places >= positions - lengths[:, None] if left else places < lengths[:, None]


def moments(net, batches, layer="fc", **rule):
    layers = select_layers(net, [layer])
    return accumulate_stream(net.eval(), batches, layers, rows=ds.RowRule(**rule), folding=ALL_ROWS)[layers[0].stream]


def same_as(found, rows):
    """The moments are those of exactly these rows."""
    rows = rows.double().reshape(-1, rows.shape[-1])
    assert found.count == len(rows)
    np.testing.assert_allclose(found.mean, rows.mean(0), atol=1e-9)
    np.testing.assert_allclose(found.scatter, (rows - rows.mean(0)).T @ (rows - rows.mean(0)), atol=1e-9)


class Reads(nn.Module):
    """A layer that reads the tokens as `arrange` lays them out."""

    def __init__(self, arrange):
        super().__init__()
        self.fc, self.arrange = nn.Linear(WIDTH, 4), arrange

    def forward(self, x, attention_mask=None):  # noqa: ARG002  # what the mask is named by
        return self.fc(self.arrange(x)).sum()


ARRANGED = {
    "samples first": lambda x: x,
    "samples first, flat": lambda x: x.flatten(0, 1),
    "positions first": lambda x: x.transpose(0, 1),
    "positions first, flat": lambda x: x.transpose(0, 1).flatten(0, 1),
    "samples in the middle": lambda x: x.unflatten(1, (2, -1)).permute(1, 0, 2, 3),
    "samples in the middle, half flat": lambda x: x.unflatten(1, (2, -1)).permute(1, 0, 2, 3).flatten(0, 1),
}
