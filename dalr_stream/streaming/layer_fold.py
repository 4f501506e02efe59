"""Folds one layer's stored rows into its moment records.

    moments/<domain>/<layer>/training, heldout        two records of one pass over the rows
    moments/<domain>/<layer>/shard-0, shard-1, ...    where shards are kept: a pass each, and `training` their sum

Memory is that of one record's fold, however many are kept. The training record is written last, so where it is of the
rows and the rule that are asked for, the others are too. Killed, the next call takes the records that are there and
goes on with the one that was being folded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalr_stream.numerics.statistics.fold_rule import FoldRule, Strip
from dalr_stream.numerics.statistics.folding import FoldState, LaneState, SplitMoments
from dalr_stream.numerics.statistics.merging import merge_all
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.progress import Progress
from dalr_stream.storage.checkpoints import Checkpoints
from dalr_stream.storage.places.place import Place, folders, remove_folder
from dalr_stream.storage.records.moments import load_moments, moments_path, save_moments, shard_parts
from dalr_stream.storage.records.record import provenance_of
from dalr_stream.storage.schema import HELDOUT, TRAINING
from dalr_stream.storage.strips import load_strip, save_matrix_rows, save_strips
from dalr_stream.streaming.cluster import Cluster
from dalr_stream.streaming.cost import LayerCost, LayerLoad
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.lanes import LaneTask
from dalr_stream.streaming.plan import plan
from dalr_stream.streaming.schedule import Watch, accumulate_layer, accumulate_strips


def save_split(root: Place, domain: str, layer: str, split: SplitMoments, provenance: Mapping[str, Any]) -> None:
    """Write all parts of a layer's moments to the store, the training record last."""
    shards = zip(shard_parts(len(split.shards)), split.shards, strict=True)
    for part, moments in (*shards, (HELDOUT, split.heldout), (TRAINING, split.training)):
        save_moments(moments_path(root, domain, layer, part), moments, provenance)


def save_rows(
    root: Place,
    domain: str,
    layer: str,
    records: Iterable[tuple[str, FoldState, Iterator[NDArray[Any]]]],
    provenance: Mapping[str, Any],
) -> None:
    """Write all parts of a layer's moments as `save_split` does, each from whole rows of its matrix, some at a time."""
    for part, last, rows in records:
        save_matrix_rows(moments_path(root, domain, layer, part), last, rows, provenance)


def other_shards(root: Place, domain: str, layer: str, rule: FoldRule) -> list[Place]:
    """Return the folders of a layer's shards that `rule` does not make: another rule's."""
    current = shard_parts(rule.shards)
    parts = folders(moments_path(root, domain, layer, TRAINING).parent)
    return [path for path in parts if path.name.startswith("shard-") and path.name not in current]


def drop_shards(root: Place, domain: str, layer: str, rule: FoldRule) -> None:
    """Remove a layer's shards that `rule` does not make again."""
    for path in other_shards(root, domain, layer, rule):
        remove_folder(path)


@dataclass(frozen=True, slots=True)
class LayerFold:
    """How one layer's stored rows are folded, and where their records go: where the task says."""

    task: LaneTask
    checkpoints: Checkpoints
    folding: Folding
    progress: Progress

    def run(self) -> None:
        """Fold the layer and write its records; raises MemoryLimitError where nothing fits."""
        task, cost = self.task, self._cost()
        cut = (Strip(0, task.rule.features),) if cost is None else cost.strips
        if len(cut) > 1:
            passes = f"{len(cut)} passes over the rows, to stay within the limit"
            self.progress.note(f"'{task.layer}' on '{task.domain}': {passes}")
        drop_shards(task.root, task.domain, task.layer, task.rule)
        if task.rule.shards == 1:
            self._fold(task, cut, {part: self._path(part) for part in (HELDOUT, TRAINING)})
        else:
            self._fold_shards(cut)
            self._add_up((Strip(0, task.rule.features),) if cost is None else cost.sum_strips)
        self.checkpoints.drop()

    def _fold_shards(self, cut: Sequence[Strip]) -> None:
        """Fold the shards and the held-out rows, one after the other."""
        rule, provenance = self.task.rule, self.checkpoints.made_from
        parts = (*shard_parts(rule.shards), HELDOUT)
        for partition, part in zip(
            rule.partitions, parts, strict=False
        ):  # without a share there is no held-out partition
            path = self._path(part)
            if provenance_of(path) != provenance:
                self._fold(replace(self.task, partition=partition), cut, {TRAINING: path})
                self.checkpoints.drop()
        if not rule.holdout.share:
            save_moments(self._path(HELDOUT), Moments.empty(rule.features), provenance)

    def _add_up(self, cut: Sequence[Strip]) -> None:
        """Write the sum of the shards, a strip at a time where the whole does not fit: the bits are the same."""
        task, provenance, path = self.task, self.checkpoints.made_from, self._path(TRAINING)
        shards = [self._path(part) for part in shard_parts(task.rule.shards)]
        if len(cut) == 1:
            save_moments(path, merge_all(load_moments(shard) for shard in shards), provenance)
            return
        sums = (LaneState(merge_all(load_strip(shard, strip) for shard in shards), None) for strip in cut)
        save_strips({TRAINING: path}, task.rule.features, sums, provenance)

    def _fold(self, task: LaneTask, cut: Sequence[Strip], paths: Mapping[str, Place]) -> None:
        """Fold what `task` names and write it to `paths`."""
        rows, provenance = task.tiles.open().rows, self.checkpoints.made_from
        title = f"accumulate {task.domain}/{task.layer}"
        if task.partition is not None:
            title += f", {task.partition + 1} of {len(task.rule.partitions)}"
        with self.progress.track(title, rows.rows * len(cut), "rows") as advance:
            watch = Watch(advance, self.checkpoints, self.folding.pace)
            if len(cut) > 1:
                states = accumulate_strips(task, cut, self.folding.threads, watch)
                save_strips(paths, rows.features, states, provenance)
            else:
                split = accumulate_layer(task, self.folding.scheduled_on, watch)
                for part, path in paths.items():
                    save_moments(path, getattr(split, part), provenance)

    def _cost(self) -> LayerCost | None:
        """Return how the matrix is cut, None for a cluster; raises MemoryLimitError where nothing fits."""
        folding, opened = self.folding, self.task.tiles.open()
        rows = opened.rows
        if isinstance(folding.workers, Cluster):
            return None
        cost = plan(
            [
                LayerLoad(
                    self.task.layer,
                    rows.features,
                    rows.rows,
                    itemsize=np.dtype(rows.dtype).itemsize,
                    beside_tile_bytes=opened.beside_tile_bytes,
                    most_rows=rows.rows,
                )
            ],
            threads=folding.threads.workers,
            readers=folding.threads.readers,
            heldout_share=folding.holdout.share,
            shards=folding.shards,
            memory_limit_bytes=folding.memory_limit_bytes,
        )
        cost.require()
        return cost.layers[0]

    def _path(self, part: str) -> Place:
        return moments_path(self.task.root, self.task.domain, self.task.layer, part)
