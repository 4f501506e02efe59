"""What a manifest says of a store: its network, its layers, and on each domain the batches and rows that count."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from dalr_stream.errors import FingerprintMismatchError, InvalidInputError
from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.rows.probe import Probe, disagreeing
from dalr_stream.numerics.rows.sampling import EVERY_ROW
from dalr_stream.numerics.rows.streams import SIDES, Side, require_name
from dalr_stream.numerics.statistics.channels import ChannelReader
from dalr_stream.storage.batches import Batches
from dalr_stream.storage.json_record import digest_of
from dalr_stream.storage.schema import MAX_FEATURES, require_count

NO_BIAS = "none"


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """A layer of the network the store was made from."""

    kind: str
    """Its class in the network, e.g. `Linear`."""
    inputs: int
    """d"""
    outputs: int
    """m"""
    weight_digest: str
    """SHA-256 of its weight: torch's name of the dtype, shape and bytes."""
    readers: tuple[ChannelReader, ...] = ()
    """Who reads this one's channels; empty where a selection of them is not possible, or nobody asked."""
    next_outputs: int = 0
    """Weights elsewhere that go with each channel: in those readers, and in layers tied to this one."""
    unprunable: str = ""
    """Why it is not possible."""
    side: str = Side.INPUTS.value
    """What of the layer is watched; for all but inputs the record goes by `name@outputs`, `name@channels` and so on.
    Where two networks are (`Pairing`), `inputs` and `outputs` are the widths of x and z, and rows are [x | z]."""
    bias_digest: str = ""
    """`NO_BIAS` where there is none; empty in stores that did not record it."""
    heads: HeadLayout | None = None
    """The attention whose output layer this is, where its heads can get narrower; None where not, or nobody asked."""
    no_heads: str = ""
    """Why they cannot."""

    def __post_init__(self) -> None:
        require_count(self.inputs, "inputs", 1, MAX_FEATURES)
        require_count(self.outputs, "outputs", 1, MAX_FEATURES)
        require_count(self.next_outputs, "next_outputs")
        if self.side not in SIDES:
            raise InvalidInputError(f"side must be one of {', '.join(sorted(SIDES))}, got '{self.side}'")


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    """The network the store was made from: a digest of its whole state, and the watched streams of rows by name."""

    fingerprint: str
    """SHA-256 of its parameters, buffers and settings."""
    layers: Mapping[str, LayerRecord]
    """By name of the stream."""
    probes: tuple[Probe, ...] = ()
    """What it gave for made-up samples, one of each form: what a fingerprint does not see shows there."""

    def __post_init__(self) -> None:
        require_names("layer", self.layers)
        require_names("stream", (reader.stream for layer in self.layers.values() for reader in layer.readers))
        layouts = [layer.heads for layer in self.layers.values() if layer.heads is not None]
        lost = {name for layout in layouts for name in layout.layers} - set(self.layers)
        if lost:
            raise InvalidInputError(f"an attention has a layer '{min(lost)}', which the network does not have")

    def with_probe(self, probe: Probe, place: str) -> NetworkRecord:
        """Return the record with a probe of its own form; raises FingerprintMismatchError for another network's."""
        if disagreeing(self.probes, probe) is not None:
            raise FingerprintMismatchError(
                f"{place}: the network gives other outputs for a made-up sample ({probe.form}) than the one that the "
                "rows so far came from, though weights and settings are the same: an adapter is on or off, or a "
                "function, a global or an attribute changed; put it back, or capture to another store"
            )
        kept = {known.form: known for known in self.probes}
        return dataclasses.replace(self, probes=tuple({probe.form: probe, **kept}.values()))


@dataclass(frozen=True, slots=True)
class RowsRecord:
    """The committed rows of one layer on one domain."""

    features: int
    """d"""
    dtype: str
    """As they lie on disk."""
    rows_per_sample: int
    """0 (`VARYING`) where samples give as many as they have."""
    rows: int = 0
    """Those that count; an array may be longer after a kill."""
    tile_digests: tuple[int, ...] = ()
    """CRC-32 of each committed tile's bytes, before compression."""
    whole_samples: int = 0
    """Where that varies: samples all of whose rows are surely on disk."""
    samples: int = 0
    """Where that varies, once all rows are there: the samples they came from; 0 in stores that did not count them."""

    def __post_init__(self) -> None:
        require_count(self.features, "features", 1, MAX_FEATURES)
        require_count(self.samples, "samples")
        require_count(self.rows_per_sample, "rows_per_sample")
        require_count(self.rows, "rows")
        require_count(self.whole_samples, "whole_samples")
        if np.dtype(self.dtype).kind not in "fiub":
            raise InvalidInputError(f"rows must be real numbers, got dtype '{self.dtype}'")

    @classmethod
    def merged(cls, parts: Sequence[RowsRecord]) -> RowsRecord:
        """Return the count of the rows of several captures of one layer; it names no tile."""
        counted = [part.samples for part in parts]
        rows, samples = sum(part.rows for part in parts), sum(counted) if all(counted) else 0
        return dataclasses.replace(parts[0], rows=rows, tile_digests=(), samples=samples)

    @property
    def committed_samples(self) -> int:
        """Samples all of whose rows are on disk."""
        return self.rows // self.rows_per_sample if self.rows_per_sample else self.whole_samples

    def covers(self, samples: int) -> bool:
        """Tell whether these can be all rows of so many samples; where that varies any of them may have none."""
        if self.rows_per_sample:
            return 0 < samples == self.committed_samples
        return self.whole_samples < samples and self.samples in (0, samples)


