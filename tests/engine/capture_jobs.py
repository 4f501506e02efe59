"""Parts of one data set, captured by independent jobs as several machines would."""

import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_into
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.storage.store import ActivationStore

LAYERS = ["0", "2"]
PARTS = {"a": (90, 0), "b": (41, 1), "c": (200, 2), "d": (7, 3)}
"""Samples and seed of each job's data."""


def network(seed=0, width=16):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 10), nn.ReLU(), nn.Linear(10, 3)
        return nn.Sequential(*layers).eval()


def batches(samples, seed, size=32):
    rows = torch.randn(samples, 12, generator=torch.Generator().manual_seed(seed)) + seed
    return list(rows.split(size))


def job(root, part, *, domains=("target",), model=None, layers=LAYERS, holdout=None, accumulate=True, **options):
    """What one machine does with its part of the data."""
    model = model or network()
    samples, seed = PARTS[part]
    for number, domain in enumerate(domains):
        data = batches(samples, seed + 10 * number, **options)
        ds.capture(model, data, ds.network.select_layers(model, layers), root, domain=domain)
        if accumulate:
            accumulate_stored(root, domain=domain, folding=ds.Folding(holdout or ds.HoldoutRule()))
    return root


def folded_directly(root, part):
    model = network()
    data = batches(*PARTS[part])
    accumulate_into(root, model, data, ds.network.select_layers(model, LAYERS), domain="target")
    return root


def name_of(root, domain="target"):
    return ActivationStore(root).domain(domain).shard_name


def assert_same_moments(a, b, domain="target"):
    ours, theirs = (accumulate_stored(root, domain=domain) for root in (a, b))
    assert list(ours) == list(theirs)
    for layer in ours:
        assert ours[layer].same_bits(theirs[layer])
        assert ours.heldout[layer].same_bits(theirs.heldout[layer])
