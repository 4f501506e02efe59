"""What a forward pass holds, beside tensors whose sizes are known."""

import torch
from torch import nn

from dalr_stream.network.capture.gradient_rule import GradientRule
from dalr_stream.network.capture.gradients.taking import there_and_back
from dalr_stream.network.layers.spec import select_layers
from dalr_stream.network.measure.memory import forward_memory, memory_of, weights_bytes

FLOAT = 4


def test_a_chain_holds_what_a_layer_reads_and_gives_at_most():
    network = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 64), nn.Linear(64, 4)).eval()
    held = forward_memory(network, torch.zeros(5, 8))
    assert held.peak_bytes == 5 * (32 + 64) * FLOAT
    assert held.total_bytes == 5 * (32 + 64 + 4) * FLOAT


def test_views_and_what_is_written_in_place_count_once():
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(inplace=True), nn.Flatten(), nn.Unflatten(1, (4, 8))).eval()
    assert forward_memory(network, torch.zeros(5, 8)).peak_bytes == 5 * 32 * FLOAT


class Kept(nn.Module):
    """A stream that is kept to the end, and a batch by name."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, y):
        stream = self.first(x)
        return stream + self.second(stream) * y


def test_what_is_kept_to_the_end_counts_to_the_end():
    held = forward_memory(Kept().eval(), {"x": torch.zeros(3, 8), "y": torch.ones(3, 8)})
    assert held.peak_bytes == 3 * 3 * 8 * FLOAT  # the stream, the second's output, and that times y


def test_the_way_back_holds_what_it_needs_of_the_way_there():
    """Going back, the first ReLU's output is kept while the gradient by it and by what it read are there."""
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    layers = select_layers(network, ["0"], side="gradients")
    x = torch.zeros(5, 8)
    held = memory_of(network, x, lambda: there_and_back(network, layers, GradientRule(metric="values"), x, 5))
    assert held.peak_bytes >= 5 * 3 * 32 * FLOAT > forward_memory(network, x).peak_bytes


def test_parameters_and_buffers():
    assert weights_bytes(nn.Sequential(nn.Linear(8, 2), nn.BatchNorm1d(2))) == FLOAT * (16 + 2 + 4 * 2) + 8
