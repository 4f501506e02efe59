"""What is pruned together with a layer's channels, and who reads them: what a selection must shrink as one.

Torch-Pruning's dependency graph, built from one pass of an example through the network, finds the group: batch norm on
the way, the layers that residual additions tie to this one, the layers that read it, after pooling, flattening and
concatenation. It takes operations that it does not know for operations on single channels, so what it finds is proved
on the example before anything relies on it (see `proof`). What fails, or cannot be narrowed, is an error that names it:
a selection that missed a reader would be wrong in silence.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch_pruning as tp
from torch import nn

from dalr_stream.errors import LayerNotFoundError, UnsupportedLayerError
from dalr_stream.network.capture.batches import few_samples, refusals_explained
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.layers.identity import require_numbers
from dalr_stream.network.layers.kinds import (
    CONVOLUTIONS,
    carries_channels,
    channels_given,
    channels_read,
    matrix_of,
)
from dalr_stream.network.layers.obstacles import require_replaceable
from dalr_stream.network.layers.spec import layer_of
from dalr_stream.network.structure.coupled import Coupled, NotFollowedError, coupled_with
from dalr_stream.network.structure.idle import count_calls, idle_readers
from dalr_stream.network.structure.places import spans_seen
from dalr_stream.network.structure.proof import quiet, require_proof
from dalr_stream.network.structure.tracing import dependencies_of
from dalr_stream.numerics.rows.streams import Side, stream_name
from dalr_stream.numerics.statistics.channels import ChannelGroup, ChannelReader, ChannelSpan

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
    known
        What was found of each layer so far: its group, or the error that says why it has none.

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
    known: dict[str, ChannelGroup | UnsupportedLayerError] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: nn.Module, example: Any, *, place: str = "example") -> Structure:
        """Trace `model` on the first samples of `example`, a batch as `capture` takes it, and leave it as it is.

        `place` is what messages call the batch.
        """
        require_numbers(model)
        few = few_samples(example, EXAMPLES)
        with quiet(model), without_gradients(), refusals_explained(example, place):
            calls = count_calls(model, few)
        graph, reason = dependencies_of(model, few)
        return cls(model, few, graph, calls, reason)

    def group_of(self, name: str) -> ChannelGroup:
        """Return what is pruned together with the channels that layer `name` gives.

        Raises
        ------
        UnsupportedLayerError
            Where they cannot be pruned, with the reason.
        """
        if name not in self.known:
            try:
                group = self._proved(_Group(self, name))
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

    def refuse(self, name: str, error: UnsupportedLayerError) -> None:
        """Have no group of layer `name`, nor of those that are tied to it, from now on: they cannot be pruned."""
        self.known.update(dict.fromkeys(self.group_of(name).producers, error))

    def _proved(self, found: _Group) -> ChannelGroup:
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


class _Group:
    """One group as Torch-Pruning sees it, put into our terms; raises UnsupportedLayerError where it is none."""

    def __init__(self, structure: Structure, name: str) -> None:
        self._structure = structure
        self.name = name
        self._names: dict[Any, str] = {module: name for name, module in structure.model.named_modules()}
        self._names |= {parameter: name for name, parameter in structure.model.named_parameters()}
        self.producers: set[str] = set()
        self._carriers: set[str] = set()
        self.spans: dict[str, ChannelSpan] = {}
        """Where carriers and readers hold the channels, as the graph has it; the first features where it has it not."""
        self._irregular = ""
        """One of those where it has it not."""
        self.channels = self._collect()

    def _collect(self) -> int:
        """Sort the members in, and return the number of channels."""
        root, graph = layer_of(self._structure.model, self.name), self._structure.dependencies
        if graph is None:
            self._refuse(self._structure.untraceable)
        channels = int(matrix_of(root).shape[0])
        if isinstance(root, CONVOLUTIONS) and root.groups != 1:
            self._refuse(f"it is a {type(root).__name__} of {root.groups} groups")
        if root not in graph.module2node:
            self._refuse("it is called 0 times, or nothing comes of what it gives")
        try:
            members = coupled_with(graph, root, channels)
        except NotFollowedError as error:
            self._refuse(str(error))
        for one in members:
            self._sort_in(one, channels)
        if not self.spans.keys() - self._carriers:
            self._refuse(
                "no layer reads them, as far as operations can be followed: they are the network's own output, or "
                "nothing comes of them"
            )
        self._require_no_idle_reader({channels, *(channels * span.block for span in self.spans.values())})
        for member in self.producers | self.spans.keys():
            self._require_sound(member)
        for member in self.producers | (self.spans.keys() - self._carriers):
            layer_of(self._structure.model, member)  # of a kind that can be narrowed
        return channels

    def resolved(self, spans: Mapping[str, ChannelSpan]) -> ChannelGroup:
        """Return the group where carriers and readers hold its channels at `spans`."""
        if spans is self.spans and self._irregular:
            self._refuse_order(self._irregular)
        order = {name: number for number, name in enumerate(self._names.values())}
        here = sorted(spans.values(), key=lambda span: order[span.layer])
        return ChannelGroup(
            self.channels,
            tuple(sorted(self.producers, key=order.__getitem__)),
            tuple(span for span in here if span.layer in self._carriers),
            tuple(self._reader(span) for span in here if span.layer not in self._carriers),
        )

    def _sort_in(self, item: Coupled, channels: int) -> None:
        """Tell what one member of the group does with the channels."""
        module = item.module
        name = self._names.get(module, "")
        if type(module).__module__.startswith("torch_pruning"):  # an operation: the proof says whether it is harmless
            if type(module).__name__ == "_OutputOp":
                self._refuse("the network's own output reads them")
        elif isinstance(module, nn.Parameter):
            self._refuse(f"the parameter '{name}' is added to them, or multiplies them")
        elif carries_channels(module):
            self._carriers.add(name)
            self.spans[name] = self._span(name, item, channels) or self._first_features(name)
        elif channels_given(module) is None:
            self._refuse(f"'{name}' ({type(module).__name__}) reads them")
        elif item.gives:
            if isinstance(module, CONVOLUTIONS) and module.groups != 1:
                self._refuse(f"'{name}', which is tied to it, is a {type(module).__name__} of {module.groups} groups")
            span = self._span(name, item, channels) or self._refuse_order(name)
            self._require_whole(span, module, channels)
            self.producers.add(name)
        else:
            self.spans[name] = self._span(name, item, channels) or self._first_features(name)

    def _span(self, name: str, item: Coupled, channels: int) -> ChannelSpan | None:
        """Return where the channels lie in a module; None where that is in no regular order."""
        features, owners = item.places
        width = (channels_given(item.module) if item.gives else None) or channels_read(item.module)
        regular = features.max() < width and np.array_equal(owners, np.arange(channels).repeat(len(owners) // channels))
        return ChannelSpan.at(name, features.reshape(channels, -1)) if regular else None

    def _first_features(self, name: str) -> ChannelSpan:
        self._irregular = self._irregular or name
        return ChannelSpan(name)

    def _reader(self, span: ChannelSpan) -> ChannelReader:
        name, module = span.layer, layer_of(self._structure.model, span.layer)
        if isinstance(module, CONVOLUTIONS) and module.groups != 1:
            self._refuse(f"'{name}', which reads them, is a {type(module).__name__} of {module.groups} groups")
        width, each = channels_read(module), span.block * span.repeats
        place = span.stride if span.repeats > 1 else width
        if span.start % span.block or place % span.block or place * span.repeats != width or span.start >= place:
            self._refuse(
                f"'{name}' reads blocks of {span.block} from feature {span.start} of {width} on: not in whole channels"
            )
        whole = each == 1 and not isinstance(module, CONVOLUTIONS)
        stream = stream_name(name, Side.INPUTS if whole else Side.CHANNELS)
        return ChannelReader(span, stream, span.start // span.block, matrix_of(module).numel() // width * each)

    def _require_no_idle_reader(self, widths: Container[int]) -> None:
        """Raise where a layer as wide as the channels runs in training, or on other inputs, and not on the example."""
        structure = self._structure
        for name, when in idle_readers(structure.model, structure.example, structure.calls, widths):
            self._refuse(
                f"'{name}', which {when}, is as wide and may read them: take it out of the network before, as by "
                "setting it to None"
            )

    def _require_whole(self, span: ChannelSpan, module: nn.Module, channels: int) -> None:
        if span != ChannelSpan(span.layer) or channels_given(module) != channels:
            self._refuse(f"'{span.layer}', which is tied to it, gives other channels beside them")

    def _require_sound(self, name: str) -> None:
        """Raise where a member of the group cannot be replaced by a narrower one."""
        if not self._structure.calls.get(name, 0):
            self._refuse(f"'{name}' is not called")
        require_replaceable(self._structure.model, [name])

    def _refuse_order(self, name: str) -> NoReturn:
        self._refuse(f"'{name}' holds them in another order, or not all of them: they are split or shuffled before")

    def _refuse(self, reason: str) -> NoReturn:
        raise UnsupportedLayerError(f"layer '{self.name}': its channels cannot be pruned: {reason}")
