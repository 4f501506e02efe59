"""What an accumulation gives: each layer by name, with its weights and its moments, ready for the solvers.

Moments are kept by *stream*: `fc1` is what a layer reads, `fc1@outputs` what it gives, `fc2@channels` the channels that
a layer reads. Here the streams of one layer, and of those that read its channels, are put together as one `Layer`.
Nothing is read or added up before a solver asks for it: a record in a store stays there until then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalr_stream.engine.layer_moments import LayerMoments
from dalr_stream.errors import LayerNotFoundError
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.rows.streams import Side, group_name, layer_of_stream, module_name, stream_name
from dalr_stream.numerics.statistics.channels import ChannelReader, NodeReader, channel_moments
from dalr_stream.numerics.statistics.grouped import InputMoments, moments_of
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.storage.contents import LayerRecord
from dalr_stream.storage.places.place import Place
from dalr_stream.storage.records.weights import load_layer_weights

Weights = tuple[NDArray[Any], NDArray[Any] | None]
"""Weight (m, d) and bias (m,) of a layer."""
Rows = Iterable[NDArray[Any]]
Streams = Mapping[str, LayerRecord]
"""What was watched: the layer behind each stream, by the stream's name."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Statistics(Mapping[str, Layer]):
    """The layers of a network by name, each with its weights and its moments on one domain: a mapping to `Layer`.

    A convolution of several groups is one layer. A layer that was watched for its outputs alone is here too; one whose
    channels alone were watched, for the layers before it, is not: `moments` gives what is known of any stream.

    Attributes
    ----------
    watched
        What was recorded, by the name of its stream.
    by_stream
        The moments themselves, by the name of their stream.
    weights
        Called with the name of a layer, or of one group of a convolution, it gives its weights.
    source
        Statistics of the same layers on a source domain, where the two are to be compared.
    rows
        The training rows of each stream of which some are kept; None where they are others by now.
    """

    watched: Streams
    by_stream: LayerMoments
    weights: Callable[[str], Weights]
    source: Statistics | None = None
    rows: Mapping[str, Rows | None] = field(default_factory=dict)

    def __getitem__(self, layer: str) -> Layer:
        if layer not in self:
            elsewhere = f"; moments('{layer}') gives that stream" if layer in self.by_stream else ""
            raise LayerNotFoundError(f"there is no layer '{layer}' among {', '.join(self)}{elsewhere}")
        parts = parts_of_layer(layer, self.watched)
        fetch = _fetchers(layer, parts, self.watched, self.by_stream)
        there = {} if self.source is None else _fetchers(layer, parts, self.source.watched, self.source.by_stream)
        if "nodes" in fetch:
            fetch["readers"] = partial(_readers, self, parts)
        if "nodes" in there:
            fetch["source_nodes"] = there["nodes"]
        if all(part in self.rows for part in parts):
            fetch["rows"] = partial(_rows, self.rows, parts)
        known = self.watched.get(parts[0])
        unprunable = "" if known is None else known.unprunable
        return _Deferred.layer(layer, _stacked(map(self.weights, parts)), unprunable, fetch)

    def __contains__(self, layer: object) -> bool:
        return layer in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {', '.join(self)}"

    def moments(self, stream: str) -> Moments:
        """Return the training moments of one stream: `fc1`, `fc1@outputs`, `conv2@channels`, `conv3@group0`.

        Raises
        ------
        LayerNotFoundError
            Where no stream of that name was recorded.
        """
        return self.by_stream[stream]

    @property
    def _names(self) -> tuple[str, ...]:
        return layer_names([stream for stream in self.watched if stream in self.by_stream], self.watched)


def layer_names(streams: Sequence[str], watched: Streams) -> tuple[str, ...]:
    """Return the layers with streams other than channels alone, a convolution of several groups once."""
    read = dict.fromkeys(module_name(name) for name in streams if watched[name].side == Side.INPUTS.value)
    given = [layer_of_stream(name) for name in streams if watched[name].side in (Side.OUTPUTS, Side.GRADIENTS)]
    return tuple(dict.fromkeys([*read, *(layer for layer in given if module_name(layer) not in read)]))


def parts_of_layer(layer: str, watched: Streams) -> tuple[str, ...]:
    """Return what has weights, rows and moments of its own: the layer, or each of its groups."""
    groups = 0
    while group_name(layer, groups) in watched:
        groups += 1
    return tuple(group_name(layer, number) for number in range(groups)) or (layer,)