@dataclass(frozen=True, slots=True)
class DomainRecord:
    """One domain: its batches in order, and the rows they became."""

    complete: bool = False
    """Whether the loader came to its end."""
    batches: Batches = field(default_factory=Batches)
    """Samples and digest of each, in order."""
    layers: Mapping[str, RowsRecord] = field(default_factory=dict)
    """By name of the stream."""
    shards: Mapping[str, DomainRecord] = field(default_factory=dict)
    """What this domain was merged from, by `shard_name`, ascending; empty where it was captured here. A merged domain
    has moments and no rows: its `layers` count rows and name no tile."""

    choice: str = EVERY_ROW
    """Which of the layers' rows these are, in the words of the rule that chose them."""

    shared: Mapping[str, str] = field(default_factory=dict)
    """Layers that read the very tensor that one of `layers` reads, and that one: its rows and moments are theirs."""

    def __post_init__(self) -> None:
        require_names("layer", self.layers, self.shared, self.shared.values())
        require_names("shard", self.shards)
        lost = set(self.shared.values()) - set(self.layers)
        if lost:
            raise InvalidInputError(f"layers read the rows of '{min(lost)}', which the domain does not have")

    @classmethod
    def merged(cls, shards: Mapping[str, DomainRecord]) -> DomainRecord:
        """Return the record of several captures of the same layers together, in the order of their names."""
        ordered = {name: shards[name] for name in sorted(shards)}
        first = next(iter(ordered.values()))
        layers = {
            layer: RowsRecord.merged([shard.layers[layer] for shard in ordered.values()]) for layer in first.layers
        }
        batches = Batches.joined(shard.batches for shard in ordered.values())
        return cls(
            complete=True, batches=batches, layers=layers, shards=ordered, choice=first.choice, shared=first.shared
        )

    @property
    def names(self) -> tuple[str, ...]:
        """All layers that can be asked for, those with rows of their own first."""
        return *self.layers, *self.shared

    def home(self, layer: str) -> str:
        """Return the layer under whose name the rows and moments of `layer` lie: mostly its own."""
        return self.shared.get(layer, layer)

    def has(self, layer: str) -> bool:
        """Tell whether rows of a layer were recorded: a capture that just began has a domain without layers."""
        return self.home(layer) in self.layers

    @property
    def shard_name(self) -> str:
        """What this domain is called once merged with others: equal names, equal rows in every layer."""
        return digest_of({layer: self.fingerprint(layer) for layer in self.names})[:16]

    @property
    def samples(self) -> int:
        """Samples in all batches seen."""
        return int(self.batches.samples.sum())

    @property
    def committed_samples(self) -> int:
        """Samples all of whose rows, in every layer, are on disk."""
        return min((rows.committed_samples for rows in self.layers.values()), default=0)

    def fingerprint(self, layer: str) -> str:
        """Digest of the rows of one layer: equal digests, equal rows."""
        if self.shards:
            return digest_of({"shards": [shard.fingerprint(layer) for shard in self.shards.values()]})
        rows = {name: value for name, value in plain_fields(self.layers[self.home(layer)]).items() if name != "samples"}
        rest = {"choice": self.choice, "rows": rows}  # samples are those of the batches
        digest = self.batches.digested.copy()
        digest.update(json.dumps(rest, sort_keys=True, separators=(",", ":"))[1:].encode())
        return str(digest.hexdigest())


def plain_fields(record: Any) -> dict[str, Any]:
    """Return the fields of a record by name, as they are: `asdict` would copy each digest of each tile."""
    return {part.name: getattr(record, part.name) for part in dataclasses.fields(record)}


def require_names(what: str, *names: Iterable[str]) -> None:
    """Raise InvalidInputError for a name that would lead out of its folder: a manifest may come from anywhere."""
    for name in chain(*names):
        require_name(name, what)
