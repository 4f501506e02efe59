"""Attention in plain torch with positions rotated into queries and keys, with tables held and given in every way."""

import torch
from attentions import Attention, Block
from torch import nn

LENGTH = 64


def frequencies(size, least=0.01):
    return least ** (torch.arange(size // 2) / max(1, size // 2 - 1))


def halves(x):
    return x.chunk(2, -1)


def by_halves(left, right):
    return torch.cat([left, right], -1)


def neighbours(x):
    return x[..., ::2], x[..., 1::2]


def by_neighbours(left, right):
    return torch.stack([left, right], -1).flatten(-2)


class Rotary(Attention):
    """Heads of 8; frequencies are held, and angles computed each time."""

    parted_in, joined_of = staticmethod(halves), staticmethod(by_halves)

    def __init__(self, heads=4, groups=2, size=8, least=0.01, **options):
        super().__init__(heads, groups, size, **options)
        self.register_buffer("turns", frequencies(size, least))

    def before(self, q, k):
        return self.turned(q), self.turned(k)

    def turned(self, x):
        angle = torch.arange(x.shape[-2])[:, None] * self.turns
        left, right = self.parted_in(x)
        return self.joined_of(left * angle.cos() - right * angle.sin(), left * angle.sin() + right * angle.cos())


class Neighbours(Rotary):
    parted_in, joined_of = staticmethod(neighbours), staticmethod(by_neighbours)


class Cached(Rotary):
    """Cosines and sines for every token there may be, twice each, plain attributes; frequencies are not needed."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        angle = torch.arange(LENGTH)[:, None] * self.turns
        self.cosines, self.sines = (self.joined_of(one, one) for one in (angle.cos(), angle.sin()))

    def turned(self, x):
        left, right = self.parted_in(x)
        cos, sin = self.cosines[: x.shape[-2]], self.sines[: x.shape[-2]]
        return x * cos + self.joined_of(-right, left) * sin


class CachedNeighbours(Cached):
    parted_in, joined_of = staticmethod(neighbours), staticmethod(by_neighbours)


class Learned(Rotary):
    """Frequencies are a parameter."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        turns = self.turns
        del self.turns
        self.turns = nn.Parameter(turns)


class ByPairs(Rotary):
    """A cosine and a sine of each pair side by side, in one buffer (tokens, pairs, 2) that is saved."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        angle = torch.arange(LENGTH)[:, None] * self.turns
        self.register_buffer("cache", torch.stack([angle.cos(), angle.sin()], -1))
        del self.turns

    def turned(self, x):
        cos, sin = self.cache[: x.shape[-2]].unbind(-1)
        left, right = neighbours(x)
        return by_neighbours(left * cos - right * sin, left * sin + right * cos)


class Complex(Rotary):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        angle = torch.arange(LENGTH)[:, None] * self.turns
        self.register_buffer("cis", torch.polar(torch.ones_like(angle), angle), persistent=False)
        del self.turns

    def turned(self, x):
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * self.cis[: x.shape[-2]]).flatten(-2)


class Partly(Rotary):
    """The first 4 of 8 dimensions; how many is a number of its own."""

    def __init__(self, *arguments, size=8, **options):
        super().__init__(*arguments, size=size, **options)
        self.turned_size = size // 2
        self.turns = frequencies(self.turned_size)

    def turned(self, x):
        return torch.cat([super().turned(x[..., : self.turned_size]), x[..., self.turned_size :]], -1)


class Rope(nn.Module):
    def __init__(self, size=8):
        super().__init__()
        self.register_buffer("turns", frequencies(size))

    def forward(self, x):
        angle = torch.arange(x.shape[-2])[:, None] * self.turns
        left, right = halves(x)
        return by_halves(left * angle.cos() - right * angle.sin(), left * angle.sin() + right * angle.cos())


class WithRope(Attention):
    """The rotation is a module, which others may call too."""

    def __init__(self, rope=None, heads=4, groups=2, size=8, **options):
        super().__init__(heads, groups, size, **options)
        self.rope = Rope(size) if rope is None else rope

    def before(self, q, k):
        return self.rope(q), self.rope(k)


class Given(Attention):
    """Cosines and sines come with each call, by position, beside a mask that is as wide as a head for 8 tokens."""

    def __init__(self, heads=4, groups=2, size=8, **options):
        super().__init__(heads, groups, size, **options)

    def forward(self, x, cos, sin=None, mask=None):
        q, k, v = self.parted(self.q(x)), self.parted(self.k(x)), self.parted(self.v(x))
        q, k = (one * cos + by_halves(*(part * by for part, by in zip(halves(one)[::-1], (-1, 1), strict=True))) * sin
                for one in (q, k))  # fmt: skip
        scores = self.scaled(q, self.shared(k)) + mask
        return self.o(self.joined(scores.softmax(-1) @ self.shared(v)))


class Tokens(nn.Module):
    """Two blocks whose tables are computed once, and given to both."""

    def __init__(self, size=8):
        super().__init__()
        self.layers = nn.ModuleList(Given(size=size) for _ in range(2))
        self.size = size

    def forward(self, x):
        angle = torch.arange(x.shape[-2])[:, None] * frequencies(self.size)
        cos, sin = (by_halves(one, one) for one in (angle.cos(), angle.sin()))
        mask = torch.full((x.shape[-2], x.shape[-2]), -torch.inf).triu(1)
        for layer in self.layers:
            x = x + layer(x, cos, sin=sin, mask=mask)
        return x


class Normalised(Rotary):
    def before(self, q, k):
        return super().before(*(nn.functional.normalize(one, dim=-1) for one in (q, k)))


class Sections(Rotary):
    """Which frequencies there are is written into it."""

    def turned(self, x):
        angle = torch.arange(x.shape[-2])[:, None] * self.turns[[0, 1, 2, 3]]
        left, right = halves(x)
        return by_halves(left * angle.cos() - right * angle.sin(), left * angle.sin() + right * angle.cos())


class TwoBlocks(nn.Module):
    """Blocks that share the module that rotates."""

    def __init__(self):
        super().__init__()
        rope = Rope()
        self.first, self.second = (Block(WithRope(rope)) for _ in range(2))

    def forward(self, x):
        return self.second(self.first(x))


def made(kind, **options):
    """A network with random weights, the same for each kind."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(**options).eval()
