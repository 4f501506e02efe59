"""A store's rows to moments, kept in the store and used again while the rows they came from are the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dalr_stream.numerics.folding import CpuFold, FoldRule, NewFold, SplitMoments, Strip
from dalr_stream.numerics.moments import Moments
from dalr_stream.storage.activations import ActivationStore, locked
from dalr_stream.storage.archive import (
    load_moments,
    moments_count,
    moments_path,
    provenance_of,
    save_moments,
)
from dalr_stream.storage.manifest import DomainRecord, RowsRecord
from dalr_stream.storage.schema import HELDOUT, PARTS, TRAINING
from dalr_stream.storage.strips import save_strips
from dalr_stream.storage.unfinished import Unfinished
from dalr_stream.streaming.accumulate import (
    Folding,
    Watch,
    accumulate_layer,
    accumulate_strips,
)
from dalr_stream.streaming.cluster import Cluster
from dalr_stream.streaming.lanes import LaneTask
from dalr_stream.streaming.plan import LayerLoad, plan
from dalr_stream.workflow.progress import Progress, Silent


@dataclass(frozen=True, slots=True)
class LayerMoments(Mapping[str, Moments]):
    """Moments of the training rows, by layer name; `heldout` has those of the rows kept apart, where any were."""

    training: Mapping[str, Moments]
    heldout: Mapping[str, Moments] = field(default_factory=dict)

    @classmethod
    def of(cls, split: Mapping[str, SplitMoments]) -> LayerMoments:
        """Gather the two parts of each layer; a part of no rows is left out."""
        return cls(
            {name: part.training for name, part in split.items()},
            {name: part.heldout for name, part in split.items() if part.heldout.count},
        )

    @classmethod
    def stored(cls, root: Path, domain: str, layers: Sequence[str]) -> LayerMoments:
        """Read each record from a store whenever it is asked for, and hold none."""
        paths = {part: {name: moments_path(root, domain, name, part) for name in layers} for part in PARTS}
        apart = {name: path for name, path in paths[HELDOUT].items() if moments_count(path)}
        return cls(_Stored(paths[TRAINING]), _Stored(apart))

    def __getitem__(self, layer: str) -> Moments:
        return self.training[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.training)

    def __len__(self) -> int:
        return len(self.training)


@dataclass(frozen=True, slots=True)
class _Stored(Mapping[str, Moments]):
    """Moment records by layer name, on disk until one is asked for."""

    paths: Mapping[str, Path]

    def __getitem__(self, layer: str) -> Moments:
        return load_moments(self.paths[layer])

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)


def accumulate(
    store: str | Path,
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
    memory limit a matrix that does not fit is folded in strips, each in a pass over the rows.

    Raises StoreNotFoundError, StoreDamagedError, StoreError for a domain that is not complete, MemoryLimitError with
    the alternatives where even strips do not fit, StoreLockedError where another process writes to the store.
    """
    opened = ActivationStore(store)
    folding, progress = folding or Folding(), progress or Silent()
    new_fold = _new_fold(folding)
    names = list(opened.domain(domain).layers) if layers is None else list(layers)
    for name in names:
        rule = folding.rule(opened.rows(domain, name).features)
        task = LaneTask(opened.root, domain, name, rule, new_fold=new_fold)
        provenance = moments_provenance(opened.manifest.network.fingerprint, opened.domain(domain), name, rule)
        unfinished = Unfinished(opened.root, domain, name, provenance)
        if all(provenance_of(path) == provenance for path in _paths(task).values()):
            progress.note(f"moments of '{name}' on '{domain}' are up to date")
            if unfinished.exists:  # killed after the moments were kept
                with locked(opened.root):
                    unfinished.drop()
            continue
        with locked(opened.root):
            _fold(opened, task, unfinished, folding, progress)
    return LayerMoments.stored(opened.root, domain, names)


def moments_provenance(network: str, record: DomainRecord, layer: str, rule: FoldRule) -> dict[str, Any]:
    """Return all that decides a record's bits: equal provenance, equal moments."""
    return {
        "network": network,
        "rows": record.fingerprint(layer),
        "choice": record.choice,
        "rule": {**asdict(rule), "tile_rows": rule.tile_rows, "lanes": rule.lanes},
    }


def save_split(root: Path, domain: str, layer: str, split: SplitMoments, provenance: Mapping[str, Any]) -> None:
    """Keep both parts of a layer's moments in the store."""
    for part, moments in ((HELDOUT, split.heldout), (TRAINING, split.training)):
        save_moments(moments_path(root, domain, layer, part), moments, provenance)


def _fold(store: ActivationStore, task: LaneTask, unfinished: Unfinished, folding: Folding, progress: Progress) -> None:
    """Fold one layer and keep its moments."""
    rows, provenance = store.rows(task.domain, task.layer), unfinished.made_from
    cut = _strips(rows, task, folding)
    if len(cut) > 1:
        progress.note(f"'{task.layer}' on '{task.domain}': {len(cut)} passes over the rows, to stay within the limit")
    with progress.track(f"accumulate {task.domain}/{task.layer}", rows.rows * len(cut), "rows") as advance:
        watch = Watch(advance, unfinished, folding.pace)
        if len(cut) > 1:
            states = accumulate_strips(store, task, cut, folding.threads, watch)
            save_strips(_paths(task), rows.features, states, provenance)
        else:
            split = accumulate_layer(store, task, folding.scheduled_on, watch)
            save_split(task.root, task.domain, task.layer, split, provenance)
    unfinished.drop()


def _new_fold(folding: Folding) -> NewFold:
    if folding.device is None:
        return CpuFold
    from dalr_stream.workflow.engine import Engine  # imports torch, which numpy's way does without

    return Engine.of(folding).new_fold


def _strips(rows: RowsRecord, task: LaneTask, folding: Folding) -> tuple[Strip, ...]:
    """Cut one layer's matrix so that it fits; raises MemoryLimitError where nothing does."""
    if isinstance(folding.workers, Cluster):
        return (Strip(0, rows.features),)
    cost = plan(
        [LayerLoad(task.layer, rows.features, rows.rows, itemsize=np.dtype(rows.dtype).itemsize)],
        threads=folding.threads.workers,
        heldout_share=folding.holdout.share,
        memory_limit_bytes=folding.memory_limit_bytes,
    )
    cost.require()
    return cost.layers[0].strips


def _paths(task: LaneTask) -> dict[str, Path]:
    return {part: moments_path(task.root, task.domain, task.layer, part) for part in PARTS}
