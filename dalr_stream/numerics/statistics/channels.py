"""Channels that are kept or pruned together, and where each module holds them.

A selection keeps some of a layer's nodes, or of a convolution's channels. In a residual network the layers added to it
lose the same ones; batch norm on the way carries them; the next layers read them. This is that group as plain data, for
the store, for a surgery plan, and to find the moments that decide it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.statistics.grouped import InputMoments
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.types import Indices, Matrix


@dataclass(frozen=True, slots=True)
class ChannelSpan:
    """Where a module holds the channels: channel c is its features start + c block ... start + (c + 1) block - 1.

    And those again in each of `repeats` places, `stride` features apart. A block is more than one feature where a
    linear layer reads a flattened image; places are more than one where that image had its channels last, and the
    start is not 0 after a concatenation.
    """

    layer: str
    """The module."""
    start: int = 0
    """The first feature of channel 0."""
    block: int = 1
    """Features of a channel that lie together."""
    repeats: int = 1
    """Places in which the channels lie."""
    stride: int = 0
    """Features from one place to the next."""

    def __post_init__(self) -> None:
        numbers = (self.start, self.block, self.repeats, self.stride)
        whole = all(isinstance(value, int) and not isinstance(value, bool) for value in numbers)
        if not isinstance(self.layer, str) or not whole or min(numbers) < 0 or min(self.block, self.repeats) < 1:
            raise InvalidInputError(
                f"layer '{self.layer}': its channels must start at 0 or later, in blocks of 1 feature or more, once or "
                f"more often, got start {self.start!r}, block {self.block!r}, repeats {self.repeats!r} and stride "
                f"{self.stride!r}"
            )

    @classmethod
    def at(cls, layer: str, places: Indices) -> ChannelSpan | None:
        """Return the span of given `places`, (C, features of a channel) ascending in each; None where it is no span."""
        channels, each = places.shape
        start = int(places[0, 0])
        gaps = np.flatnonzero(np.diff(places[0]) > 1)
        run = int(gaps[0]) + 1 if gaps.size else each
        block = min(run, int(places[1, 0]) - start) if channels > 1 else run
        if block < 1 or each % block:
            return None
        stride = int(places[0, block]) - start if block < each else 0
        span = cls(layer, start, block, each // block, stride)
        return span if np.array_equal(span.places(channels), places) else None

    def places(self, channels: int) -> Indices:
        """(C, features of a channel): the features that each of `channels` channels is, ascending."""
        here = self.start + self.stride * np.arange(self.repeats)[:, None] + np.arange(self.block)
        places: Indices = self.block * np.arange(channels)[:, None] + here.ravel()
        return places

    def stop(self, channels: int) -> int:
        """Return the feature after the last one of `channels` channels."""
        return self.start + (self.repeats - 1) * self.stride + channels * self.block

    def narrowed(self, lost: int) -> ChannelSpan:
        """Return where the channels lie when `lost` of them are gone, and nothing else."""
        return replace(self, stride=self.stride - lost * self.block if self.repeats > 1 else 0)


@dataclass(frozen=True, slots=True)
class ChannelReader:
    """A layer that reads the channels: its weight becomes W A_J there."""

    span: ChannelSpan
    """Where it holds them."""
    stream: str
    """The rows, and moments, of what it reads."""
    first: int = 0
    """The feature of that stream which is channel 0."""
    weights: int = 0
    """Weights of the layer for each channel."""

    @classmethod
    def of_plain(cls, plain: dict[str, Any]) -> ChannelReader:
        """Read what `dataclasses.asdict` gave."""
        return cls(**{**plain, "span": ChannelSpan(**plain["span"])})


@dataclass(frozen=True, slots=True, eq=False)
class NodeReader:
    """What a layer makes of the nodes that it reads: its weights for them, and what the loss feels of its outputs."""

    name: str
    weight: Matrix
    """(m, C, t): for each output, node, and tap of a kernel or place of a flattened image."""
    gradients: InputMoments | None = None
    """Moments of the gradients of the loss by its m outputs; None where they are not known."""

    @classmethod
    def of(
        cls, reader: ChannelReader, channels: int, weight: Matrix, gradients: InputMoments | None = None
    ) -> NodeReader:
        """Take from a layer's weight (m, d), which says how many taps there are, the columns of these channels."""
        taps = reader.weights // len(weight)
        columns = weight[:, reader.first * taps : (reader.first + channels) * taps]
        return cls(reader.span.layer, columns.reshape(len(weight), channels, taps), gradients)


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """All that loses a channel when one is pruned."""

    channels: int
    producers: tuple[str, ...]
    """Layers that give the channels: one, or those that residual additions tie together."""
    carriers: tuple[ChannelSpan, ...]
    """Modules that act on each channel by itself and have parameters for it: batch norm, depthwise convolutions."""
    readers: tuple[ChannelReader, ...]

    @property
    def reader_names(self) -> list[str]:
        """The layers that read the channels, each once."""
        return list(dict.fromkeys(reader.span.layer for reader in self.readers))

    def joint(self, moments: Mapping[str, Moments]) -> Moments:
        """Return the moments of the channels as all readers see them, from those of the streams, by name."""
        return channel_moments(self.readers, self.channels, [moments[reader.stream] for reader in self.readers])


def moments_of_taps(inputs: Sequence[Moments], channels: int) -> Moments:
    """Return the joint moments of channels as the weights of several readers see them, from all that each reads.

    A reader's d = channels x t inputs are t of each channel, one after the other: the taps of a kernel, or the pixels
    of a flattened image. Rows of all taps and readers together; the padding that a kernel reads is among them.
    """
    taps = [(moments, moments.features // channels) for moments in inputs]
    parts = [moments.features_every(tap, step) for moments, step in taps for tap in range(step)]
    return reduce(add, parts).with_samples(max(moments.samples for moments in inputs))


def channel_moments(readers: Sequence[ChannelReader], channels: int, moments: Sequence[Moments]) -> Moments:
    """Return the joint moments of the channels as `readers` read them; `moments` are those of their streams.

    Rows of all places together: where residual additions tie layers, a channel's moments at every reader decide.
    """
    parts: dict[tuple[str, int], Moments] = {}
    for reader, stream in zip(readers, moments, strict=True):
        if reader.first + channels > stream.features:
            raise InvalidInputError(
                f"layer '{reader.span.layer}': its stream '{reader.stream}' has {stream.features} features, the "
                f"channels are {reader.first}..{reader.first + channels - 1} of it: capture again"
            )
        parts[reader.stream, reader.first] = stream.features_between(reader.first, reader.first + channels)
    samples = max(part.samples for part in parts.values())  # the same ones at every place
    return reduce(add, parts.values()).with_samples(samples)
