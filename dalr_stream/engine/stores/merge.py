"""Stores of independent captures to one: other jobs, machines and dates add up, and can be taken out again exactly.

A merged store keeps the moment records it was made from, its shards, beside their sum. The sum is a fixed tree over the
names of the shards (`sums`), and a name is a digest of the rows, so the bits depend on the rows alone: not on the order
of the stores, and not on how merges were nested, since merging a merged store takes its shards and not its sum.
Taking a shard out is adding up the others: bit for bit the store that never had it.

The manifest says which shards a domain has. They are written first, then the manifest, then the sums: a merge that is
killed leaves the old store, or a new one whose sums are known to be stale until the merge is repeated; then it ends in
the same bytes: a shard that lies in the output already is not a second one, and one that is being taken out may be
gone from the manifest. The shards taken out are removed last.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dalr_stream.engine.stores.shards import Shard, require_addable, shards_in
from dalr_stream.engine.stores.sums import Addition, Branch, drop_other_branches, keep
from dalr_stream.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    StoreError,
    StoreLockedError,
    StoreNotFoundError,
)
from dalr_stream.numerics.rows.streams import layer_of_stream
from dalr_stream.progress import Progress, Silent
from dalr_stream.storage.contents import DomainRecord, LayerRecord, NetworkRecord
from dalr_stream.storage.layout import require_store_or_empty
from dalr_stream.storage.lock import locked
from dalr_stream.storage.manifest import Manifest
from dalr_stream.storage.metadata import make_group
from dalr_stream.storage.places.place import Place, folders, place_of, readable, remove_folder
from dalr_stream.storage.records.catalogue import check_record
from dalr_stream.storage.records.moments import load_moments, save_moments, shard_path
from dalr_stream.storage.records.record import provenance_of
from dalr_stream.storage.records.weights import load_layer_weights, save_layer_weights, weights_path
from dalr_stream.storage.schema import PARTS, TRAINING
from dalr_stream.storage.store import ActivationStore
from dalr_stream.streaming.layer_fold import save_split


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge made."""

    root: Place
    shards: tuple[Shard, ...]
    """By domain, then by name; each where it came from."""


def merge(
    stores: Sequence[str | Place],
    into: str | Place,
    *,
    domain: str | None = None,
    without: Collection[str] = (),
    progress: Progress | None = None,
) -> Merged:
    """Add up the moments of `stores`, captures of one network, in the store `into`, which keeps no activations.

    Parameters
    ----------
    stores
        Captured and accumulated, or merged before. They are only read, and their activations need not be there.
    into
        A new store, or a merged one of the same network. One that exists and is not among `stores` must not lose a
        shard: name it among `stores` to add to it.
    domain
        The domain to merge; others in `into` stay as they are. By default all, each over the stores that have it.
    without
        Names of shards to leave out (`Merged.shards` has them): what is left is bit for bit as if they had never been
        added.
    progress
        Receives progress, for example from `show_progress()`; silent by default.

    Returns
    -------
    Merged
        The store and its shards, by domain and then by name.

    Raises
    ------
    FingerprintMismatchError
        For another network, other layers or another fold rule.
    InvalidInputError
        For rows that would count twice.
    StoreError, StoreNotFoundError, StoreDamagedError
        For what is incomplete, not accumulated, damaged, or in the way. Then `into` is as it was.

    See Also
    --------
    open_store : reads the merged moments.

    Notes
    -----
    Every new record is read three times (to check, to copy, to add) and written once. Of the shards that `into` holds
    already, those are read that share a branch of the sum with a new one, and for the others the sums of their
    branches: one more of 500 reads some 40 records. Memory: one layer at a time, for every factor of 16 in the number
    of its shards 4 pairs of records, and 2 more; 16 d^2 bytes each.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
    >>> layers = ds.watch(model, ["0"])
    >>> for name in ("monday.zarr", "tuesday.zarr"):
    ...     _ = ds.accumulate(model, [torch.randn(32, 6)], layers, store=name)
    >>> len(ds.merge(["monday.zarr", "tuesday.zarr"], "both.zarr").shards)
    2
    >>> ds.open_store("both.zarr").moments().heldout["0"].count + ds.open_store("both.zarr").moments()["0"].count
    64
    """
    if isinstance(stores, str | Place):
        raise InvalidInputError(f"merge: stores must be a list, got '{stores}': merge(['{stores}'], into)")
    into, progress = place_of(into), progress or Silent()
    plan = _plan([ActivationStore(root) for root in stores], into, domain, without)
    with locked(into):
        if _manifest_of_output(into) != plan.before:
            raise StoreLockedError(f"'{into}' was changed by another process in the meantime: merge again")
        if plan.before is None:  # first of all, so that a killed merge is known for one
            Manifest(NetworkRecord(plan.after.network.fingerprint, {})).write(into)
        make_group(into)
        _keep_sources(into, plan)
        plan.after.write(into)
        for name in plan.shards:
            _add_up(into, name, plan.after, progress)
        for name in plan.shards:
            drop_other_branches(Branch.of_store(into, name, plan.after.domains[name]))
            _drop_others(into / "shards" / name, plan.after.domains[name].shards)
    return Merged(into, tuple(shard for group in plan.shards.values() for shard in group))


