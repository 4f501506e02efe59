"""What a merge starts from: the moment records of independent captures, and whether they may be added.

A shard is one capture of one domain: both parts of every layer's moments. Its name is a digest of its rows, so it is
called the same wherever it lies, in the store that captured it or beside the sum in a merged one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dalr_stream.errors import FingerprintMismatchError, InvalidInputError, StoreError, StoreNotFoundError
from dalr_stream.numerics.statistics.folding import SplitMoments
from dalr_stream.storage.contents import DomainRecord, RowsRecord
from dalr_stream.storage.places.place import Place
from dalr_stream.storage.records.catalogue import check_record
from dalr_stream.storage.records.moments import load_mean, load_moments, moments_count, moments_path, shard_path
from dalr_stream.storage.records.record import provenance_of
from dalr_stream.storage.schema import PARTS
from dalr_stream.storage.store import ActivationStore
from dalr_stream.streaming.folding import unrounded

_APART = "capture parts of the data that do not overlap"
SAME_MEAN = 1e-5
"""Of a feature's largest value: means of the same rows computed in other batches differ by less (float32: some 1e-7),
those of other rows by about 1 / sqrt(n), and not in every feature of every layer by so little."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One capture of one domain, where it lies now."""

    domain: str
    root: Place
    """The store it lies in."""
    name: str
    """Digest of the rows it came from."""
    record: DomainRecord = field(repr=False)
    merged: bool
    """Whether it lies there as one of several, not as the domain itself."""

    @property
    def origin(self) -> str:
        """The store, in words."""
        return f"shard {self.name} of '{self.root}'" if self.merged else f"'{self.root}'"

    def path(self, layer: str, part: str) -> Place:
        """Return the folder of one of its records."""
        if self.merged:
            return shard_path(self.root, self.domain, self.name, layer, part)
        return moments_path(self.root, self.domain, layer, part)

    def load(self, layer: str) -> SplitMoments:
        """Read one layer's moments, checking their digests."""
        training, heldout = (load_moments(self.path(layer, part)) for part in PARTS)
        return SplitMoments(training, heldout)


def shards_in(store: ActivationStore, domain: str | None) -> Iterator[Shard]:
    """Yield the shards of one domain of a store, or of all; a merged domain gives the ones it was made from.

    Raises StoreNotFoundError for a domain it has not, StoreError for one that is not complete.
    """
    if not store.manifest.domains:
        raise StoreNotFoundError(f"'{store.root}' has no domain to merge: capture and accumulate one first")
    for name in store.manifest.domains if domain is None else (domain,):
        record = store.domain(name)
        if not record.complete:
            raise StoreError(f"'{store.root}': domain '{name}' is not complete: run the capture again to resume it")
        if record.shards:
            yield from (Shard(name, store.root, key, shard, merged=True) for key, shard in record.shards.items())
        else:
            yield Shard(name, store.root, record.shard_name, record, merged=False)


def require_addable(shards: Sequence[Shard], network: str, added: Collection[str] = ()) -> None:
    """Raise where the `shards` of one domain are not made by one rule from the same layers of rows counted once.

    Also reads every record whole, so that a damaged one is found before anything is written. Those named in `added`
    were found addable to one another before: of them only the first says by which rule, and their rows are compared.
    """
    _require_rows_once(shards)
    rules: dict[str, Any] = {}
    reference = next((shard for shard in shards if shard.name in added), None)
    for shard in shards:
        _require_same_layers(shards[0], shard)
        for layer in shard.record.layers if shard is reference or shard.name not in added else ():
            rule = _rule(shard, layer, network)
            if rules.setdefault(layer, rule) != rule:
                raise FingerprintMismatchError(
                    f"domain '{shard.domain}', layer '{layer}': {shards[0].origin} was accumulated by {rules[layer]}, "
                    f"{shard.origin} by {rule}: accumulate both with the same holdout and shards"
                )
            for part in PARTS if shard is not reference else ():
                check_record(shard.root, shard.path(layer, part))
    _require_moments_once(shards, added)


def _require_rows_once(shards: Sequence[Shard]) -> None:
    """Refuse equal shards and, in unequal ones, equal batches and tiles; a single sample may well occur twice."""
    names: dict[str, Shard] = {}
    batches: dict[str, tuple[Shard, int]] = {}
    for shard in shards:
        twin = names.setdefault(shard.name, shard)
        if twin is not shard:
            raise InvalidInputError(
                f"domain '{shard.domain}': {twin.origin} and {shard.origin} hold the same rows, which would count "
                "twice: name one of them only"
            )
        for number, batch in enumerate(shard.record.batches):
            if batch.samples > 1:
                first, at = batches.setdefault(batch.digest, (shard, number))
                if first is not shard:
                    raise InvalidInputError(
                        f"domain '{shard.domain}': batch {number} of {shard.origin} is batch {at} of {first.origin}, "
                        f"and its rows would count twice: {_APART}"
                    )
    for first, shard, layer, tile in _equal_tiles(shards):
        raise InvalidInputError(
            f"domain '{shard.domain}': from tile {tile} of layer '{layer}' on, {shard.origin} holds rows of "
            f"{first.origin}, in batches of other sizes, and they would count twice: {_APART}"
        )


