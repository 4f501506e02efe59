"""A network that keeps what it computed, as rotary embeddings do, can be trained after it was looked at."""

import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.network.capture.paired import with_rows
from dalr_stream.network.measure.accuracy import accuracy
from dalr_stream.network.measure.profile import Stopwatch, profile


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.kept = nn.Linear(4, 3), None

    def forward(self, x):
        if self.kept is None:
            self.kept = torch.ones(len(x), 1) * 2
        return self.fc(x) * self.kept[: len(x)]


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def taking_outputs(net):
    (layer,) = ds.network.select_layers(net, ["fc"], side="outputs")
    list(with_rows(net, [X], {"fc": layer}, ds.RowRule(), {}))


@pytest.mark.parametrize(
    "look",
    [
        lambda net: accuracy(net, [(X, torch.zeros(6, dtype=torch.long))]),
        lambda net: profile(net, net, X, batch_sizes=(6,), stopwatch=Stopwatch(3, 1, 1e-9)),
        taking_outputs,
    ],
    ids=["accuracy", "profile", "outputs"],
)
def test_what_a_network_keeps_can_be_trained_with(look):
    net = Lazy().eval()
    look(net)
    assert not net.kept.is_inference()
    net(X).sum().backward()
    assert net.fc.weight.grad is not None
