"""What made a store and which of its rows are committed: one small JSON file, replaced whole.

zarr's own metadata says how long an array is, not how much of it was written: killed between a resize and a write, an
array ends in rows that nobody wrote. So a row counts when the manifest says so, and the manifest is written only after
the rows lie on disk. It carries a digest of itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dalr_stream.errors import FingerprintMismatchError, StoreDamagedError, StoreError, StoreNotFoundError
from dalr_stream.storage.durable import write_file
from dalr_stream.storage.schema import SCHEMA_VERSION

FILE = "manifest.json"


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """A layer of the network the store was made from."""

    kind: str
    inputs: int
    outputs: int
    weight_digest: str
    consumers: tuple[str, ...] = ()
    """Layers that read this one's nodes; empty where a selection of its nodes is not possible."""
    next_outputs: int = 0
    """Outputs of those readers together: what a selection saves there per node."""
    unprunable: str = ""
    """Why it is not possible."""


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    """The network the store was made from: a digest of its whole state, and the watched layers."""

    fingerprint: str
    layers: Mapping[str, LayerRecord]


@dataclass(frozen=True, slots=True)
class RowsRecord:
    """The committed rows of one layer on one domain."""

    features: int
    dtype: str
    rows_per_sample: int
    rows: int = 0
    tile_digests: tuple[int, ...] = ()
    """CRC-32 of each committed tile's bytes, before compression."""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch of the network's input."""

    samples: int
    digest: str


@dataclass(frozen=True, slots=True)
class DomainRecord:
    """One domain: its batches in order, and the rows they became."""

    complete: bool = False
    batches: tuple[BatchRecord, ...] = ()
    layers: Mapping[str, RowsRecord] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Samples in all batches seen."""
        return sum(batch.samples for batch in self.batches)

    @property
    def committed_samples(self) -> int:
        """Samples all of whose rows, in every layer, are on disk."""
        return min((self.samples_of(layer) for layer in self.layers), default=0)

    def samples_of(self, layer: str) -> int:
        """Return how many samples have all of their rows of this layer on disk."""
        rows = self.layers[layer]
        return rows.rows // rows.rows_per_sample

    def fingerprint(self, layer: str) -> str:
        """Digest of the rows of one layer: equal digests, equal rows."""
        rows = self.layers[layer]
        return digest_of({"rows": dataclasses.asdict(rows), "batches": [b.digest for b in self.batches]})


@dataclass(frozen=True, slots=True)
class Manifest:
    """The whole of `manifest.json`."""

    network: NetworkRecord
    domains: Mapping[str, DomainRecord] = field(default_factory=dict)
    schema: int = SCHEMA_VERSION

    def with_domain(self, name: str, domain: DomainRecord) -> Manifest:
        """Return the manifest with one domain replaced."""
        return dataclasses.replace(self, domains={**self.domains, name: domain})

    def write(self, root: Path) -> None:
        """Commit: after this returns, what the manifest says holds through a power cut."""
        write_file(root / FILE, _sealed(dataclasses.asdict(self)))

    @classmethod
    def read(cls, root: Path) -> Manifest:
        """Read the manifest of the store at `root`; raises StoreNotFoundError and StoreDamagedError."""
        path = root / FILE
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise StoreNotFoundError(
                f"'{root}' is not a dalr_stream store (it has no {FILE}): capture to it first"
            ) from None
        except OSError as error:
            raise StoreError(f"'{path}' cannot be read ({error}): check the disk and your rights") from error
        try:
            body = json.loads(data)["manifest"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreDamagedError(f"'{path}' is damaged: it cannot be read as a manifest ({error})") from None
        if data != _sealed(body):
            raise StoreDamagedError(f"'{path}' is damaged: its digest does not match its contents")
        if body["schema"] != SCHEMA_VERSION:
            raise FingerprintMismatchError(
                f"'{root}' has schema version {body['schema']}, this version reads {SCHEMA_VERSION}: "
                "capture again, or use the version that wrote it"
            )
        return _manifest(body)


def _sealed(body: Any) -> bytes:
    return json.dumps({"digest": digest_of(body), "manifest": body}).encode()


def digest_of(plain: Any) -> str:
    """SHA-256 of a JSON-like value, whatever the order of its keys."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _manifest(body: dict[str, Any]) -> Manifest:
    network = body["network"]
    layers = {
        name: LayerRecord(**{**layer, "consumers": tuple(layer["consumers"])})
        for name, layer in network["layers"].items()
    }
    domains = {name: _domain(domain) for name, domain in body["domains"].items()}
    return Manifest(NetworkRecord(network["fingerprint"], layers), domains, body["schema"])


def _domain(body: dict[str, Any]) -> DomainRecord:
    layers = {
        name: RowsRecord(**{**rows, "tile_digests": tuple(rows["tile_digests"])})
        for name, rows in body["layers"].items()
    }
    return DomainRecord(body["complete"], tuple(BatchRecord(**batch) for batch in body["batches"]), layers)