@dataclass(frozen=True, slots=True)
class _Plan:
    """A merge about which nothing is left to refuse."""

    before: Manifest | None
    """Of the output; None where there is no store yet."""
    after: Manifest
    shards: Mapping[str, Sequence[Shard]]
    """By domain."""
    weights: Mapping[str, Place]
    """Layer -> the store to copy its weights from."""


def _plan(stores: Sequence[ActivationStore], into: Place, domain: str | None, without: Collection[str]) -> _Plan:
    if not stores:
        raise InvalidInputError("merge: needs at least one store")
    before = _manifest_of_output(into)
    known = [(store.root, store.manifest) for store in stores] + ([] if before is None else [(into, before)])
    network = _network(known)
    found = _each_once([shard for store in stores for shard in shards_in(store, domain)], into)
    shards = _by_domain(found, _to_leave_out(found, without, into))
    for group in shards.values():
        _require_addable(group, network.fingerprint, into)
    domains = {name: DomainRecord.merged({one.name: one.record for one in group}) for name, group in shards.items()}
    if before is not None:
        _require_nothing_lost(into, before, {(shard.domain, shard.name) for shard in found}, domain)
    weights = {layer_of_stream(name): root for root, manifest in reversed(known) for name in manifest.network.layers}
    for store in stores:
        for name, layer in store.manifest.network.layers.items():
            load_layer_weights(store.root, layer_of_stream(name), layer)
    kept = {} if before is None else before.domains
    return _Plan(before, Manifest(network, dict(sorted({**kept, **domains}.items()))), shards, weights)


def _require_addable(shards: Sequence[Shard], network: str, into: Place) -> None:
    """Raise where the shards of one domain cannot be added up, or one that has to be read for it is damaged."""
    here = into.resolve()
    added = {shard.name for shard in shards if shard.root.resolve() == here}
    require_addable(shards, network, added)
    tree = Branch(into, shards[0].domain, {shard.name: shard for shard in shards})
    for layer in shards[0].record.layers:
        for shard in Addition(layer, _facts(tree, layer)).to_read(tree):
            for part in PARTS if shard.name in added else ():
                check_record(shard.root, shard.path(layer, part))


def _manifest_of_output(into: Place) -> Manifest | None:
    """Return what the output says of itself, or None where there is nothing; raises StoreError where it is in use."""
    with readable(into):
        if not into.is_dir():
            return None  # `locked` says so where a file is in the way
    try:
        manifest = Manifest.read(into)
    except StoreNotFoundError:
        require_store_or_empty(into)
        return None
    own = [name for name, record in manifest.domains.items() if not record.shards]
    if own:
        raise StoreError(f"'{into}' holds domain '{own[0]}', which no merge made: merge into a new store")
    return manifest


def _network(known: Sequence[tuple[Place, Manifest]]) -> NetworkRecord:
    """Return the network that all stores were made from, with the layers of all of them."""
    first, expected = known[0][0], known[0][1].network.fingerprint
    layers: dict[str, LayerRecord] = {}
    merged = NetworkRecord(expected, {})
    for root, other in known:
        if other.network.fingerprint != expected:
            raise FingerprintMismatchError(
                f"'{first}' was made from the network with fingerprint {expected[:12]}, '{root}' from "
                f"{other.network.fingerprint[:12]}: merge captures of the same weights"
            )
        layers |= other.network.layers
        for probe in other.network.probes:
            merged = merged.with_probe(probe, f"'{first}' and '{root}'")
    orders = {tuple(other.network.layers) for _, other in known}
    names = orders.pop() if len(orders) == 1 else sorted(layers)
    probes = tuple(sorted(merged.probes, key=lambda probe: probe.form))
    return NetworkRecord(expected, {name: layers[name] for name in names}, probes)


