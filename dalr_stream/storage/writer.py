"""Writes activations to disk: batches of rows in, tiles out, nothing lost in between.

The writer is a `RowSink`. It cuts batches into tiles, writes each full tile as one zarr chunk, and commits: it syncs
them, then replaces the manifest. Killed at any instant, the store holds whole tiles of whole batches; the next writer
replays from the first batch that is not wholly committed and drops the rows that are already there. Readers clip to
the manifest and never change anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePath

import numpy as np

from dalr_stream.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    StoreError,
    StoreNotFoundError,
)
from dalr_stream.numerics.rows.probe import Probe
from dalr_stream.numerics.rows.sampling import EVERY_ROW
from dalr_stream.numerics.rows.tiling import RowBatch, rows_per_sample, shared_rows
from dalr_stream.storage.batches import BatchLog, BatchRecord
from dalr_stream.storage.contents import DomainRecord, NetworkRecord, RowsRecord
from dalr_stream.storage.lock import locked
from dalr_stream.storage.manifest import Manifest
from dalr_stream.storage.metadata import make_group
from dalr_stream.storage.places.place import Place, explained
from dalr_stream.storage.rows import RowsWriter, rows_exist

LOST_AT_MOST = 100
"""One commit follows another once the batches are a hundredth more, so a kill costs a hundredth of them and a tile. A
commit writes all batches so far, 0.5 s of CPU at 100,000: one at each tile made a capture cost the square of them."""


@contextmanager
def open_writer(
    root: Place, domain: str, network: NetworkRecord, choice: str = EVERY_ROW
) -> Iterator[ActivationWriter]:
    """Open `domain` of the store at `root` for writing, making the store where there is none.

    `choice` says in words which of the layers' rows are going to be written; a domain has rows of one choice.

    Raises StoreLockedError beside another writer, FingerprintMismatchError where the store was made from another
    network, and StoreError where the domain was merged from other stores.
    """
    if not domain.replace("-", "").replace("_", "").isalnum():
        raise InvalidInputError(f"domain: a name is letters, digits, '-' and '_', got '{domain}'")
    with locked(root):
        try:
            manifest = Manifest.read(root)
        except StoreNotFoundError:
            manifest = Manifest(network)
            manifest.write(root)  # before any weights: a first capture that fails must not lend them to another network
        if manifest.network.fingerprint != network.fingerprint:
            raise FingerprintMismatchError(
                f"'{root}' was made from the network with fingerprint {manifest.network.fingerprint[:12]}, this one "
                f"has {network.fingerprint[:12]}: use the same weights, or another store"
            )
        if domain in manifest.domains and manifest.domains[domain].shards:
            raise StoreError(
                f"'{root}': domain '{domain}' was merged from other stores and takes no rows: capture to a store of "
                "its own, then merge that too"
            )
        rows = PurePath("activations") / domain
        make_group(root, rows if (root / rows).is_dir() else "")  # damaged ones are written anew
        layers = {**manifest.network.layers, **network.layers}
        manifest = dataclasses.replace(manifest, network=dataclasses.replace(manifest.network, layers=layers))
        yield ActivationWriter(root, domain, manifest, frozenset(network.layers), choice)


class ActivationWriter:
    """The rows of one domain on their way to disk. A RowSink; made by `open_writer`, which holds the lock."""

    def __init__(self, root: Place, domain: str, manifest: Manifest, watched: frozenset[str], choice: str) -> None:
        self._root = root
        self._domain = domain
        self._manifest = manifest
        self._watched = watched
        self._choice = choice
        self._record = manifest.domains.get(domain, DomainRecord(choice=choice))
        self._deleted = not all(
            rows_exist(root, domain, layer) and (rows.tile_digests or not rows.rows)  # none of rows folded directly
            for layer, rows in self._record.layers.items()
        )
        if self._deleted:
            self._record = DomainRecord(choice=choice)  # their moments stay, the rows start anew
        self._shared = self._record.shared if self._record.layers else None  # the first batch shows it
        self._known = self._record.batches
        self._batches = BatchLog(self._known)
        self._ends = np.cumsum(self._known.samples, dtype=np.int64)
        self._passed = 0
        self._samples = 0
        self._layers: dict[str, RowsWriter] = {}

    @property
    def complete(self) -> bool:
        """Whether the domain was captured to its end before."""
        return self._record.complete

    @property
    def committed_batches(self) -> int:
        """How many batches need no forward pass, because all of their rows are on disk."""
        if self.complete:
            return len(self._known)
        return int(np.searchsorted(self._ends, self._record.committed_samples, side="right"))

    @property
    def held(self) -> Sequence[int]:
        """Samples of each batch that need not be loaded again; none of a complete domain, which is compared whole."""
        return [] if self.complete else self._known.samples[: self.committed_batches].tolist()

    def skip(self, batch: int, samples: int, digest: str) -> bool:
        """Compare a batch to the one captured before under its number; True where it need not be run again."""
        self._require_same_choice()
        self._require_layers(self._watched)
        if batch < len(self._known):
            known = self._known[batch]
            where = f"'{self._root}': domain '{self._domain}', batch {batch}"
            if known.samples != samples:
                raise FingerprintMismatchError(
                    f"{where} had {known.samples} samples and now has {samples}: resume with the same batch size"
                )
            if known.digest != digest:
                raise FingerprintMismatchError(
                    f"{where} is not the batch captured before (digest {known.digest[:12]}, now {digest[:12]}): the "
                    "data, their order or their augmentation changed; restore them, or capture to another store"
                )
        skipped = batch < self.committed_batches
        if skipped:
            self._passed, self._samples = batch + 1, int(self._ends[batch])
        return skipped

    def write(self, batch: RowBatch) -> None:
        """Take the next batch; commits when a tile became full, see `LOST_AT_MOST`.

        Raises DiskSpaceError, or StoreError where the disk fails: the store is as it was at the last commit.
        """
        with explained(self._root):
            self._take(batch)

    def _take(self, batch: RowBatch) -> None:
        if self.complete:
            raise FingerprintMismatchError(
                f"'{self._root}': domain '{self._domain}' is complete with {len(self._known)} batches, and more came: "
                "the data changed; capture to another store"
            )
        wrote = False
        if batch.samples:
            self._require_layers(batch.rows)
            if self._deleted:  # before the arrays are there again: their presence would make the old record look true
                self._manifest = self._manifest.with_domain(self._domain, self._record)
                self._manifest.write(self._root)
                self._deleted = False
            self._shared = shared_rows(batch, self._shared)
            own = (name for name in batch.rows if name not in self._shared)
            layers = {name: self._layer(name, batch) for name in own}  # every check before any write
            for name, layer in layers.items():
                numbers = batch.sample_numbers(name, self._samples)
                wrote |= layer.push(batch.rows[name], numbers, self._samples + batch.samples)
        self._note(batch)
        known = len(self._record.batches)
        if wrote and len(self._batches) - known >= known // LOST_AT_MOST:
            self._commit(complete=False)

    def finish(self) -> None:
        """Write the last, shorter tiles and mark the domain complete."""
        if self._passed < len(self._known):
            raise FingerprintMismatchError(
                f"'{self._root}': domain '{self._domain}' had {len(self._known)} batches before and ended after "
                f"{self._passed} now: the data changed; restore them, or capture to another store"
            )
        if self.complete:
            return
        with explained(self._root):
            for layer in self._layers.values():
                layer.flush()
            self._commit(complete=True)

    def probed(self, probe: Probe) -> None:
        """Take note of what the network gives for a probe; raises FingerprintMismatchError for another network's."""
        network = self._manifest.network.with_probe(probe, f"'{self._root}'")
        if network != self._manifest.network:
            self._manifest = dataclasses.replace(self._manifest, network=network)
            with explained(self._root):
                self._manifest.write(self._root)

    def commit_record(self, record: DomainRecord) -> None:
        """Commit the record of rows that were folded without being kept, in place of the domain's."""
        self._manifest.with_domain(self._domain, record).write(self._root)

    def _require_same_choice(self) -> None:
        if self._record.choice != self._choice:
            raise FingerprintMismatchError(
                f"'{self._root}': domain '{self._domain}' holds {self._record.choice}, this capture takes "
                f"{self._choice}: take the same rows, or capture to another store"
            )

    def _require_layers(self, layers: Collection[str]) -> None:
        if self._record.layers and set(layers) != set(self._record.names):
            raise FingerprintMismatchError(
                f"'{self._root}': domain '{self._domain}' holds layers {', '.join(sorted(self._record.names))}, this "
                f"capture watches {', '.join(sorted(layers))}: watch the same layers, or capture to another store"
            )

    def _note(self, batch: RowBatch) -> None:
        self._passed += 1
        self._samples += batch.samples
        if self._passed > len(self._batches):
            self._batches.append(BatchRecord(batch.samples, batch.digest))

    def _layer(self, name: str, batch: RowBatch) -> RowsWriter:
        rows = batch.rows[name]
        layer = self._layers.get(name)
        known = self._record.layers.get(name) if layer is None else layer.form
        per_sample = rows_per_sample(name, batch, None if known is None else known.rows_per_sample)
        if known is None:
            known = RowsRecord(rows.shape[1], rows.dtype.name, per_sample)
        if (rows.shape[1], rows.dtype.name) != (known.features, known.dtype):
            raise FingerprintMismatchError(
                f"layer '{name}': rows so far had {known.features} features of {known.dtype}, now "
                f"{rows.shape[1]} of {rows.dtype.name}: capture to another store"
            )
        if layer is None:
            layer = self._layers[name] = RowsWriter(self._root, self._domain, name, known, self._samples)
        return layer

    def _commit(self, *, complete: bool) -> None:
        for layer in self._layers.values():
            layer.sync()
        layers = {name: layer.record for name, layer in self._layers.items()}
        every = {**self._record.layers, **layers}
        shared = self._shared or {}
        self._record = DomainRecord(complete, self._batches.batches, every, choice=self._choice, shared=shared)
        self._manifest = self._manifest.with_domain(self._domain, self._record)
        self._manifest.write(self._root)
