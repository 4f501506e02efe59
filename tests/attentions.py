"""Attention in plain torch, as networks write it, and as they had better not: for tests of narrower heads."""

import math

import torch
from torch import nn
from torch.nn import functional


class Attention(nn.Module):
    """Heads of 4 dimensions on a stream 12 wide; what is done otherwise is a method of its own."""

    def __init__(self, heads=4, groups=2, size=4, *, bias=True):
        super().__init__()
        self.head_dim, self.num_heads, self.num_groups = size, heads, groups
        self.q = nn.Linear(12, heads * size, bias=bias)
        self.k, self.v = (nn.Linear(12, groups * size, bias=bias) for _ in range(2))
        self.o = nn.Linear(heads * size, 12, bias=bias)

    def parted(self, given):
        return given.unflatten(-1, (-1, self.head_dim)).transpose(-2, -3)

    def shared(self, given):
        return given.repeat_interleave(self.num_heads // self.num_groups, dim=-3)

    def scaled(self, q, k):
        return q @ k.mT / math.sqrt(self.head_dim)

    def before(self, q, k):
        return q, k

    def forward(self, x):
        q, k, v = self.parted(self.q(x)), self.parted(self.k(x)), self.parted(self.v(x))
        q, k = self.before(q, k)
        weights = self.scaled(q, self.shared(k)).softmax(-1)
        return self.o(self.joined(weights @ self.shared(v)))

    def joined(self, mixed):
        return mixed.transpose(-2, -3).flatten(-2)


class FixedScale(Attention):
    """Divides by the root of the size that there was when it was made."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.scaling = self.head_dim**-0.5

    def scaled(self, q, k):
        return q @ k.mT * self.scaling


class Unscaled(Attention):
    def scaled(self, q, k):
        return q @ k.mT


class Masked(Attention):
    def scaled(self, q, k):
        found = super().scaled(q, k)
        return found.masked_fill(torch.ones(found.shape[-2:], dtype=torch.bool).triu(1), -1e9)


class ByCount(Attention):
    """Knows how many heads there are, and nothing of their size."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        del self.head_dim

    def parted(self, given):
        heads = self.num_groups if given.shape[-1] < self.q.out_features else self.num_heads
        return given.unflatten(-1, (heads, -1)).transpose(-2, -3)

    def scaled(self, q, k):
        return q @ k.mT / math.sqrt(q.shape[-1])


class ByWidth(Attention):
    """Knows the width of all heads together."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.width = self.q.out_features
        del self.head_dim

    def parted(self, given):
        return given.unflatten(-1, (-1, self.width // self.num_heads)).transpose(-2, -3)

    def scaled(self, q, k):
        return q @ k.mT / math.sqrt(self.width // self.num_heads)


class Written(Attention):
    """Has the size written into it."""

    def parted(self, given):
        return given.unflatten(-1, (-1, 4)).transpose(-2, -3)


class Rotary(Attention):
    def before(self, q, k):
        return self._turned(q), self._turned(k)

    def _turned(self, x):
        angle = torch.arange(x.shape[-2])[:, None] * torch.tensor([1.0, 0.1])
        left, right = x.chunk(2, -1)
        return torch.cat([left * angle.cos() - right * angle.sin(), left * angle.sin() + right * angle.cos()], -1)


class Normalised(Attention):
    def before(self, q, k):
        return functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)


class Interleaved(Attention):
    """A head is every fourth feature."""

    def parted(self, given):
        return given.unflatten(-1, (self.head_dim, -1)).movedim(-1, -3)


class JoinedOtherwise(Attention):
    def joined(self, mixed):
        return mixed.movedim(-3, -1).flatten(-2)


class Tiled(Attention):
    """Heads that share keys and values are not neighbours."""

    def shared(self, given):
        return given.repeat(1, self.num_heads // self.num_groups, 1, 1)


class SmallerValues(Attention):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.v, self.o = nn.Linear(12, self.num_groups * 3), nn.Linear(self.num_heads * 3, 12)

    def parted(self, given):
        size = 3 if given.shape[-1] == self.v.out_features else self.head_dim
        return given.unflatten(-1, (-1, size)).transpose(-2, -3)


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.o = nn.Linear(12, 48), nn.Linear(16, 12)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (4, 4)).transpose(-2, -3) for part in self.qkv(x).chunk(3, -1))
        return self.o(functional.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2))


class QueriesReadBesides(Attention):
    def forward(self, x):
        kept = []
        self.before = lambda q, k: (kept.append(q), (q, k))[1]
        return super().forward(x) + kept[0].mean((-1, -3))[..., None]


class ValuesReadBesides(Attention):
    def shared(self, given):
        self.last = super().shared(given)
        return self.last

    def forward(self, x):
        return super().forward(x) + self.last.mean((-1, -3))[..., None]


class KeysCalledTwice(Attention):
    def before(self, q, k):
        return q, k + 0.0 * self.k(torch.zeros(1, 12)).sum()


class Block(nn.Module):
    """Attention on a stream, and layers behind it."""

    def __init__(self, attention):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(12), attention
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.down(functional.relu(self.up(x)))


def block(attention, **options):
    """A block with random weights, the same for each kind."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Block(attention(**options)).eval()


def tokens(samples=20, length=7, seed=1):
    return 2 * torch.randn(samples, length, 12, generator=torch.Generator().manual_seed(seed)) + 0.5
