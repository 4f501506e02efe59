"""LeNet trained with a penalty on each neuron: gradient steps, each followed by the proximal step of its groups.

Only the neurons that nothing but the network's own size asks for may go: both convolutions and the first two dense
layers, not the classes. Strength 0 is the same training without the penalty.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from dalr_stream.network import Structure
from labelled_batches import Batches
from lenet_network import build
from sparsity_groups import NeuronGroups, groups_of

LAYERS = ("features.0", "features.3", "fc1", "fc2")
BATCH, LEARNING_RATE, MOMENTUM = 64, 0.05, 0.9


def train(rows: Batches, *, seed: int, strength: float, epochs: int) -> tuple[Structure, list[NeuronGroups]]:
    """Train one network; return it with the groups of its neurons, some of them zero.

    Parameters
    ----------
    rows
        To learn from.
    seed
        Decides the starting weights and the order of the rows.
    strength
        lambda: what a neuron's norm times the square root of its number of parameters costs beside the mean loss.
    epochs
        Passes over the rows; the rate falls to 0 along half a cosine, and the proximal step with it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.reset_parameters()
        structure = Structure.of(network.eval(), rows.inputs[:2])
        groups = groups_of(structure, LAYERS)
        optimiser = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
        steps = epochs * -(-len(rows.labels) // BATCH)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
        network.train()
        for _ in range(epochs):
            for picked in torch.randperm(len(rows.labels)).split(BATCH):
                optimiser.zero_grad()
                functional.cross_entropy(network(rows.inputs[picked]), rows.labels[picked]).backward()
                optimiser.step()
                for one in groups:
                    one.shrink(strength * falling.get_last_lr()[0])
                falling.step()
    network.eval()
    return structure, groups
