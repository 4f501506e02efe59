"""A store's rows to moments, kept in the store and used again while the rows they came from are the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dalr_stream.engine.backend import backend_of
from dalr_stream.engine.layer_moments import LayerMoments
from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.statistics.fold_rule import FoldRule
from dalr_stream.progress import Progress, Silent
from dalr_stream.storage.checkpoints import Checkpoints
from dalr_stream.storage.contents import DomainRecord
from dalr_stream.storage.lock import locked
from dalr_stream.storage.places.place import Place
from dalr_stream.storage.records.moments import moments_path, shard_parts
from dalr_stream.storage.records.record import origin_of
from dalr_stream.storage.schema import PARTS
from dalr_stream.storage.store import ActivationStore
from dalr_stream.streaming.folding import Folding, but_for_rounding, rule_facts
from dalr_stream.streaming.lanes import LaneTask
from dalr_stream.streaming.layer_fold import LayerFold, drop_shards, other_shards
from dalr_stream.streaming.tile_source import StoredTiles


def accumulate_stored(
    store: str | Place,
    *,
    domain: str,
    layers: Sequence[str] | None = None,
    folding: Folding | None = None,
    progress: Progress | None = None,
) -> LayerMoments:
    """Return the moments of one domain of a store, by layer; each is read from the store when it is asked for.

    Moments made before from the same rows by the same rule are used again, also when the activations themselves were
    deleted; otherwise they are accumulated and kept in the store. Killed, the next call goes on from the last
    checkpoint. The same rows give the same bits, whatever the batches, the workers and the interruptions. Under a
    memory limit a matrix that does not fit is folded in strips, each in a pass over the rows. Shards (`Folding.shards`)
    are folded one after the other too, and one that is in the store is not folded again; the training record is their
    sum in the fixed tree.

    Raises StoreNotFoundError, StoreDamagedError, StoreError for a domain that is not complete, MemoryLimitError with
    the alternatives where even strips do not fit, StoreLockedError where another process writes to the store.
    """
    opened = ActivationStore(store)
    folding, progress = folding or Folding(), progress or Silent()
    require_no_segments(folding, opened.root)
    backend = backend_of(folding)
    record = opened.domain(domain)
    homes = {name: record.home(name) for name in (record.names if layers is None else layers)}
    folds: list[LayerFold] = []
    left: list[tuple[Checkpoints, str, FoldRule]] = []
    for name in dict.fromkeys(homes.values()):
        rule = folding.rule(opened.rows(domain, name).features)
        task = LaneTask(
            opened.root,
            domain,
            name,
            rule,
            backend=backend,
            source=StoredTiles(opened.root, domain, name, opened),
            readers=folding.threads.readers,
        )
        provenance = moments_provenance(opened.manifest.network.fingerprint, record, name, rule)
        checkpoints = Checkpoints(opened.root, domain, name, provenance)
        paths = [moments_path(opened.root, domain, name, part) for part in (*shard_parts(rule.shards), *PARTS)]
        if any(but_for_rounding(origin_of(path)) != but_for_rounding(provenance) for path in paths):
            folds.append(LayerFold(task, checkpoints, folding, progress))
            continue
        progress.note(f"moments of '{name}' on '{domain}' are up to date")
        if checkpoints.exists or other_shards(opened.root, domain, name, rule):
            left.append((checkpoints, name, rule))  # killed after the moments were kept, or before another rule's were
    if folds or left:
        with locked(opened.root):  # once for all: taking the lock looks at every folder of the store
            for checkpoints, name, rule in left:
                checkpoints.drop()
                drop_shards(opened.root, domain, name, rule)
            for fold in folds:
                fold.run()
    return LayerMoments.stored(opened.root, domain, homes, folding.shards)


def require_no_segments(folding: Folding, store: Place) -> None:
    """Raise InvalidInputError for segments of the batches, which rows of a store are not folded by."""
    if folding.segment_batches:
        raise InvalidInputError(
            f"'{store}': segment_batches is for rows that are folded as a network makes them; those of a store have "
            "the same bits whoever captured them, by however many ranks: leave it out"
        )


def moments_provenance(network: str, record: DomainRecord, layer: str, rule: FoldRule) -> dict[str, Any]:
    """Return all that decides a record's bits: equal provenance, equal moments."""
    return {
        "network": network,
        "rows": record.fingerprint(layer),
        "choice": record.choice,
        "rule": {**rule_facts(rule), "tile_rows": rule.tile_rows, "lanes": rule.lanes},
    }
