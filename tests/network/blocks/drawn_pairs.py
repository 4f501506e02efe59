"""Pairs of drawn numbers for the layers of a network, and what compares networks."""

import numpy as np
import torch

import dalr_stream as ds
from dalr_stream.numerics.lowrank.factors import LowRankLayer


def pair(outputs, inputs, rank=2, seed=0):
    draw = np.random.default_rng(seed)
    return LowRankLayer(draw.normal(size=(rank, inputs)), draw.normal(size=(outputs, rank)), draw.normal(size=outputs))


def pairs_of(model, pattern="re:blocks.*"):
    """A pair of rank 2 for each layer, or each of its groups, of drawn numbers."""
    layers = ds.network.select_layers(model, [pattern])
    return {layer.name: pair(layer.outputs, layer.inputs, seed=seed) for seed, layer in enumerate(layers)}


def same_network(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def written(folder, model, pairs, **options):
    return ds.compress_into(model, pairs, folder, **options)
