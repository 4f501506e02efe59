"""What a store knows of each layer, put together for the solvers: no network and no data are needed from here on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from dalr_stream.engine.layer_moments import LayerMoments, OnDemand, StoredRecords
from dalr_stream.engine.statistics import Statistics, parts_of_layer, stored_weights
from dalr_stream.errors import FingerprintMismatchError, StoreDamagedError, StoreNotFoundError
from dalr_stream.numerics.heads.factors import HeadFactors
from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.lowrank.factors import LowRankFactors
from dalr_stream.numerics.lowrank.grouped import factors_of
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.rows.streams import Side, module_name
from dalr_stream.numerics.selection.nodes import ChannelSelection
from dalr_stream.numerics.sizes.shape import LayerShape
from dalr_stream.numerics.statistics.channels import ChannelReader, channel_moments
from dalr_stream.numerics.statistics.grouped import InputMoments, moments_of
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.storage.contents import DomainRecord, LayerRecord
from dalr_stream.storage.manifest import Manifest
from dalr_stream.storage.places.place import Place
from dalr_stream.storage.records.moments import moments_count, moments_path, shard_parts, shard_path
from dalr_stream.storage.records.record import provenance_of
from dalr_stream.storage.records.solutions import Solution, load_diagnostics, load_solution, solution_path
from dalr_stream.storage.records.stored_moments import open_moments
from dalr_stream.storage.rows import rows_exist
from dalr_stream.storage.schema import HELDOUT, PARTS, TRAINING
from dalr_stream.storage.store import ActivationStore, StoredRows


@dataclass(frozen=True, slots=True)
class StoreView:
    """A store as the solvers, the evaluation and the report see it."""

    root: Place
    manifest: Manifest

    @classmethod
    def open(cls, root: Place) -> StoreView:
        """Read the manifest; raises StoreNotFoundError and StoreDamagedError."""
        return cls(root, Manifest.read(root))

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers whose inputs were watched, a convolution of several groups once."""
        watched = self.manifest.network.layers.items()
        return tuple(dict.fromkeys(module_name(name) for name, record in watched if record.side == Side.INPUTS.value))

    def parts(self, layer: str) -> tuple[str, ...]:
        """Return what has weights, rows and moments of its own: the layer, or each of its groups."""
        return parts_of_layer(layer, self.manifest.network.layers)

    def record(self, layer: str) -> LayerRecord:
        """Return what the manifest knows of the layer, or of the first of its groups, which are alike."""
        return self.manifest.network.layers[self.parts(layer)[0]]

    def shape(self, layer: str) -> LayerShape:
        """Return the layer's shape and what a selection saves in its readers."""
        record, groups = self.record(layer), len(self.parts(layer))
        own = record.heads
        heads = () if own is None else (own.size, self._weights_beside(own), own.step)
        return LayerShape(groups * record.outputs, record.inputs, record.next_outputs, groups, *heads)

    @property
    def heads(self) -> dict[str, HeadLayout]:
        """The attentions whose heads can get narrower, by the output layer of each."""
        records = {layer: self.record(layer).heads for layer in self.layers}
        return {layer: heads for layer, heads in records.items() if heads is not None}

    def attention(self, layer: str, target: str) -> dict[str, Layer]:
        """Return the layers of the attention that ends in a layer, with their moments; empty where it ends none."""
        heads, statistics = self.record(layer).heads, self.statistics(target)
        return {} if heads is None else {name: statistics[name] for name in heads.layers}

    def attention_heldout(self, layer: str, target: str, domain: str | None) -> dict[str, Layer]:
        """Return the same with the held-out moments as `heldout` has them; empty where there are none."""
        found = {}
        for name, known in self.attention(layer, target).items():
            heldout = self.inputs_heldout(target, domain, name)
            if heldout is None:
                return {}
            found[name] = Layer(name, known.weight, known.bias, heldout=heldout)
        return found

    def _weights_beside(self, heads: HeadLayout) -> int:
        """Count the weights that go with a dimension of every head in the layers of queries, keys and values."""
        known = self.manifest.network.layers
        return sum(known[name].outputs // heads.size * known[name].inputs for name in heads.layers[:-1])

    def readers(self, layer: str) -> tuple[ChannelReader, ...]:
        """Return who reads the layer's channels; their moments decide selections."""
        return self.record(layer).readers

    def inputs(self, domain: str, layer: str) -> InputMoments:
        """Return the training moments of what a layer, or each of its groups, reads."""
        return moments_of([self.moments(domain, part) for part in self.parts(layer)])

    def inputs_heldout(self, target: str, domain: str | None, layer: str) -> InputMoments | None:
        """Return what `heldout` does, of a layer or of its groups."""
        parts = [self.heldout(target, domain, part) for part in self.parts(layer)]
        known = [part for part in parts if part is not None]
        return moments_of(known) if known else None

    def inputs_shards(self, domain: str, layer: str) -> Sequence[InputMoments]:
        """Return what `shards` does, of a layer or of its groups."""
        shards = [self.shards(domain, part) for part in self.parts(layer)]
        return shards[0] if len(shards) == 1 else [moments_of(parts) for parts in zip(*shards, strict=True)]

    def channel_moments(self, domain: str, layer: str, part: str = TRAINING) -> Moments:
        """Return the joint moments of a layer's channels as they are read; it has readers."""
        readers = self.readers(layer)
        return self._joint(layer, [self.moments(domain, reader.stream, part) for reader in readers])

    def channel_shards(self, domain: str, layer: str) -> Sequence[Moments]:
        """Return what `channel_moments` of the training rows are the sum of; empty where no shards are kept."""
        streams = [self.shards(domain, reader.stream) for reader in self.readers(layer)]
        return [self._joint(layer, parts) for parts in zip(*streams, strict=True)]

    def channel_heldout(self, target: str, domain: str | None, layer: str) -> Moments | None:
        """Return what `heldout` does, of the layer's channels as they are read."""
        parts = [self.heldout(target, domain, reader.stream) for reader in self.readers(layer)]
        known = [part for part in parts if part is not None]
        return self._joint(layer, known) if known and len(known) == len(parts) else None

    def _joint(self, layer: str, moments: Sequence[Moments]) -> Moments:
        return channel_moments(self.readers(layer), self.shape(layer).outputs, moments)

    def moments(self, domain: str, layer: str, part: str = TRAINING) -> Moments:
        """Return one moment record, checked to come from the network of this store."""
        path, made_from = self._path(domain, layer, part), self._made_from(domain, layer, part)
        if provenance_of(path) != provenance_of(self._path(domain, layer, TRAINING)):
            raise FingerprintMismatchError(
                f"'{path}' and the training part beside it were made from other rows: an accumulation was killed "
                "between the two; accumulate again"
            )
        if made_from != self.manifest.network.fingerprint:
            raise FingerprintMismatchError(
                f"'{path}' was made from the network with fingerprint {made_from[:12]}, the store holds "
                f"{self.manifest.network.fingerprint[:12]}: accumulate again"
            )
        record = self.manifest.domains.get(domain)
        if record is not None and record.shards and (provenance_of(path) or {})["rows"] != record.fingerprint(layer):
            raise FingerprintMismatchError(
                f"'{path}' is not the sum of the shards that the store now holds: a merge was killed; merge again"
            )
        moments = open_moments(path, partial(self.rows, domain, layer, part))
        if record is not None and record.has(layer) and moments.features != record.layers[record.home(layer)].features:
            raise StoreDamagedError(
                f"'{path}' has {moments.features} features, the rows of '{layer}' on '{domain}' have "
                f"{record.layers[record.home(layer)].features}: accumulate again"
            )
        return moments

    def training_rows(self, domain: str, layer: str) -> int:
        """Return the rows behind a layer's training moments, without reading their arrays."""
        self._made_from(domain, layer, TRAINING)
        return moments_count(self._path(domain, layer, TRAINING))

    def _made_from(self, domain: str, layer: str, part: str) -> str:
        """Return the fingerprint of the network that a moment record was made from; it is there."""
        made_from = (provenance_of(self._path(domain, layer, part)) or {}).get("network")
        if made_from is None:
            ActivationStore(self.root).domain(domain)  # which names those there are
            raise StoreNotFoundError(
                f"'{self.root}': no moments of layer '{layer}' on '{domain}': run accumulate first"
            )
        return str(made_from)

    def rows(self, domain: str, layer: str, part: str = TRAINING) -> StoredRows | None:
        """Return the rows that a moment record is of; None where they are not here, or are others by now."""
        record, made_from = self.manifest.domains.get(domain), provenance_of(self._path(domain, layer, part)) or {}
        if record is None or not self._has_rows(domain, layer) or made_from.get("rows") != record.fingerprint(layer):
            return None
        return StoredRows(
            ActivationStore(self.root, self.manifest), domain, layer, self.holdout(domain, layer), part == HELDOUT
        )

    def moments_provenance(self, domains: Sequence[str]) -> list[Any]:
        """Return what every moment record of these domains was made from: what solutions depend on."""
        paths = [
            self._path(domain, layer, part)
            for domain in domains
            for layer in self.manifest.network.layers
            for part in PARTS
        ]
        return [provenance_of(path) for path in paths]

    def shards(self, domain: str, layer: str) -> Sequence[Moments]:
        """Return what a layer's training moments are the sum of: captures that were merged, or shards of one capture.

        Empty where there are none. Raises FingerprintMismatchError where one is not of the sum that is there.
        """
        path = self._path(domain, layer, TRAINING)
        made_from, record = provenance_of(path) or {}, self.manifest.domains.get(domain)
        if record is not None and record.shards:
            home = record.home(layer)
            return StoredRecords([shard_path(self.root, domain, name, home, TRAINING) for name in record.shards])
        paths = [path.with_name(part) for part in shard_parts(made_from.get("rule", {}).get("shards", 1))]
        for shard in paths:
            if provenance_of(shard) != made_from:
                raise FingerprintMismatchError(f"'{shard}' is not of the training record beside it: accumulate again")
        return StoredRecords(paths)

    def holdout(self, domain: str, layer: str) -> HoldoutRule:
        """Return the rule by which rows were held out when a layer's moments were accumulated."""
        made_from = provenance_of(self._path(domain, layer, TRAINING))
        if made_from is None:
            raise StoreNotFoundError(
                f"'{self.root}': no moments of layer '{layer}' on '{domain}' say which rows are held out: accumulate "
                "first, or give holdout="
            )
        return HoldoutRule(**made_from["rule"]["holdout"])

    def _path(self, domain: str, layer: str, part: str) -> Place:
        """Return where a layer's moments lie: with those of a layer that reads the same, where there is one."""
        record = self.manifest.domains.get(domain, DomainRecord())
        return moments_path(self.root, domain, record.home(layer), part)

    def heldout(self, target: str, domain: str | None, layer: str) -> Moments | None:
        """Return the held-out moments, which only measure: of `domain`, or of the target's held-out share."""
        heldout = self.all_rows(domain, layer) if domain is not None else self.moments(target, layer, HELDOUT)
        return heldout if heldout.count else None

    def all_rows(self, domain: str, layer: str) -> Moments:
        """Return the moments of every row of a domain, training and held-out."""
        return self.moments(domain, layer) + self.moments(domain, layer, HELDOUT)

    def layer(self, layer: str, target: str, source: str | None) -> Layer:
        """Return a layer with its weights and its moments on the target, and its nodes on a source domain."""
        there = None if source is None else self.statistics(source)
        return dataclasses.replace(self.statistics(target), source=there)[layer]

    def statistics(self, domain: str) -> Statistics:
        """Return every layer with its weights and its moments on a domain, each read when it is asked for."""
        streams = tuple(self.manifest.network.layers)
        moments = LayerMoments(
            OnDemand(streams, partial(self.moments, domain)),
            OnDemand([name for name in streams if self._has_heldout(domain, name)], partial(self._heldout, domain)),
            OnDemand([name for name in streams if self._has_shards(domain, name)], partial(self.shards, domain)),
        )
        watched = self.manifest.network.layers
        weights = partial(stored_weights, self.root, watched)
        rows = OnDemand([name for name in streams if self._has_rows(domain, name)], partial(self.rows, domain))
        return Statistics(watched, moments, weights, rows=rows)

    def solutions(self, layer: str, methods: Sequence[Method]) -> dict[Method, Solution]:
        """Return the layer's solutions, by method."""
        return {method: self._solution(layer, method) for method in methods}

    def notes(self, layer: str, method: Method) -> tuple[str, ...]:
        """Return what was noted on the way to a solution, each note once; its arrays are not read."""
        parts = (load_diagnostics(self.root, part, method) for part in self.parts(layer))
        return tuple(dict.fromkeys(note for part in parts for note in part.notes))

    def solution_paths(self, layer: str, method: Method) -> list[Place]:
        """Return where a solution of a layer lies: a record for each of its parts."""
        return [solution_path(self.root, part, method) for part in self.parts(layer)]

    def _heldout(self, domain: str, stream: str) -> Moments:
        return self.moments(domain, stream, HELDOUT)

    def _has_heldout(self, domain: str, stream: str) -> bool:
        path = self._path(domain, stream, HELDOUT)
        return path.is_dir() and moments_count(path) > 0

    def _has_rows(self, domain: str, stream: str) -> bool:
        record = self.manifest.domains.get(domain)
        if record is None or not record.has(stream) or record.shards:
            return False
        return rows_exist(self.root, domain, record.home(stream))

    def _has_shards(self, domain: str, stream: str) -> bool:
        record, made_from = self.manifest.domains.get(domain), provenance_of(self._path(domain, stream, TRAINING)) or {}
        return bool(record is not None and record.shards) or made_from.get("rule", {}).get("shards", 1) > 1

    def _solution(self, layer: str, method: Method) -> Solution:
        solutions = [load_solution(self.root, part, method) for part in self.parts(layer)]
        if isinstance(solutions[0], ChannelSelection | HeadFactors):
            return solutions[0]
        return factors_of(cast("list[LowRankFactors]", solutions))
