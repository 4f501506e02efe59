"""One group of channels: who gives, carries and reads them, as the dependency graph has it or as a batch shows it.

The graph knows ties, such as residual additions, which no batch shows; a batch shows where channels arrive, whatever
operations laid them out. What neither proves, and what cannot be narrowed, is refused by name. Made for one question of
`Structure`, which holds the answer.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, NoReturn, Protocol

import numpy as np
import torch_pruning as tp
from torch import nn

from dalr_stream.errors import UnsupportedLayerError
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
from dalr_stream.network.structure.idle import idle_readers
from dalr_stream.network.structure.places import members_seen, spans_seen
from dalr_stream.numerics.rows.streams import Side, stream_name
from dalr_stream.numerics.statistics.channels import ChannelGroup, ChannelReader, ChannelSpan


class Traced(Protocol):
    """What is known of a network before any group is found: see `Structure`."""

    @property
    def model(self) -> nn.Module:
        """The network."""

    @property
    def example(self) -> Any:
        """The samples that it was traced on."""

    @property
    def dependencies(self) -> tp.DependencyGraph | None:
        """The dependency graph."""

    @property
    def calls(self) -> Mapping[str, int]:
        """How often each module was called."""

    @property
    def untraceable(self) -> str:
        """Why there is no graph."""

    @property
    def handed_on(self) -> str:
        """What is said of channels that the network gives."""


class OrderError(UnsupportedLayerError):
    """The graph has channels in no regular order, as it may where they are laid out anew and joined with others."""


class Group:
    """One group as Torch-Pruning sees it, put into our terms; raises UnsupportedLayerError where it is none."""

    def __init__(self, structure: Traced, name: str) -> None:
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
        self._root = layer_of(structure.model, name)
        self.channels = int(matrix_of(self._root).shape[0])

    def followed(self) -> Group:
        """Sort in the members that the graph has."""
        root, graph = self._root, self._structure.dependencies
        if graph is None:
            self._refuse(self._structure.untraceable)
        if isinstance(root, CONVOLUTIONS) and root.groups != 1:
            self._refuse(f"it is a {type(root).__name__} of {root.groups} groups")
        if root not in graph.module2node:
            self._refuse("it is called 0 times, or nothing comes of what it gives")
        try:
            members = coupled_with(graph, root, self.channels)
        except NotFollowedError as error:
            self._refuse(str(error))
        for one in members:
            self._sort_in(one, self.channels)
        self._require_members()
        return self

    def seen(self) -> ChannelGroup:
        """Return the group of those in which the layer's own channels are seen to arrive; nothing is tied to it."""
        structure = self._structure
        carriers, readers = members_seen(structure.model, self.name, structure.example)
        members = {name: ChannelSpan(name) for name in (*carriers, *readers)}
        spans = spans_seen(structure.model, self.channels, [self.name], members, structure.example)
        if spans is None:
            self._refuse_order(next(iter(members), self.name))
        self.producers, self._carriers, self.spans = {self.name}, set(carriers), spans
        self._require_members()
        return self.resolved(spans)

    def _require_members(self) -> None:
        """Raise where nobody reads the channels, or a member cannot be narrowed."""
        if not self.spans.keys() - self._carriers:
            self._refuse(
                "no layer reads them, as far as operations can be followed: they are the network's own output, or "
                "nothing comes of them"
            )
        widths = (self.channels * span.block for span in self.spans.values())
        self._require_no_idle_reader({self.channels, *widths})
        for member in self.producers | self.spans.keys():
            self._require_sound(member)
        for member in self.producers | (self.spans.keys() - self._carriers):
            layer_of(self._structure.model, member)  # of a kind that can be narrowed

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
                self._refuse(self._structure.handed_on)
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
            beside = "" if span.repeats == 1 else f" {span.repeats} times, beside other features,"
            self._refuse(
                f"'{name}' reads them{beside} in blocks of {span.block} from feature {span.start} of {width} on: "
                "not in whole channels"
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
        reason = f"'{name}' holds them in another order, or not all of them: they are split or shuffled before"
        raise OrderError(self._words(reason))

    def _refuse(self, reason: str) -> NoReturn:
        raise UnsupportedLayerError(self._words(reason))

    def _words(self, reason: str) -> str:
        return f"layer '{self.name}': its channels cannot be pruned: {reason}"
