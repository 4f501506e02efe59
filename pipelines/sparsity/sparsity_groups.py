"""The parameters of each neuron as one group, found by `Structure`; their proximal step; and taking zero groups out.

A neuron, or a channel of a convolution, is a row of every layer that gives it (several, where an addition ties them),
its bias, and its parameters in layers that act on it alone, such as batch norm: all that makes its value. Where all of
them are zero it gives zero for every input, if its nonlinearity does so for zero, and the layers that read it lose
nothing with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.network import Structure


@dataclass(frozen=True, slots=True)
class NeuronGroups:
    """The neurons of a layer, each with its parameters."""

    layer: str
    parts: tuple[tuple[nn.Parameter, torch.Tensor], ...]
    """A parameter, and (neurons, n) its rows for each neuron."""

    @classmethod
    def of(cls, structure: Structure, layer: str) -> NeuronGroups:
        """Find them; raises UnsupportedLayerError where the layer's neurons cannot go one by one."""
        group = structure.group_of(layer)
        rows = {name: torch.arange(group.channels)[:, None] for name in group.producers}
        rows |= {span.layer: torch.from_numpy(span.places(group.channels)) for span in group.carriers}
        found = []
        for name, places in rows.items():
            module = structure.model.get_submodule(name)
            found += [(parameter, places) for parameter in module.parameters(recurse=False)]
        return cls(layer, tuple(found))

    @property
    def parameters(self) -> int:
        """Parameters of one neuron, P."""
        return sum(rows.shape[1] * parameter[0].numel() for parameter, rows in self.parts)

    @property
    def norms(self) -> torch.Tensor:
        """(neurons,): of each neuron's parameters."""
        with torch.no_grad():
            squares = [parameter[rows].square().flatten(1).sum(dim=1) for parameter, rows in self.parts]
            return torch.stack(squares).sum(dim=0).sqrt()

    def shrink(self, step: float) -> None:
        """Apply the proximal step of step x sqrt(P) ||group||_2: shorten each group by step x sqrt(P), to zero at most.

        Alvarez and Salzmann, Learning the number of neurons in deep networks, NIPS 2016, Eq. 5 without their l1 term.
        """
        scale = (
            1 - step * math.sqrt(self.parameters) / self.norms.clamp_min(torch.finfo(torch.float32).tiny)
        ).clamp_min(0)
        with torch.no_grad():
            for parameter, rows in self.parts:
                shape = (*rows.shape, *[1] * (parameter.dim() - 1))
                parameter[rows] *= scale[:, None].expand(rows.shape).reshape(shape)


def groups_of(structure: Structure, layers: Sequence[str]) -> list[NeuronGroups]:
    """Return the groups of several layers, of layers that are tied once."""
    found: list[NeuronGroups] = []
    tied: set[str] = set()
    for layer in layers:
        if layer not in tied:
            found.append(NeuronGroups.of(structure, layer))
            tied.update(structure.group_of(layer).producers)
    return found


def without_zero_groups(structure: Structure, groups: Sequence[NeuronGroups]) -> nn.Module:
    """Return the network without the neurons whose parameters are all zero; of a layer without others one stays."""
    kept: Mapping[str, ds.network.Replacement] = {
        one.layer: ds.prune_by_max(ds.Moments.of(one.norms.double().numpy()[None])).at_size(max(live(one), 1))
        for one in groups
        if live(one) < len(one.norms)
    }
    return ds.compress(structure.model, kept, example=structure).eval()


def live(groups: NeuronGroups) -> int:
    """Return how many neurons of a layer are left."""
    return int((groups.norms > 0).sum())
