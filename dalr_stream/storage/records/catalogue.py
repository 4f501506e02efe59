"""Every record of a store: where they lie, and whether each is whole."""

from __future__ import annotations

from dalr_stream.storage.durable import TEMPORARY
from dalr_stream.storage.places.place import Place, below, folders, is_there
from dalr_stream.storage.records.moments import load_moments
from dalr_stream.storage.records.solutions import check_solution
from dalr_stream.storage.records.weights import load_layer_weights


def check_record(root: Place, path: Place) -> None:
    """Read a whole record and compare every array to its digest; raises StoreDamagedError."""
    kind, *name = below(root, path).parts
    if kind == "weights":
        load_layer_weights(root, name[0])
    elif kind == "solutions":
        check_solution(path)
    else:
        load_moments(path)


def records(root: Place) -> list[Place]:
    """Return the folders of every record of a store, shards of merged ones too; damaged ones are among them."""
    depths = {"weights": 1, "moments": 3, "shards": 4, "sums": 4, "solutions": 2}
    return sorted(path for kind, depth in depths.items() for path in _folders_below(root / kind, depth))


def _folders_below(folder: Place, depth: int) -> list[Place]:
    """Return the folders so many levels below one; a glob would pass over one that cannot be listed: StoreError."""
    if depth == 0:
        return [folder]
    inner = [path for path in folders(folder) if not path.name.startswith(TEMPORARY)]
    if depth == 1:  # arrays that no record names are left of a killed writer
        return [path for path in inner if is_there(path)]
    return [path for child in inner for path in _folders_below(child, depth - 1)]
