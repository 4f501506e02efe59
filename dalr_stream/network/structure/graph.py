"""What is pruned together with a layer's channels, and who reads them: what a selection must shrink as one.

Torch-Pruning's dependency graph, built from one pass of an example through the network, finds the group: batch norm on
the way, the layers that residual additions tie to this one, the layers that read it, after pooling, flattening and
concatenation. It takes operations that it does not know for operations on single channels, so what it finds is proved
on the example before anything relies on it (see `proof`). What fails, or cannot be narrowed, is an error that names it:
a selection that missed a reader would be wrong in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch_pruning as tp
from torch import nn

from dalr_stream.errors import LayerNotFoundError, UnsupportedLayerError
from dalr_stream.network.capture.batches import few_samples, refusals_explained
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.layers.identity import require_numbers
from dalr_stream.network.structure.group import Group, OrderError
from dalr_stream.network.structure.heads import Attention, found_attention
from dalr_stream.network.structure.idle import count_calls
from dalr_stream.network.structure.places import spans_seen
from dalr_stream.network.structure.proof import quiet, require_proof
from dalr_stream.network.structure.tracing import dependencies_of
from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.statistics.channels import ChannelGroup

EXAMPLES = 2
"""Samples of the example that are used."""


@dataclass(frozen=True, slots=True, eq=False)
class Structure:
    """A network's channel groups, found and proved when they are asked for. Made with `Structure.of`.

    Attributes
    ----------
    model
        The network.
    example
        The samples that it was traced on.
    dependencies
        Torch-Pruning's dependency graph; None where there is none.
    calls
        How often each module was called.
    untraceable
        Why there is none; empty where there is.
    handed_on
        What is said of channels that the network gives.
    known
        What was found of each layer so far: its group, or the error that says why it has none.
    attentions
        The same of the attentions, by output layer.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
    >>> group = ds.network.Structure.of(model, torch.randn(2, 6)).group_of("0")
    >>> [reader.span.layer for reader in group.readers]
    ['2']
    """

    model: nn.Module
    example: Any
    dependencies: tp.DependencyGraph | None
    calls: Mapping[str, int]
    untraceable: str = ""
    handed_on: str = "the network's own output reads them"
    known: dict[str, ChannelGroup | UnsupportedLayerError] = field(default_factory=dict, repr=False)
    attentions: dict[str, Attention | UnsupportedLayerError] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: nn.Module, example: Any, *, place: str = "example", piece: str = "") -> Structure:
        """Trace `model` on the first samples of `example`, a batch as `capture` takes it, and leave it as it is.

        `place` is what messages call the batch, `piece` the part of a network that `model` stands for.
        """
        require_numbers(model)
        few = few_samples(example, EXAMPLES)
        with quiet(model), without_gradients(), refusals_explained(example, place):
            calls = count_calls(model, few)
        graph, reason = dependencies_of(model, few)
        if not piece:
            return cls(model, few, graph, calls, reason)
        handed_on = f"'{piece}' hands them on, and block by block no more than one block is narrowed at once"
        return cls(model, few, graph, calls, reason, handed_on)

    def group_of(self, name: str) -> ChannelGroup:
        """Return what is pruned together with the channels that layer `name` gives.

        Raises
        ------
        UnsupportedLayerError
            Where they cannot be pruned, with the reason.
        """
        if name not in self.known:
            try:
                group = self._found(name)
                self.known.update(dict.fromkeys(group.producers, group))
            except UnsupportedLayerError as error:
                self.known[name] = error
            except LayerNotFoundError:
                raise
            except Exception as error:  # noqa: BLE001  # the network itself ran: whatever it is comes of looking
                reason = f"finding what they are tied to failed ({type(error).__name__}: {error})"
                self.known[name] = UnsupportedLayerError(f"layer '{name}': its channels cannot be pruned: {reason}")
        group_or_error = self.known[name]
        if isinstance(group_or_error, UnsupportedLayerError):
            raise group_or_error
        return group_or_error

    def heads_of(self, name: str) -> HeadLayout:
        """Return the attention whose output layer is `name`: its layers, and how their features are parted into heads.

        Parameters
        ----------
        name
            The layer that reads what the attention gives.

        Returns
        -------
        HeadLayout
            For `numerics.head_factors`.

        Raises
        ------
        LayerNotFoundError, UnsupportedLayerError
            Where there is no such layer, or its attention is not what `head_factors` takes it for, with the reason.
        """
        return self.attention_of(name).layout

    def attention_of(self, name: str) -> Attention:
        """Return what was found of the attention whose output layer is `name`; raises as `heads_of` does."""
        if name not in self.attentions:
            try:
                self.attentions[name] = found_attention(self.model, self.example, name)
            except UnsupportedLayerError as error:
                self.attentions[name] = error
        found = self.attentions[name]
        if isinstance(found, UnsupportedLayerError):
            raise found
        return found

    def refuse(self, name: str, error: UnsupportedLayerError) -> None:
        """Have no group of layer `name`, nor of those that are tied to it, from now on: they cannot be pruned."""
        self.known.update(dict.fromkeys(self.group_of(name).producers, error))

    def _found(self, name: str) -> ChannelGroup:
        """Return the group as the graph has it; where it has channels in no order, as they are seen to be read."""
        try:
            return self._proved(Group(self, name).followed())
        except OrderError as error:
            try:
                group = Group(self, name).seen()
                require_proof(self.model, name, group, self.example)
            except UnsupportedLayerError as seen:
                raise UnsupportedLayerError(str(error if isinstance(seen, OrderError) else seen)) from None
            return group

    def _proved(self, found: Group) -> ChannelGroup:
        """Return a group with its proof, where need be with its channels where they are seen to lie.

        Operations may lay them out otherwise than the graph knows. Raises UnsupportedLayerError where neither holds.
        """
        try:
            group = found.resolved(found.spans)
            require_proof(self.model, found.name, group, self.example)
        except UnsupportedLayerError:
            seen = spans_seen(self.model, found.channels, found.producers, found.spans, self.example)
            if seen is None or seen == found.spans:
                raise
            group = found.resolved(seen)
            require_proof(self.model, found.name, group, self.example)
        return group

    def changed_with(self, name: str) -> tuple[str, ...]:
        """Return the modules that may change when layer `name` is compressed: all of its group, where it has one."""
        try:
            group = self.group_of(name)
        except UnsupportedLayerError:
            return (name,)
        spans = (*group.carriers, *(reader.span for reader in group.readers))
        return *group.producers, *(span.layer for span in spans)
