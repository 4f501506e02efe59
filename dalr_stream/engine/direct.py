"""Network and data to moments in one pass, with no activations kept.

The rows take the same tiles and lanes as on the way through a store, so the moments are the same to the bit. Given a
store, the moments are kept there and a run that was killed goes on from its last checkpoint; under a memory limit the
layers are done in groups, each in a pass of its own through the network. Where torch folds (`Folding.device`),
activations stay on that device from the hook to the sums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from dalr_stream.engine.backend import backend_of, rows_for
from dalr_stream.engine.capture import keep_weights, network_record, one_pass, watched_streams
from dalr_stream.engine.estimate import load_of, taken_of
from dalr_stream.engine.from_store import moments_provenance
from dalr_stream.engine.layer_moments import LayerMoments
from dalr_stream.engine.statistics import Statistics, Weights, stored_weights
from dalr_stream.errors import FingerprintMismatchError
from dalr_stream.network.capture.batches import samples_in
from dalr_stream.network.capture.hooks import require_batches, require_layers
from dalr_stream.network.capture.passes import require_repeatable
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.identity import tensor_digest
from dalr_stream.network.layers.kinds import matrix_of
from dalr_stream.network.layers.spec import LayerSpec, layer_of, weights_of
from dalr_stream.numerics.rows.streams import layer_of_stream
from dalr_stream.numerics.rows.tiling import same_as_before
from dalr_stream.numerics.statistics.folding import SplitMoments
from dalr_stream.progress import Progress, Silent
from dalr_stream.storage.checkpoints import Checkpoints
from dalr_stream.storage.manifest import BatchRecord, DomainRecord, LayerRecord
from dalr_stream.storage.records import moments_path, origin_of
from dalr_stream.storage.schema import TRAINING
from dalr_stream.storage.writer import open_writer
from dalr_stream.streaming.fold_sink import INDEX, FoldSink
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.layer_fold import drop_shards, save_split
from dalr_stream.streaming.plan import plan

TITLE = "capture and fold"


def from_network(  # noqa: PLR0913  # those of accumulate
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    store: str | Path | None,
    *,
    domain: str,
    rows: RowRule | None,
    folding: Folding | None,
    progress: Progress | None,
) -> Statistics:
    """Do what `accumulate` does with a network: in memory alone, or in a store where one is given."""
    watched = watched_streams(model, layers)
    if store is None:
        moments = accumulate_stream(model, batches, layers, rows=rows, folding=folding, progress=progress)
        return Statistics(watched, moments, partial(_weights_now, model, watched))
    moments = accumulate_into(
        store, model, batches, layers, domain=domain, rows=rows, folding=folding, progress=progress
    )
    return Statistics(watched, moments, partial(stored_weights, Path(store), watched))


def _weights_now(model: nn.Module, watched: Mapping[str, LayerRecord], layer: str) -> Weights:
    """Return a layer's weights, which are the network's own; raises FingerprintMismatchError where they changed."""
    digests = {layer_of_stream(stream): record.weight_digest for stream, record in watched.items()}
    if tensor_digest(matrix_of(layer_of(model, layer))) != digests[layer]:
        raise FingerprintMismatchError(
            f"layer '{layer}': its weight is not the one that its moments were accumulated with: accumulate again, or "
            "keep moments and weights in a store (store=...)"
        )
    return weights_of(model, layer)


def accumulate_stream(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    *,
    rows: RowRule | None = None,
    folding: Folding | None = None,
    progress: Progress | None = None,
) -> LayerMoments:
    """Return the moments of what `layers` read, or give, by stream, folding rows as the network makes them.

    `rows` says which of their rows; every one by default.

    Nothing is written, so nothing can be resumed: for runs of hours see `accumulate_into`. Memory: every layer's lanes
    at once, see `streaming.plan`; under a memory limit the layers are done in groups, a pass each over equal batches.

    Raises as `capture` does, MemoryLimitError with the alternatives where one layer alone does not fit, and where
    several passes are needed InvalidInputError for what allows one only, FingerprintMismatchError where two differ.
    """
    folding, progress = folding or Folding(), progress or Silent()
    found: dict[str, SplitMoments] = {}
    first_pass: Sequence[BatchRecord] = ()
    for group in _groups(model, batches, layers, rows or RowRule(), folding):
        with ThreadPoolExecutor(folding.threads.workers) as executor:
            sink = FoldSink(folding, executor, first_pass=first_pass, backend=backend_of(folding))
            _pass(model, batches, group, sink, rows, folding, progress)
            found |= dict(sink.freeze())
            found |= {name: found[home] for name, home in sink.record().shared.items()}
            first_pass = sink.batches
    return LayerMoments.of({layer.stream: found[layer.stream] for layer in layers})


def accumulate_into(  # noqa: PLR0913  # each is a word of the sentence that the caller writes
    store: str | Path,
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    *,
    domain: str,
    rows: RowRule | None = None,
    folding: Folding | None = None,
    progress: Progress | None = None,
) -> LayerMoments:
    """Do what `accumulate_stream` does, keep moments and weights in a store, and resume there after a kill.

    Batches before the last checkpoint are compared by digest and not run again, or not even loaded where the loader
    can begin after them (see `network.loaders`). Raises as `accumulate_stream` does, FingerprintMismatchError where
    the store came from another network, the domain from another choice of rows, or the batches changed since the
    checkpoint.
    """
    root = Path(store)
    rows, folding, progress = rows or RowRule(), folding or Folding(), progress or Silent()
    network = network_record(model, layers)
    with open_writer(root, domain, network, rows.words) as writer:
        for layer in layers:
            path = moments_path(root, domain, layer.stream, TRAINING)
            _require_same_choice(f"'{path}'", origin_of(path), rows.words)
        keep_weights(model, layers, root)
        passes, record = [], DomainRecord(complete=True, choice=rows.words)
        for number, group in enumerate(_groups(model, batches, layers, rows, folding)):
            names = [layer.stream for layer in group]
            facts = {"network": network.fingerprint, "choice": rows.words, "rule": folding.facts}
            passes.append(Checkpoints(root, domain, f"@direct-{number}", {**facts, "layers": names}))
            stopped = f"'{root}': the fold of '{domain}' that was stopped"
            _require_same_choice(stopped, passes[-1].origin(INDEX), rows.words)
            with ThreadPoolExecutor(folding.threads.workers) as executor:
                sink = FoldSink(
                    folding, executor, checkpoints=passes[-1], first_pass=record.batches, backend=backend_of(folding)
                )
                if not sink.ended:
                    if sink.batches:
                        progress.note(f"domain '{domain}': resuming after {len(sink.batches)} folded batches")
                    _pass(model, batches, group, sink, rows, folding, progress)
                    found = dataclasses.replace(sink.record(), choice=rows.words)
                    for name, split in sink.freeze():
                        rule = folding.rule(found.layers[name].features)
                        drop_shards(root, domain, name, rule)
                        save_split(
                            root, domain, name, split, moments_provenance(network.fingerprint, found, name, rule)
                        )
                    sink.keep_end()
            found = sink.record()
            known, shared = {**record.layers, **found.layers}, {**record.shared, **found.shared}
            record = dataclasses.replace(record, batches=found.batches, layers=known, shared=shared)
        writer.commit_record(record)
        for checkpoints in passes:
            checkpoints.drop()
    return LayerMoments.stored(
        root, domain, {layer.stream: record.home(layer.stream) for layer in layers}, folding.shards
    )


def _pass(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    sink: FoldSink,
    rows: RowRule | None,
    folding: Folding,
    progress: Progress,
) -> None:
    one_pass(model, batches, layers, sink, rows=rows, to_rows=rows_for(folding), title=TITLE, progress=progress)


def _require_same_choice(what: str, made_from: Mapping[str, Any] | None, choice: str) -> None:
    """Raise FingerprintMismatchError where `what` is there and was made from other rows of the layers."""
    before = (made_from or {}).get("choice", choice)
    if before != choice:
        raise FingerprintMismatchError(
            f"{what} was made from {before}, this run takes {choice}: take the same rows, use another store, or delete "
            "the domain's folders below 'moments' and 'unfinished'"
        )


def _groups(
    model: nn.Module, batches: Iterable[Any], layers: Sequence[LayerSpec], rule: RowRule, folding: Folding
) -> list[list[LayerSpec]]:
    """Part the layers into passes that fit; layers that read the same tensor stay together, and count once."""
    require_layers(layers)
    require_batches(batches)
    groups = _fitting(layers, folding)
    if len(groups) == 1:
        return groups
    require_repeatable(batches, "batches")
    first = next(iter(batches), None)
    if first is None or samples_in(first) == 0:
        return groups
    shared = same_as_before(taken_of(model, first, layers, rule))
    groups = _fitting([layer for layer in layers if layer.stream not in shared], folding)
    homes = [{layer.stream for layer in group} for group in groups]
    return [[layer for layer in layers if shared.get(layer.stream, layer.stream) in names] for names in homes]


def _fitting(layers: Sequence[LayerSpec], folding: Folding) -> list[list[LayerSpec]]:
    cost = plan(
        [load_of(layer, 0) for layer in layers],
        threads=folding.threads.workers,
        readers=folding.threads.readers,
        heldout_share=folding.holdout.share,
        shards=folding.shards,
        direct=True,
        memory_limit_bytes=folding.memory_limit_bytes,
    )
    cost.require()
    by_name = {layer.stream: layer for layer in layers}
    return [[by_name[name] for name in group] for group in cost.groups]
