"""What a forward pass holds, beside tensors whose sizes are known."""

import torch
from torch import nn

from dalr_stream.network.measure.memory import forward_memory, weights_bytes

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


def test_parameters_and_buffers():
    assert weights_bytes(nn.Sequential(nn.Linear(8, 2), nn.BatchNorm1d(2))) == FLOAT * (16 + 2 + 4 * 2) + 8
