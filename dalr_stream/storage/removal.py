"""What is removed from a store on purpose, each under its lock: rows, moments, one domain, or all of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dalr_stream.numerics.rows.streams import require_name
from dalr_stream.storage.durable import explained, remove_folder, sync
from dalr_stream.storage.layout import KINDS, UNFINISHED, remove_empty
from dalr_stream.storage.lock import locked
from dalr_stream.storage.manifest import FILE as MANIFEST
from dalr_stream.storage.manifest import Manifest


def delete_activations(root: Path) -> None:
    """Remove the activations of every domain; moments, weights and solutions stay, and solving still works."""
    if root.exists():
        with locked(root):  # also where they are gone: a removal that was killed is brought to its end
            remove_folder(root / "activations")


def clear_litter(root: Path) -> None:
    """Remove what killed writers left in a store under temporary names, as each writer does before it begins."""
    with locked(root):
        pass


def forget_domain(root: Path, domain: str) -> None:
    """Remove one domain's activations and what the manifest knows of them; moments and solutions stay."""
    require_name(domain, "domain")
    if not (root / MANIFEST).exists():
        return
    with locked(root):
        manifest = Manifest.read(root)
        others = {name: record for name, record in manifest.domains.items() if name != domain}
        dataclasses.replace(manifest, domains=others).write(root)
        remove_folder(root / "activations" / domain)


def forget_store(root: Path) -> None:
    """Remove all that a store holds and nothing else in its folder.

    The manifest goes last: until then the store is still of its network.
    """
    with locked(root), explained(root):
        for kind in KINDS:
            remove_folder(root / kind)
        (root / MANIFEST).unlink(missing_ok=True)
        sync(root)


def forget_moments(root: Path, domain: str) -> None:
    """Remove one domain's moments, and its folds that were not finished."""
    require_name(domain, "domain")
    if not (root / MANIFEST).exists():
        return
    with locked(root):
        for kind in ("moments", UNFINISHED):
            remove_folder(root / kind / domain)


def forget_checkpoints(root: Path, domain: str) -> None:
    """Remove the checkpoints of one domain's folds, where there are any."""
    if (root / UNFINISHED / domain).is_dir():
        with locked(root):
            remove_folder(root / UNFINISHED / domain)
            remove_empty(root)
