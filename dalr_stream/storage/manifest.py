"""What made a store and which of its rows are committed: one small JSON file, replaced whole.

zarr's own metadata says how long an array is, not how much of it was written: killed between a resize and a write, an
array ends in rows that nobody wrote. So a row counts when the manifest says so, and the manifest is written only after
the rows lie on disk. It carries a digest of itself.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from dalr_stream.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    StoreDamagedError,
    StoreError,
    StoreNotFoundError,
)
from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.rows.probe import Probe
from dalr_stream.numerics.rows.tiling import tile_rows
from dalr_stream.numerics.statistics.channels import ChannelReader
from dalr_stream.storage.batches import Batches
from dalr_stream.storage.buckets.claim import claim_to
from dalr_stream.storage.contents import (
    DomainRecord,
    LayerRecord,
    NetworkRecord,
    RowsRecord,
    plain_fields,
    require_names,
)
from dalr_stream.storage.json_record import digest_of
from dalr_stream.storage.layout import MANIFEST
from dalr_stream.storage.places.path import BucketPath
from dalr_stream.storage.places.place import Place, write_file
from dalr_stream.storage.schema import READABLE, SCHEMA_VERSION, require_count

FILE = MANIFEST
_ADDED: Mapping[type, Mapping[str, Any]] = {
    LayerRecord: {"bias_digest": "", "heads": None, "no_heads": ""},
    RowsRecord: {"samples": 0},
}
"""What manifests of this schema may lack, as they were written before."""
_PLAIN = {"int": int, "str": str, "bool": bool}
_Record = TypeVar("_Record", "NetworkRecord", "LayerRecord", "RowsRecord", "DomainRecord")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The whole of `manifest.json`."""

    network: NetworkRecord
    domains: Mapping[str, DomainRecord] = field(default_factory=dict)
    schema: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        require_names("domain", self.domains)
        for domain in self.domains.values():
            unknown = set(domain.layers) - set(self.network.layers)
            if unknown:
                raise InvalidInputError(f"a domain has rows of '{min(unknown)}', which the network does not have")

    def with_domain(self, name: str, domain: DomainRecord) -> Manifest:
        """Return the manifest with one domain replaced."""
        return dataclasses.replace(self, domains={**self.domains, name: domain})

    def plain(self) -> dict[str, Any]:
        """Return it in plain values, as they are written."""
        domains = {name: _plain_domain(domain) for name, domain in self.domains.items()}
        return {"network": dataclasses.asdict(self.network), "domains": domains, "schema": self.schema}

    def write(self, root: Place) -> None:
        """Commit: after this returns, what the manifest says holds through a power cut.

        In a bucket it carries a word drawn for the commit, so that a writer knows its own.
        """
        if isinstance(root, BucketPath):
            claim_to(root).commit(partial(_sealed, self.plain()))
        else:
            write_file(root / FILE, _sealed(self.plain()))

    @classmethod
    def read(cls, root: Place) -> Manifest:
        """Read the manifest of the store at `root`; raises StoreNotFoundError and StoreDamagedError."""
        path = root / FILE
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            problem = f"'{root}' is not a dalr_stream store (it has no {FILE})"
            if not root.exists():
                problem = f"there is nothing at '{root}'"
            raise StoreNotFoundError(f"{problem}: name the folder of a store, or capture to it first") from None
        except OSError as error:
            raise StoreError(f"'{path}' cannot be read ({error}): check the disk and your permissions") from error
        remedy = f"delete '{root}' and capture again"
        body = _unsealed(path, data, remedy)
        try:
            if body["schema"] not in READABLE:
                raise FingerprintMismatchError(
                    f"'{root}' has schema version {body['schema']}, this version reads {SCHEMA_VERSION}: "
                    "capture again, or use the version that wrote it"
                )
            return _manifest(body)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise StoreDamagedError(f"'{path}' is damaged: it does not describe a store ({error}); {remedy}") from error


def _plain_domain(record: DomainRecord) -> dict[str, Any]:
    layers = {name: plain_fields(rows) for name, rows in record.layers.items()}
    shards = {name: _plain_domain(shard) for name, shard in record.shards.items()}
    batches = record.batches.plain()
    return {**plain_fields(record), "batches": batches, "layers": layers, "shards": shards}


def _sealed(body: Any, commit: str = "") -> bytes:
    drawn = {"commit": commit} if commit else {}
    return json.dumps({"digest": digest_of(body), "manifest": body, **drawn}).encode()


def _unsealed(path: Place, data: bytes, remedy: str) -> Any:
    """Return the body of what `_sealed` gave; raises StoreDamagedError."""
    try:
        document = json.loads(data)
        body, commit = document["manifest"], document.get("commit", "")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StoreDamagedError(f"'{path}' is damaged: it cannot be read as a manifest ({error}); {remedy}") from None
    if data != _sealed(body, commit):
        raise StoreDamagedError(f"'{path}' is damaged: its digest does not match its contents; {remedy}")
    return body


def _manifest(body: dict[str, Any]) -> Manifest:
    network = body["network"]
    layers = {
        name: _record(
            LayerRecord,
            layer,
            readers=tuple(ChannelReader.of_plain(one) for one in layer["readers"]),
            heads=None if layer.get("heads") is None else HeadLayout(**layer["heads"]),
        )
        for name, layer in network["layers"].items()
    }
    domains = {name: _domain(domain) for name, domain in body["domains"].items()}
    probes = tuple(
        Probe(**{**probe, "numbers": tuple(map(float, probe["numbers"]))}) for probe in network.get("probes", ())
    )
    return Manifest(_record(NetworkRecord, network, layers=layers, probes=probes), domains)


def _domain(body: dict[str, Any]) -> DomainRecord:
    layers = {
        name: _record(RowsRecord, rows, tile_digests=_tile_digests(rows)) for name, rows in body["layers"].items()
    }
    batches = Batches.of_plain(body["batches"])
    shards = {name: _domain(shard) for name, shard in body["shards"].items()}
    return _record(DomainRecord, body, layers=layers, batches=batches, shards=shards)


def _tile_digests(rows: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the digests of a layer's tiles: one for each, or none where rows were folded and not kept."""
    digests = tuple(require_count(digest, "the digest of a tile", 0, 2**32 - 1) for digest in rows["tile_digests"])
    tiles = -(-require_count(rows["rows"], "rows") // tile_rows(require_count(rows["features"], "features", 1)))
    if digests and len(digests) != tiles:
        raise ValueError(f"{rows['rows']} rows are {tiles} tiles, and there are digests of {len(digests)}")
    return digests


def _record(kind: type[_Record], body: Mapping[str, Any], **parsed: Any) -> _Record:
    """Return a record of plain values and what was `parsed` of them; raises TypeError for values of other kinds."""
    values = {**_ADDED.get(kind, {}), **body, **parsed}
    for part in dataclasses.fields(kind):
        if part.type in _PLAIN and type(values.get(part.name)) is not _PLAIN[part.type]:
            raise TypeError(f"{part.name} must be {part.type}, got {values.get(part.name)!r}")
    return kind(**values)