def _each_once(shards: Sequence[Shard], into: Place) -> list[Shard]:
    """Return the shards less those that lie in the output already: an earlier merge, killed or not, has taken them."""
    here = into.resolve()
    taken = {(shard.domain, shard.name) for shard in shards if shard.root.resolve() == here}
    return [shard for shard in shards if shard.root.resolve() == here or (shard.domain, shard.name) not in taken]


def _to_leave_out(found: Sequence[Shard], without: Collection[str], into: Place) -> set[str]:
    """Return the names to leave out; one that no store has is accepted where its removal was killed midway."""
    names = {shard.name for shard in found}
    unknown = sorted(set(without) - names)
    being_removed = any((into / "shards" / shard.domain / name).is_dir() for shard in found for name in unknown)
    if unknown and not being_removed:
        raise InvalidInputError(f"without: there is no shard '{unknown[0]}': there are {', '.join(sorted(names))}")
    return set(without)


def _by_domain(found: Sequence[Shard], without: Collection[str]) -> dict[str, list[Shard]]:
    """Return the shards to add up, by domain and then by name, less those to leave out."""
    groups: dict[str, list[Shard]] = {}
    for shard in sorted(found, key=lambda one: (one.domain, one.name)):
        groups.setdefault(shard.domain, [])
        if shard.name not in without:
            groups[shard.domain].append(shard)
    for name, group in groups.items():
        if not group:
            raise InvalidInputError(f"without: no shard of domain '{name}' would be left: name another domain to merge")
    return groups


def _require_nothing_lost(
    into: Place, before: Manifest, found: Collection[tuple[str, str]], domain: str | None
) -> None:
    """Refuse to replace shards that may lie nowhere else."""
    for name, record in before.domains.items():
        lost = [shard for shard in record.shards if (name, shard) not in found]
        if lost and domain in (None, name):
            raise InvalidInputError(
                f"'{into}' holds shard '{lost[0]}' of domain '{name}', which no store to merge has: name '{into}' "
                "among them to add to it, with `without` to take shards out, or merge into a new store"
            )


def _keep_sources(into: Place, plan: _Plan) -> None:
    """Copy weights and shards to the output, where they do not lie there already."""
    here = into.resolve()
    for layer, root in plan.weights.items():
        facts = provenance_of(weights_path(root, layer)) or {}
        if provenance_of(weights_path(into, layer)) != facts:
            save_layer_weights(into, layer, *load_layer_weights(root, layer), facts)
    for shard in (one for group in plan.shards.values() for one in group if one.root.resolve() != here):
        for layer in shard.record.layers:
            for part in PARTS:
                source = shard.path(layer, part)
                target = shard_path(into, shard.domain, shard.name, layer, part)
                save_moments(target, load_moments(source), provenance_of(source) or {})


def _add_up(into: Place, domain: str, manifest: Manifest, progress: Progress) -> None:
    """Write a domain's sums, layer after layer."""
    record = manifest.domains[domain]
    tree = Branch.of_store(into, domain, record)
    with progress.track(f"merge {domain}", len(record.layers), "layers") as advance:
        for layer in record.layers:
            total, facts = Addition(layer, _facts(tree, layer), partial(keep, layer=layer)).total(tree)
            save_split(into, domain, layer, total, {**facts, "rows": record.fingerprint(layer)})
            advance(1)


def _facts(tree: Branch, layer: str) -> dict[str, Any]:
    """Return what the first shard was made from, which is the same for all of them but for rows and BLAS."""
    first = next(iter(tree.shards.values()))
    return provenance_of(first.path(layer, TRAINING)) or {}


def _drop_others(folder: Place, kept: Collection[str]) -> None:
    """Remove the shards that the manifest no longer names."""
    for path in folders(folder):
        if path.name not in kept:
            remove_folder(path)