def _equal_tiles(shards: Sequence[Shard]) -> Iterator[tuple[Shard, Shard, str, int]]:
    """Yield pairs of shards with equal tiles at equal distances: the same rows, however they were batched.

    One equal digest among many tiles may be chance (32 bits), or a tile of zeros: two different ones are not, where
    neither occurs twice in its shard.
    """
    seen: dict[tuple[str, int], tuple[int, int]] = {}
    matches: dict[tuple[int, int, str, int], int] = {}
    for number, shard in enumerate(shards):
        for layer, rows in shard.record.layers.items():
            repeated = Counter(rows.tile_digests)
            for tile, digest in enumerate(rows.tile_digests):
                if repeated[digest] > 1:
                    continue
                first, at = seen.setdefault((layer, digest), (number, tile))
                if first == number:
                    continue
                key = (first, number, layer, tile - at)
                if key in matches:
                    yield shards[first], shard, layer, matches[key]
                matches[key] = tile


def _require_moments_once(shards: Sequence[Shard], added: Collection[str]) -> None:
    """Refuse shards whose moments agree in every layer: the same rows, in batches of other sizes.

    The batch size changes the last bits of what a network computes, and so of moments; other rows change far more.
    Only shards of equal counts are compared, by their means, and not those `added` before among themselves.
    """
    by_rows: dict[tuple[int, ...], list[Shard]] = {}
    for shard in shards:
        rows = tuple(shard.record.layers[layer].rows for layer in sorted(shard.record.layers))
        by_rows.setdefault(rows, []).append(shard)
    for rows, alike in by_rows.items():
        if len(alike) > 1 and any(rows) and any(shard.name not in added for shard in alike):
            _require_other_means(alike, added)


def _require_other_means(shards: Sequence[Shard], added: Collection[str]) -> None:
    """Compare each shard to those whose means in one layer add up to the same; sorted, these are neighbours."""
    layers = shards[0].record.layers
    parts = [(layer, part) for layer in sorted(layers, key=lambda name: -layers[name].rows) for part in PARTS]
    sums = [_sum_of_mean(shard, *parts[0]) for shard in shards]
    ordered = sorted(zip(sums, shards, strict=True), key=lambda pair: pair[0])
    for number, ((count, total, scale), shard) in enumerate(ordered):
        for (next_count, next_total, _), other in ordered[number + 1 :]:
            if next_count > count or next_total - total > SAME_MEAN * scale:
                break
            known = shard.name in added and other.name in added
            if not known and _same_moments(shard, other, parts):
                raise InvalidInputError(
                    f"domain '{shard.domain}': the moments of {shard.origin} and of {other.origin} agree in every "
                    f"layer, so their rows are the same, and would count twice: {_APART}"
                )


def _sum_of_mean(shard: Shard, layer: str, part: str) -> tuple[int, float, float]:
    """Return the rows behind a record, and the sums of its mean and of its largest |x|."""
    path = shard.path(layer, part)
    mean, scale = load_mean(path)
    return moments_count(path), float(mean.sum()), float(scale.sum())


def _same_moments(shard: Shard, other: Shard, parts: Sequence[tuple[str, str]]) -> bool:
    """Tell whether two shards have equal counts and means in every layer, of any rows at all."""
    counts = [[moments_count(one.path(*part)) for part in parts] for one in (shard, other)]
    if counts[0] != counts[1] or not any(counts[0]):
        return False
    return all(_same_mean(shard.path(*part), other.path(*part)) for part in parts)


def _same_mean(one: Place, other: Place) -> bool:
    (mean, scale), (twin, _) = load_mean(one), load_mean(other)
    return bool((np.abs(mean - twin) <= SAME_MEAN * scale).all())


def _require_same_layers(first: Shard, shard: Shard) -> None:
    for layer in {**first.record.shared, **shard.record.shared}:
        homes = [one.record.home(layer) for one in (first, shard)]
        if homes[0] != homes[1] and all(layer in one.record.names for one in (first, shard)):
            raise FingerprintMismatchError(
                f"domain '{shard.domain}': in {first.origin} the rows of layer '{layer}' are those of '{homes[0]}', in "
                f"{shard.origin} those of '{homes[1]}': capture again so that the same layers read the same tensor"
            )
    here, there = (
        {name: (rows.features, rows.dtype, rows.rows_per_sample) for name, rows in _by_name(one.record).items()}
        for one in (first, shard)
    )
    if here != there:
        raise FingerprintMismatchError(
            f"domain '{shard.domain}': {first.origin} holds {_in_words(here)}, {shard.origin} holds "
            f"{_in_words(there)}: watch the same layers in every capture"
        )


def _by_name(record: DomainRecord) -> dict[str, RowsRecord]:
    return {name: record.layers[record.home(name)] for name in record.names}


def _in_words(layers: Mapping[str, tuple[int, str, int]]) -> str:
    facts = [f"'{name}' ({d} features of {dtype}, {rows} rows a sample)" for name, (d, dtype, rows) in layers.items()]
    return ", ".join(facts)


def _rule(shard: Shard, layer: str, network: str) -> Any:
    """Return the rule by which a layer of a shard was folded, having checked that both parts are of its rows."""
    found = [provenance_of(shard.path(layer, part)) for part in PARTS]
    if found[0] is None:
        raise StoreNotFoundError(
            f"{shard.origin}: no moments of layer '{layer}' on '{shard.domain}': run accumulate first"
        )
    rows = {"rows": shard.record.fingerprint(layer), "choice": shard.record.choice}
    rule = found[0].get("rule") or {}
    expected = {"network": network, **rows, "rule": rule}
    if found != [expected, expected]:
        raise FingerprintMismatchError(
            f"{shard.origin}: the moments of layer '{layer}' on '{shard.domain}' were made from other rows than the "
            "store holds: accumulate again"
        )
    return {"choice": shard.record.choice, **unrounded(rule)}
