"""Networks of numbers, points and tables written by hand in plain torch."""

from __future__ import annotations

import torch
from torch import nn


class DenseExperts(nn.Module):
    """Every expert sees every row; a gate weighs them."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(10, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 4)) for _ in range(3))

    def forward(self, x):
        given = torch.stack([expert(x) for expert in self.experts], -1)
        return (given * self.gate(x).softmax(-1)[:, None]).sum(-1)


class Points(nn.Module):
    """One dense net for each point, pooled over them, and the pool given back to each, as PointNet has it."""

    def __init__(self):
        super().__init__()
        self.local, self.wide = nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 12)), nn.Linear(12, 20)
        self.mixed, self.head = nn.Linear(32, 16), nn.Linear(16, 4)

    def forward(self, x):
        h = self.local(x)
        pooled = torch.relu(self.wide(h)).amax(1, keepdim=True).expand(-1, h.shape[1], -1)
        return self.head(torch.relu(self.mixed(torch.cat([h, pooled], -1))))


class Graph(nn.Module):
    """Messages along the edges of a graph that is the same for all samples."""

    def __init__(self):
        super().__init__()
        self.register_buffer("edges", (torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) > 0.5).float())
        self.own, self.others = (
            nn.ModuleList([nn.Linear(5, 8), nn.Linear(8, 8)]),
            nn.ModuleList([nn.Linear(5, 8, bias=False), nn.Linear(8, 8, bias=False)]),
        )
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        for own, others in zip(self.own, self.others, strict=True):
            x = torch.relu(own(x) + others(self.edges @ x))
        return self.head(x)


class Recommender(nn.Module):
    """Embeddings of categories beside numbers, and their products, as DLRM has it."""

    def __init__(self):
        super().__init__()
        self.tables, self.bottom = nn.ModuleList(nn.Embedding(10, 8) for _ in range(3)), nn.Linear(5, 8)
        self.top = nn.Sequential(nn.Linear(8 + 6, 12), nn.ReLU(), nn.Linear(12, 1))

    def forward(self, numbers, categories):
        dense = torch.relu(self.bottom(numbers))
        all_of_them = torch.stack([dense, *(table(categories[:, n]) for n, table in enumerate(self.tables))], 1)
        products = all_of_them @ all_of_them.transpose(1, 2)
        return self.top(torch.cat([dense, products[:, *torch.tril_indices(4, 4, -1)]], 1))


class Coupled(nn.Module):
    """Halves that shift and scale one another, as a normalising flow has them: pairs of outputs in a mapping."""

    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList(nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 6)) for _ in range(3))

    def forward(self, x):
        one, two = x.chunk(2, -1)
        volume = 0
        for net in self.nets:
            scale, shift = net(one).chunk(2, -1)
            one, two, volume = two * torch.exp(torch.tanh(scale)) + shift, one, volume + scale.sum(-1)
        return {"z": torch.cat([one, two], -1), "volume": volume}


class Adapted(nn.Module):
    """Dense layers with low-rank adapters beside them, which read the sizes of what they adapt."""

    class Adapter(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base
            self.a, self.b = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

        def forward(self, x):
            given = self.base(x)
            return given + self.b(self.a(x.to(self.base.weight.dtype))) * (1 / self.base.in_features)

    def __init__(self):
        super().__init__()
        self.one, self.two = self.Adapter(nn.Linear(10, 16)), self.Adapter(nn.Linear(16, 4))

    def forward(self, x):
        return self.two(torch.relu(self.one(x)))


class EarlyExits(nn.Module):
    """A head after each block: all of them answer."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(10, 10), nn.ReLU()) for _ in range(3))
        self.exits = nn.ModuleList(nn.Linear(10, 4) for _ in range(3))

    def forward(self, x):
        answers = []
        for one, leave in zip(self.blocks, self.exits, strict=True):
            x = one(x)
            answers.append(leave(x))
        return answers


def perceptron():
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 4))
