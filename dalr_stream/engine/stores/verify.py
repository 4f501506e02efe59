"""Reads everything a store holds, compares it to its digests, and says all that is wrong: not only the first of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Any

from dalr_stream.engine.stores.sums import Addition, Branch
from dalr_stream.errors import StoreDamagedError, StoreError, StoreNotFoundError
from dalr_stream.numerics.rows.streams import layer_of_stream
from dalr_stream.numerics.statistics.folding import SplitMoments
from dalr_stream.numerics.statistics.merging import merge_all
from dalr_stream.progress import Advance, Progress, Silent
from dalr_stream.storage.contents import DomainRecord
from dalr_stream.storage.layout import links
from dalr_stream.storage.manifest import Manifest
from dalr_stream.storage.metadata import require_group
from dalr_stream.storage.places.place import Place, below, folders, place_of
from dalr_stream.storage.records.catalogue import check_record, records
from dalr_stream.storage.records.moments import features_of_moments, load_moments, moments_path, shard_parts
from dalr_stream.storage.records.record import origin_of, provenance_of
from dalr_stream.storage.records.weights import load_layer_weights, weights_path
from dalr_stream.storage.schema import HELDOUT, PARTS, TRAINING
from dalr_stream.storage.store import ActivationStore


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with one part of a store."""

    part: str
    """The part, by its path in the store or as domain/layer."""
    problem: str
    """What is wrong with it, and the remedy."""

    def __str__(self) -> str:
        return f"{self.part}: {self.problem}"


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found in a store: the parts that are whole, a line each, and everything that is wrong."""

    root: Place
    whole: tuple[str, ...]
    findings: tuple[Finding, ...]

    def require(self) -> None:
        """Raise StoreDamagedError, naming the first finding, where there are any."""
        if self.findings:
            raise StoreDamagedError(f"'{self.root}': {len(self.findings)} findings, the first: {self.findings[0]}")


def verify_store(root: str | Place, *, progress: Progress | None = None) -> Verification:
    """Read every tile and every record of a store and return what is whole and what is not.

    Looks at bytes (digests, lost and cut files), coverage (each layer of a domain saw all of its samples, and the
    capture was finished), identity (each record lies under its own name, has its layer's shape, and weights are those
    of the manifest) and fingerprints (each record was made from the manifest's network, and moments from the rows that
    are there). No link may stand in it. Activations that are not there are listed as not kept; their moments do not
    depend on them. Merged moments are added up again from their shards. Changes nothing. Cost: one read of the store.

    Raises StoreNotFoundError where there is no store at all.
    """
    root = place_of(root)
    checked = _Checked(root, progress or Silent())
    store: ActivationStore | None = None
    try:
        store = ActivationStore(root)
    except StoreError as error:
        if isinstance(error, StoreNotFoundError) and not _folders(root):
            raise
        checked.wrong("manifest.json", error)
    checked.links()
    if store is not None:
        checked.groups(store.manifest)
        checked.coverage(store)
        checked.tiles(store)
    checked.records(None if store is None else store.manifest)
    return Verification(root, tuple(checked.whole), tuple(checked.findings))


class _Checked:
    """Gathers what was found so far."""

    def __init__(self, root: Place, progress: Progress) -> None:
        self.whole: list[str] = []
        self.findings: list[Finding] = []
        self._root = root
        self._progress = progress

    def wrong(self, part: str | PurePath, problem: object) -> None:
        self.findings.append(Finding(str(part), str(problem)))

    def links(self) -> None:
        """Check that nothing in the store leads elsewhere: a writer would refuse it."""
        try:
            for link in links(self._root):
                self.wrong(below(self._root, link), "is a link: put what it leads to in its place")
        except StoreError as error:
            self.wrong("folders", error)

    def groups(self, manifest: Manifest) -> None:
        """Check the groups around the arrays: they carry no number, but other zarr readers walk through them."""
        domains = [path for path in folders(self._root / "activations") if path.name in manifest.domains]
        around = [self._root / "activations"] if domains else []
        for folder in (self._root, *around, *domains):
            try:
                require_group(folder)
            except StoreDamagedError as error:
                self.wrong(below(self._root, folder) / "zarr.json", f"{error}: the next capture writes it again")
            except StoreError as error:
                self.wrong(below(self._root, folder) / "zarr.json", error)

    def coverage(self, store: ActivationStore) -> None:
        """Check that every domain is complete, and that each of its layers saw all of its samples."""
        for domain, record in store.manifest.domains.items():
            if not record.complete:
                samples = record.committed_samples
                self.wrong(domain, f"not complete, {samples} samples are committed: capture again to resume")
                continue
            for layer, rows in record.layers.items():
                if not rows.covers(record.samples):
                    seen = f"saw {rows.committed_samples} of {record.samples} samples in {rows.rows} rows"
                    self.wrong(f"{domain}/{layer}", f"{seen}: capture the domain again")

    def tiles(self, store: ActivationStore) -> None:
        """Read every committed tile."""
        for domain, record in store.manifest.domains.items():
            for layer, rows in record.layers.items():
                if record.shards:
                    self._sum(store, domain, layer)
                    continue
                self._dealt(store.root, domain, layer)
                if not store.has_rows(domain, layer):
                    self.whole.append(f"{domain}/{layer}: {rows.rows:,} rows, not kept")
                    continue
                tiles = store.tiles(domain, layer)
                with self._progress.track(f"verify {domain}/{layer}", tiles, "tiles") as advance:
                    damaged = [tile for tile in range(tiles) if not self._tile(store, domain, layer, tile, advance)]
                if not damaged:
                    parts = "1 tile" if tiles == 1 else f"{tiles} tiles"
                    self.whole.append(f"{domain}/{layer}: {rows.rows:,} rows in {parts}")
            self.whole += [f"{domain}/{layer}: the rows of {home}" for layer, home in record.shared.items()]

    def records(self, manifest: Manifest | None) -> None:
        """Read every record, and compare what it was made from to the manifest."""
        for path in self._listed():
            name = below(self._root, path)
            try:
                check_record(self._root, path)
                problems = [] if manifest is None else list(_mismatches(self._root, path, manifest))
            except StoreError as error:
                problems = [str(error)]
            for problem in problems:
                self.wrong(name, problem)
            if not problems:
                self.whole.append(f"{name}: whole")
        streams = () if manifest is None or not manifest.domains else manifest.network.layers
        for layer in dict.fromkeys(layer_of_stream(stream) for stream in streams):
            if not weights_path(self._root, layer).is_dir():
                self.wrong(f"weights/{layer}", "is not there: capture again, with the same data it only writes this")

    def _listed(self) -> list[Place]:
        try:
            return records(self._root)
        except StoreError as error:
            self.wrong("records", error)
            return []

    def _sum(self, store: ActivationStore, domain: str, layer: str) -> None:
        """Add a merged layer's shards up again."""
        try:
            tree = Branch.of_store(store.root, domain, store.domain(domain))
            total, _ = Addition(layer, {}, partial(self._branch, layer), reuse=False).total(tree)
            paths = [moments_path(store.root, domain, layer, part) for part in PARTS]
            if _others(paths, total):  # stores of schema 3 added more than 16 shards up in one row
                total = merge_all(shard.load(layer) for shard in tree.shards.values())
            if self._not_the_sum(_others(paths, total)):
                return
        except StoreError as error:
            self.wrong(f"{domain}/{layer}", error)
        else:
            self.whole.append(f"{domain}/{layer}: the sum of {len(store.domain(domain).shards)} shards")

    def _branch(self, layer: str, branch: Branch, expected: SplitMoments, _: object) -> None:
        """Compare a branch of a sum, where it is kept; one that is not whole is found with the other records."""
        paths = [branch.path(layer, part) for part in PARTS]
        with suppress(StoreDamagedError, StoreNotFoundError):
            self._not_the_sum(_others(paths, expected))

    def _not_the_sum(self, paths: Sequence[Place]) -> bool:
        for path in paths:
            self.wrong(below(self._root, path), "is not the sum of its shards: merge again")
        return bool(paths)

    def _dealt(self, root: Place, domain: str, layer: str) -> None:
        """Add up again the shards that a layer's training samples were split into, where there are some."""
        path = moments_path(root, domain, layer, TRAINING)
        try:
            rule = (origin_of(path) or {}).get("rule") or {}
            shards = [path.with_name(part) for part in shard_parts(rule.get("shards", 1))]
            if shards and not load_moments(path).same_bits(merge_all(load_moments(shard) for shard in shards)):
                self.wrong(below(root, path), "is not the sum of its shards: accumulate again")
        except StoreError as error:
            self.wrong(f"{domain}/{layer}", error)

    def _tile(self, store: ActivationStore, domain: str, layer: str, tile: int, advance: Advance) -> bool:
        try:
            store.read_tile(domain, layer, tile)
        except StoreError as error:
            self.wrong(f"{domain}/{layer}", error)
            return False
        finally:
            advance(1)
        return True


