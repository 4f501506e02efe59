"""What is removed from a store on purpose, each under its lock: rows, moments, one domain, or all of it."""

from __future__ import annotations

import dataclasses

from dalr_stream.numerics.rows.streams import require_name
from dalr_stream.storage.buckets.claim import claim_to
from dalr_stream.storage.durable import sync
from dalr_stream.storage.layout import KINDS, UNFINISHED, remove_empty
from dalr_stream.storage.lock import locked
from dalr_stream.storage.manifest import FILE as MANIFEST
from dalr_stream.storage.manifest import Manifest
from dalr_stream.storage.places.path import BucketPath
from dalr_stream.storage.places.place import Place, explained, remove_folder


def delete_activations(root: Place) -> None:
    """Remove the activations of every domain; moments, weights and solutions stay, and solving still works."""
    if root.exists():
        with locked(root):  # also where they are gone: a removal that was killed is brought to its end
            remove_folder(root / "activations")


def clear_litter(root: Place) -> None:
    """Remove what killed writers left in a store under temporary names, as each writer does before it begins."""
    with locked(root):
        pass


def forget_domain(root: Place, domain: str) -> None:
    """Remove one domain's activations and what the manifest knows of them; moments and solutions stay."""
    require_name(domain, "domain")
    if not (root / MANIFEST).exists():
        return
    with locked(root):
        manifest = Manifest.read(root)
        others = {name: record for name, record in manifest.domains.items() if name != domain}
        dataclasses.replace(manifest, domains=others).write(root)
        remove_folder(root / "activations" / domain)


def forget_store(root: Place) -> None:
    """Remove all that a store holds and nothing else in its folder.

    The manifest goes last: until then the store is still of its network.
    """
    with locked(root), explained(root):
        for kind in KINDS:
            remove_folder(root / kind)
        _remove_manifest(root)


def forget_moments(root: Place, domain: str) -> None:
    """Remove one domain's moments, and its folds that were not finished."""
    require_name(domain, "domain")
    if not (root / MANIFEST).exists():
        return
    with locked(root):
        for kind in ("moments", UNFINISHED):
            remove_folder(root / kind / domain)


def forget_checkpoints(root: Place, domain: str) -> None:
    """Remove the checkpoints of one domain's folds, where there are any."""
    if (root / UNFINISHED / domain).is_dir():
        with locked(root):
            remove_folder(root / UNFINISHED / domain)
            remove_empty(root)


def _remove_manifest(root: Place) -> None:
    if isinstance(root, BucketPath):
        claim_to(root).forget_manifest()
    else:
        (root / MANIFEST).unlink(missing_ok=True)
        sync(root)
