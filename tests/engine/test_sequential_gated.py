"""A gated feed-forward layer in turn: gate, up and down lose the same nodes, and down is solved towards the stream."""

import numpy as np
import pytest
import torch
from torch import nn

import dalr_stream as ds

EVERY = ds.Folding(ds.HoldoutRule(0.0))
BLOCKS, WIDTH, NODES = 2, 8, 20


class Gated(nn.Module):
    """Pre-norm blocks as in decoders: x + down(silu(gate(n)) * up(n)), n = norm(x), without biases."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 3)
        self.norm = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(BLOCKS))
        self.gate, self.up = (
            nn.ModuleList(nn.Linear(WIDTH, NODES, bias=False) for _ in range(BLOCKS)) for _ in range(2)
        )
        self.down = nn.ModuleList(nn.Linear(NODES, WIDTH, bias=False) for _ in range(BLOCKS))

    def forward(self, x):
        x = self.stem(x)
        for norm, gate, up, down in zip(self.norm, self.gate, self.up, self.down, strict=True):
            inner = norm(x)
            x = x + down(nn.functional.silu(gate(inner)) * up(inner))
        return self.head(x)


@pytest.fixture(scope="module")
def known():
    torch.manual_seed(0)
    model = Gated().double().eval()
    batches = list(torch.randn(400, 6, dtype=torch.float64).split(50))
    names = [f"{part}.{number}" for number in range(BLOCKS) for part in ("gate", "up", "down")]
    layers = ds.watch(model, names, example=batches[0], gradients=names)
    return model, batches, ds.accumulate(model, batches, layers, folding=EVERY)


def compressed(known, method, size, target):
    model, batches, statistics = known
    names = [f"gate.{number}" for number in range(BLOCKS)]
    choices = {name: ds.LayerChoice(method, size, layer=statistics[name], restore_ridge=1e-6) for name in names}
    return ds.compress_sequentially(model, batches, choices, target=target, folding=EVERY)


@pytest.mark.parametrize("method", ["spectral", "spectral_weighted"])
@pytest.mark.parametrize("target", ["outputs", "stream"])
def test_gate_and_up_keep_the_same_nodes_and_down_reads_them(known, method, target):
    model, _, statistics = known
    found = compressed(known, method, 7, target)
    small = found.network
    for number in range(BLOCKS):
        assert (small.gate[number].out_features, small.up[number].out_features) == (7, 7)
        assert small.down[number].in_features == 7
        rows = [
            [int(np.flatnonzero((whole.weight == row).all(1).numpy())[0]) for row in part.weight]
            for whole, part in ((model.gate[number], small.gate[number]), (model.up[number], small.up[number]))
        ]
        assert rows[0] == rows[1]
    first = ds.solve(statistics["gate.0"], method).at_size(7).kept.tolist()
    assert [
        int(np.flatnonzero((model.gate[0].weight == row).all(1).numpy())[0]) for row in small.gate[0].weight
    ] == first
    assert found.layers["gate.1"].target == target


def test_down_makes_up_for_what_the_stream_has_lost(known):
    model, batches, _ = known

    def stream_error(small):
        with torch.no_grad():
            pairs = [[_stream(of, batch) for of in (model, small)] for batch in batches]
        return sum(float((one - other).square().sum()) for one, other in pairs)

    errors = {
        target: stream_error(compressed(known, "spectral", 7, target).network) for target in ("outputs", "stream")
    }
    assert errors["stream"] < errors["outputs"]


def _stream(model, x):
    kept = []
    handle = model.head.register_forward_pre_hook(lambda _, arguments: kept.append(arguments[0]))
    model(x)
    handle.remove()
    return kept[0]


def test_with_all_nodes_the_network_is_the_original(known):
    model, batches, _ = known
    small = compressed(known, "spectral", NODES, "stream").network
    torch.testing.assert_close(small(batches[0]), model(batches[0]), rtol=1e-5, atol=1e-6)