def _others(paths: Sequence[Place], split: SplitMoments) -> list[Place]:
    """Return the records, of both parts, that are not those of `split`."""
    return [path for path in paths if not load_moments(path).same_bits(getattr(split, path.name))]


def _folders(root: Place) -> list[Place]:
    return [
        root / name
        for name in ("activations", "weights", "moments", "shards", "sums", "solutions")
        if (root / name).is_dir()
    ]


def _mismatches(root: Place, path: Place, manifest: Manifest) -> Iterator[str]:
    """Yield why a whole record does not belong to what the store now holds."""
    kind, *names = below(root, path).parts
    if kind == "weights":
        yield from _weights_of_another(root, names[0], manifest)
    provenance = provenance_of(path) or {}
    network, here = provenance.get("network"), manifest.network.fingerprint
    if network is not None and network != here:
        yield f"was made from the network with fingerprint {network[:12]}, the store holds {here[:12]}: make it again"
    if kind not in {"moments", "shards"}:
        return
    domain, layer, part = names[0], *names[-2:]
    rows = str(provenance.get("rows"))
    record = manifest.domains.get(domain, DomainRecord())
    if kind == "shards":
        record = record.shards.get(names[1], DomainRecord())
    if layer in record.layers and features_of_moments(path) != record.layers[layer].features:
        found, expected = features_of_moments(path), record.layers[layer].features
        yield f"has {found} features, the rows of '{layer}' on '{domain}' have {expected}: accumulate again"
    if layer in record.layers and record.complete and rows != record.fingerprint(layer):
        yield f"was made from other rows ({rows[:12]}) than the store holds: accumulate again"
    other = path.with_name(HELDOUT if part == TRAINING else TRAINING)
    if not other.is_dir():
        yield f"its other part, '{other.name}', is not there: accumulate again"
    elif not _same_provenance(other, provenance):
        yield f"was made from other rows or by another rule than '{other.name}' beside it: accumulate again"


def _same_provenance(other: Place, provenance: Mapping[str, Any]) -> bool:
    """Tell whether the other part of moments says the same of itself; a damaged one has a finding of its own."""
    try:
        return not (other / "zarr.json").is_file() or provenance_of(other) == provenance
    except StoreDamagedError:
        return True


def _weights_of_another(root: Place, layer: str, manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong where the weights under a layer's name are not those that the manifest names."""
    records = (record for stream, record in manifest.network.layers.items() if layer_of_stream(stream) == layer)
    by_digests = {(record.weight_digest, record.bias_digest): record for record in records}
    try:
        for record in by_digests.values():
            load_layer_weights(root, layer, record)
    except StoreDamagedError as error:
        yield str(error)
