"""What a merge starts from: the moment records of independent captures, and whether they may be added.

A shard is one capture of one domain: both parts of every layer's moments. Its name is a digest of its rows, so it is
called the same wherever it lies, in the store that captured it or beside the sum in a merged one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dalr_stream.errors import FingerprintMismatchError, InvalidInputError, StoreError, StoreNotFoundError
from dalr_stream.numerics.statistics.folding import SplitMoments
from dalr_stream.storage.manifest import DomainRecord, RowsRecord
from dalr_stream.storage.records import check_record, load_moments, moments_path, provenance_of, shard_path
from dalr_stream.storage.schema import PARTS
from dalr_stream.storage.store import ActivationStore


@dataclass(frozen=True, slots=True)
class Shard:
    """One capture of one domain, where it lies now."""

    domain: str
    root: Path
    """The store it lies in."""
    record: DomainRecord = field(repr=False)
    merged: bool
    """Whether it lies there as one of several, not as the domain itself."""

    @property
    def name(self) -> str:
        """Digest of the rows it came from."""
        return self.record.shard_name

    @property
    def origin(self) -> str:
        """The store, in words."""
        return f"shard {self.name} of '{self.root}'" if self.merged else f"'{self.root}'"

    def path(self, layer: str, part: str) -> Path:
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
            raise StoreError(f"'{store.root}': domain '{name}' is not complete: run the capture again, it goes on")
        if record.shards:
            yield from (Shard(name, store.root, shard, merged=True) for shard in record.shards.values())
        else:
            yield Shard(name, store.root, record, merged=False)


def require_addable(shards: Sequence[Shard], network: str) -> None:
    """Raise where the `shards` of one domain are not made by one rule from the same layers of rows counted once.

    Also reads every record whole, so that a damaged one is found before anything is written.
    """
    _require_rows_once(shards)
    rules: dict[str, Any] = {}
    for shard in shards:
        _require_same_layers(shards[0], shard)
        for layer in shard.record.layers:
            rule = _rule(shard, layer, network)
            if rules.setdefault(layer, rule) != rule:
                raise FingerprintMismatchError(
                    f"domain '{shard.domain}', layer '{layer}': {shards[0].origin} was accumulated by {rules[layer]}, "
                    f"{shard.origin} by {rule}: accumulate both with the same holdout and shards"
                )
            for part in PARTS:
                check_record(shard.path(layer, part))


def _require_rows_once(shards: Sequence[Shard]) -> None:
    """Refuse equal shards and, in unequal ones, equal batches; a single sample may well occur twice."""
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
                        "and its rows would count twice: capture parts of the data that do not overlap"
                    )


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
    return {"choice": shard.record.choice, **rule}