def stored_weights(root: Place, watched: Streams, layer: str) -> Weights:
    """Read a layer's weights from a store, compared to the digests that the manifest has of them."""
    records = (record for stream, record in watched.items() if layer_of_stream(stream) == layer)
    return load_layer_weights(root, layer, next(records, None))


def _stacked(weights: Iterable[Weights]) -> Weights:
    parts = list(weights)
    if len(parts) == 1:
        return parts[0]
    biases = [bias for _, bias in parts if bias is not None]
    return np.concatenate([weight for weight, _ in parts]), np.concatenate(biases) if biases else None


def _fetchers(layer: str, parts: Sequence[str], watched: Streams, known: LayerMoments) -> dict[str, Callable[[], Any]]:
    """Return how to fetch each moment field of a layer that is known, by the field's name."""
    fetch: dict[str, Callable[[], Any]] = {}
    if all(part in known for part in parts):
        fetch["inputs"] = partial(_joined, known, parts)
    if all(part in known.heldout for part in parts):
        fetch["heldout"] = partial(_joined, known.heldout, parts)
    if all(part in known.shards for part in parts):
        fetch["shards"] = partial(_shards, known.shards, parts)
    if (outputs := stream_name(layer, Side.OUTPUTS)) in known:
        fetch["outputs"] = partial(known.__getitem__, outputs)
    gradients = [stream_name(part, Side.GRADIENTS) for part in parts]
    if all(stream in known for stream in gradients):
        fetch["gradients"] = partial(_joined, known, gradients)
    record = watched.get(parts[0])
    if record is not None and record.readers and all(reader.stream in known for reader in record.readers):
        fetch["nodes"] = partial(_nodes, known, record.readers, record.outputs * len(parts))
    return fetch


def _joined(known: Mapping[str, Moments], parts: Sequence[str]) -> InputMoments:
    return moments_of([known[part] for part in parts])


def _rows(kept: Mapping[str, Rows | None], parts: Sequence[str]) -> tuple[Rows, ...]:
    """Return the rows of each group; none where they are others of one."""
    rows = [own for part in parts if (own := kept[part]) is not None]
    return tuple(rows) if len(rows) == len(parts) else ()


def _shards(known: Mapping[str, Sequence[Moments]], parts: Sequence[str]) -> Sequence[InputMoments]:
    if len(parts) == 1:
        return known[parts[0]]
    return [moments_of(shard) for shard in zip(*(known[part] for part in parts), strict=True)]


def _nodes(known: Mapping[str, Moments], readers: Sequence[ChannelReader], channels: int) -> Moments:
    return channel_moments(readers, channels, [known[reader.stream] for reader in readers])


def _readers(statistics: Statistics, parts: Sequence[str]) -> tuple[NodeReader, ...]:
    """Return who reads a layer's channels, with their weights, and the gradients by their outputs where known."""
    record, known = statistics.watched[parts[0]], statistics.by_stream
    channels = record.outputs * len(parts)

    def reader_of(reader: ChannelReader) -> NodeReader:
        weight, _ = statistics.weights(reader.span.layer)
        gradients = known.training.get(stream_name(reader.span.layer, Side.GRADIENTS))
        return NodeReader.of(reader, channels, weight, gradients)

    return tuple(map(reader_of, record.readers))


class _Deferred(Layer):
    """A layer whose moments are fetched when they are first asked for, and then kept: some take gigabytes."""

    __slots__ = ("_fetch",)
    _fetch: Mapping[str, Callable[[], Any]]

    @classmethod
    def layer(cls, name: str, weights: Weights, unprunable: str, fetch: Mapping[str, Callable[[], Any]]) -> Layer:
        """Return the layer; the fields that `fetch` has are empty slots, for which Python asks `__getattr__`."""
        layer = cls(name, *weights, unprunable=unprunable)
        object.__setattr__(layer, "_fetch", fetch)
        for name_of_field in fetch:
            object.__delattr__(layer, name_of_field)
        return layer

    def __getattr__(self, field: str) -> Any:
        if field not in Layer.__slots__:
            raise AttributeError(f"a Layer has no attribute '{field}'")
        value = self._fetch[field]()
        object.__setattr__(self, field, value)
        return value

    def _known(self) -> Iterable[str]:
        return self._fetch
