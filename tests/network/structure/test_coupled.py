"""The walk over the graph of operations: Torch-Pruning's own where that ends, and an end where that has none."""

import pytest
import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.structure.coupled import MOST_ARRIVALS, coupled_with
from dalr_stream.network.structure.graph import Structure
from dalr_stream.numerics.statistics.channels import ChannelSpan

TOKENS = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))


class Rotated(nn.Module):
    """Attention with rotated queries and keys, several queries for each key, and a gated block after it."""

    def __init__(self, heads=4, shared=2):
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.shared = heads, shared
        self.q, self.k, self.v = nn.Linear(16, 4 * heads), nn.Linear(16, 4 * shared), nn.Linear(16, 4 * shared)
        self.o, self.gate, self.up, self.down = (
            nn.Linear(16, 16),
            *(nn.Linear(16, 24) for _ in range(2)),
            nn.Linear(24, 16),
        )
        self.eval()

    def forward(self, x):
        q, k, v = (part(x).unflatten(-1, (-1, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        k, v = (one[:, :, None].expand(-1, -1, self.heads // self.shared, -1, -1).reshape(q.shape) for one in (k, v))
        scores = self.rotated(q) @ self.rotated(k).transpose(2, 3)
        x = x + self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + self.down(functional.silu(self.gate(x)) * self.up(x))

    def rotated(self, x):
        angles = torch.arange(x.shape[2])[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1])
        turned = torch.cat([-x[..., 2:], x[..., :2]], -1)
        return x * angles.cos() + turned * angles.sin()


@pytest.mark.parametrize("layer", ["q", "k", "v"])
@pytest.mark.parametrize("shared", [1, 2, 4])
def test_rotated_attention_is_refused_and_the_walk_ends(layer, shared):
    with pytest.raises(UnsupportedLayerError, match=f"layer '{layer}': its channels cannot be pruned: (?!finding)"):
        Structure.of(Rotated(shared=shared), TOKENS).group_of(layer)


def test_the_gated_block_beside_it_is_found():
    found = Structure.of(Rotated(), TOKENS).group_of("gate")
    assert found.producers == ("gate", "up")
    assert [reader.span.layer for reader in found.readers] == ["down"]


class Split(nn.Module):
    """Queries, keys and values by one layer, which is split for attention; and a layer in the middle."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.o = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.qkv(x).split(16, -1)
        return self.o(functional.scaled_dot_product_attention(q, k, v))


def test_a_layer_that_is_split_for_attention_says_so_in_words():
    with pytest.raises(
        UnsupportedLayerError, match="'o' holds them in another order, or not all of them: they are spl"
    ):
        Structure.of(Split().eval(), TOKENS).group_of("qkv")


class Products(nn.Module):
    """What one layer gives is multiplied with what a wider one does, position by position."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.narrow, self.wide, self.out = nn.Linear(16, 4), nn.Linear(16, 20), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(torch.einsum("ntd,nted->nte", self.narrow(x), self.wide(x).unflatten(-1, (5, 4))))


def test_a_wider_layer_tied_to_it_is_refused_in_words():
    with pytest.raises(UnsupportedLayerError, match=r"layer 'narrow': its channels cannot be pruned: (?!finding)"):
        Structure.of(Products().eval(), TOKENS).group_of("narrow")


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(12, 4, 1)
        self.norm, self.flat = nn.BatchNorm2d(6), nn.Linear(4 * 16, 2)

    def forward(self, x):
        one = torch.relu(self.norm(self.a(x)))
        return self.flat(self.c(torch.cat([one, one + self.b(one)], 1)).flatten(1))


@pytest.mark.parametrize("layer", ["a", "b", "c"])
def test_it_is_the_walk_of_the_library(layer):
    net, images = Images().eval(), torch.randn(2, 3, 4, 4)
    graph = tp.DependencyGraph().build_dependency(net, images)
    root = net.get_submodule(layer)
    channels = root.weight.shape[0]
    prune = graph.get_pruner_of_module(root).prune_out_channels
    expected = [
        (item.dep.target.module, graph.is_out_channel_pruning_fn(item.dep.handler), item.idxs, item.root_idxs)
        for item in graph.get_pruning_group(root, prune, list(range(channels)))
    ]
    found = [
        (one.module, one.gives, list(one.channel_of), list(one.channel_of.values()))
        for one in coupled_with(graph, root, channels)
    ]
    assert found == expected


def test_many_branches_may_be_concatenated():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 3), nn.Linear(3 * (MOST_ARRIVALS - 1), 2)

        def forward(self, x):
            h = self.a(x)
            return self.b(torch.cat([torch.relu(h * number) for number in range(1, MOST_ARRIVALS)], -1))

    (reader,) = Structure.of(Branches().eval(), TOKENS).group_of("a").readers
    assert reader.span == ChannelSpan("b", repeats=MOST_ARRIVALS - 1, stride=3)
