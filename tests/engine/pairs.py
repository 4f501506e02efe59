"""Two networks whose rows are paired, and what counts how often they run."""

import itertools

import torch
from torch import nn

import dalr_stream as ds


def network(seed=0, widths=(6, 8, 5, 3)):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        modules = []
        for one, next_one in itertools.pairwise(widths):
            modules += [nn.Linear(one, next_one), nn.ReLU()]
        return nn.Sequential(*modules[:-1]).eval()


def compressed_of(model, rank=2):
    """The first layer at a low rank: a pair of layers, so the later ones read other inputs."""
    weight, bias = ds.network.weights_of(model, "0")
    return ds.compress(model, {"0": ds.truncated_svd(weight, bias).at_rank(rank)})


def data(n=300, seed=1):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))


class Calls:
    """Counts how often networks begin on each of some batches while it is entered; not on what looks like none."""

    def __init__(self, batches, *models):
        self._batches = batches
        self._models = models
        self.of = [0] * len(batches)

    def __enter__(self):
        self._hooks = [model.register_forward_pre_hook(self._called) for model in self._models]
        return self

    def __exit__(self, *_):
        for hook in self._hooks:
            hook.remove()

    def _called(self, _, inputs):
        for number, batch in enumerate(self._batches):
            self.of[number] += torch.equal(inputs[0], batch)
