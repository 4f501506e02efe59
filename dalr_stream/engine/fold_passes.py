"""Rows to moments as they are made, in as many passes over the batches as fit: in memory alone, or kept in a store.

What makes the rows is a `RowFeed`: a network, or two of them side by side. A pass folds a group of streams; under a
memory limit there are several. Given a store, the moments are kept there, a run that was killed resumes from its last
checkpoint, and moments that were made before from the same batches can be used again without a pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from dalr_stream.engine.from_store import moments_provenance
from dalr_stream.engine.ranks.passes import (
    announced,
    common_facts,
    end_of,
    new_sink,
    require_same_on_all,
    take_part,
)
from dalr_stream.engine.row_feed import Begun, Folds, Group, RowFeed
from dalr_stream.errors import FingerprintMismatchError, StoreNotFoundError
from dalr_stream.network.capture.loaders import length_of
from dalr_stream.numerics.statistics.folding import SplitMoments
from dalr_stream.progress import Progress
from dalr_stream.storage.batches import Batches
from dalr_stream.storage.checkpoints import Checkpoints
from dalr_stream.storage.contents import DomainRecord, NetworkRecord
from dalr_stream.storage.manifest import Manifest
from dalr_stream.storage.places.place import Place
from dalr_stream.storage.records.moments import moments_path, shard_parts
from dalr_stream.storage.records.record import origin_of
from dalr_stream.storage.removal import forget_checkpoints
from dalr_stream.storage.schema import PARTS, TRAINING
from dalr_stream.storage.writer import open_writer
from dalr_stream.streaming.cost import LayerLoad
from dalr_stream.streaming.fold_sink import INDEX
from dalr_stream.streaming.folding import Folding, but_for_rounding
from dalr_stream.streaming.layer_fold import drop_shards, save_rows, save_split
from dalr_stream.streaming.plan import MemoryPlan, plan
from dalr_stream.streaming.ranks.link import Alone, Link
from dalr_stream.streaming.ranks.strip_checkpoints import left_in_strips
from dalr_stream.streaming.ranks.strip_sink import StripSink


def fold_in_memory(
    feed: RowFeed, folding: Folding, progress: Progress, link: Link | None = None
) -> dict[str, SplitMoments]:
    """Return the moments of every stream, on rank 0; nothing is written, so nothing can be resumed."""
    link = link or Alone()
    if link.ranks > 1:
        require_same_on_all(link, common_facts(feed, feed.network().fingerprint, folding))
    if link.rank:
        take_part(feed, folding, link)
        return {}
    moments: dict[str, SplitMoments] = {}
    first_pass = Batches()
    groups = feed.groups(folding)
    for planned in groups:
        group = announced(link, planned, folding)
        with ThreadPoolExecutor(folding.threads.workers) as executor:
            sink = new_sink(
                feed,
                folding,
                executor,
                link,
                in_strips=group.in_strips,
                first_pass=first_pass,
                compares=link.ranks > 1 or len(groups) > 1,
            )
            feed.send(group, sink, folding, progress)
            moments |= dict(sink.freeze())
            moments |= {name: moments[home] for name, home in sink.record().shared.items()}
            first_pass = sink.batches.batches
    end_of(link, progress)
    return {name: moments[name] for name in feed.streams}


def fold_into(  # where to, what of, how, and with whom
    root: Place,
    domain: str,
    feed: RowFeed,
    network: NetworkRecord,
    folding: Folding,
    progress: Progress,
    link: Link | None = None,
) -> DomainRecord:
    """Fold every stream into a store and return what is known of the rows; `network` is the feed's.

    Rank 0 alone reads and writes the store; the others return the record of no rows.

    Raises FingerprintMismatchError where the store came from another network, the domain from another choice of rows,
    or the batches changed since the checkpoint.
    """
    link = link or Alone()
    require_same_on_all(link, common_facts(feed, network.fingerprint, folding))
    if link.rank:
        take_part(feed, folding, link)
        return DomainRecord(complete=True, choice=feed.choice)
    passes = passes_into(root, domain, feed, network, folding, progress, link)
    while True:
        try:
            next(passes)
        except StopIteration as ended:
            record: DomainRecord = ended.value
            return record


def passes_into(  # noqa: PLR0913  # those of fold_into, and what becomes of it
    root: Place,
    domain: str,
    feed: RowFeed,
    network: NetworkRecord,
    folding: Folding,
    progress: Progress,
    link: Link,
    *,
    keep: bool = True,
) -> Generator[DomainRecord, None, DomainRecord]:
    """Fold one pass after another into a store, and yield after each, its moments on disk, what is known by then.

    What is not asked to `keep` ends without a record of the domain, and with the checkpoints: its moments are for
    whoever takes them from the store meanwhile. Raises as `fold_into` does.
    """
    record = DomainRecord(complete=True, choice=feed.choice)
    with open_writer(root, domain, network, feed.choice) as writer:
        for stream in feed.streams:
            path = moments_path(root, domain, stream, TRAINING)
            _require_same_choice(f"'{path}'", origin_of(path), feed.choice)
        feed.keep_weights(root, network)
        passes: list[Checkpoints] = []
        facts: dict[str, Any] = {"network": network.fingerprint, "choice": feed.choice, "rule": folding.facts}
        facts |= {} if keep else {"kept": False}  # moments of its passes may be gone, which others count on
        for number, planned in enumerate(feed.groups(folding, _begun(root, domain, facts, feed.streams))):
            passes.append(Checkpoints(root, domain, f"@direct-{number}", {**facts, "layers": list(planned)}))
            stopped = f"'{root}': the fold of '{domain}' that was stopped"
            _require_same_choice(stopped, passes[-1].origin(INDEX), feed.choice)
            group = announced(link, planned, folding, in_strips=left_in_strips(passes[-1]))
            with ThreadPoolExecutor(folding.threads.workers) as executor:
                sink = new_sink(
                    feed,
                    folding,
                    executor,
                    link,
                    in_strips=group.in_strips,
                    checkpoints=passes[-1],
                    first_pass=record.batches,
                    probed=writer.probed,
                )
                if not sink.ended:
                    if sink.batches:
                        progress.note(f"domain '{domain}': resuming after {len(sink.batches)} folded batches")
                    feed.send(group, sink, folding, progress)
                    _save(root, domain, network, sink, feed.choice, folding)
            folded = sink.record()
            known, shared = {**record.layers, **folded.layers}, {**record.shared, **folded.shared}
            record = dataclasses.replace(record, batches=folded.batches, layers=known, shared=shared)
            yield record
        if not keep:
            return record
        end_of(link, progress)
        in_order = {name: record.layers[name] for name in feed.streams if name in record.layers}
        shared = {name: record.shared[name] for name in feed.streams if name in record.shared}
        record = dataclasses.replace(record, layers={**in_order, **record.layers}, shared={**shared, **record.shared})
        writer.commit_record(record)
        feed.finish()  # before the checkpoints go, which say that nothing is left to do
        for checkpoints in passes:
            checkpoints.drop()
    return record


def _begun(root: Place, domain: str, facts: Mapping[str, Any], streams: Sequence[str]) -> Begun:
    """Return which of the streams each pass has that an earlier run began, whatever fitted then, and which are done."""
    found: list[tuple[tuple[str, ...], bool]] = []
    while True:
        origin = Checkpoints(root, domain, f"@direct-{len(found)}", facts).origin(INDEX) or {}
        group = tuple(origin.get("layers", ()))
        index = Checkpoints(root, domain, f"@direct-{len(found)}", {**facts, "layers": list(group)}).load(INDEX)
        before = {name for streams_before, _ in found for name in streams_before}
        if index is None or not {*streams} - before >= {*group}:
            return found
        found.append((group, index.values["ended"]))


def kept_record(
    root: Place, domain: str, feed: RowFeed, network: NetworkRecord, folding: Folding
) -> DomainRecord | None:
    """Return what a store knows of the rows, where it has the moments of every stream by this rule; else None.

    Whether they are of the same batches is not compared here: `DomainRecord.batches` has their digests. Checkpoints
    that a fold left beside them, killed once they were kept, are removed.
    """
    try:
        manifest = Manifest.read(root)
    except StoreNotFoundError:
        return None
    record = manifest.domains.get(domain)
    if record is None or not record.complete or record.choice != feed.choice:
        return None
    if manifest.network.fingerprint != network.fingerprint or not set(feed.streams) <= set(record.names):
        return None
    for stream in feed.streams:
        home = record.home(stream)
        rule = folding.rule(record.layers[home].features)
        expected = moments_provenance(network.fingerprint, record, home, rule)
        parts = (*PARTS, *shard_parts(rule.shards))
        kept = (but_for_rounding(origin_of(moments_path(root, domain, home, part))) for part in parts)
        if any(one != but_for_rounding(expected) for one in kept):
            return None
    forget_checkpoints(root, domain)
    return record


def fitting(
    loads: Sequence[LayerLoad], folding: Folding, forward_bytes: int = 0, *, batches: object = None, ranks: int = 1
) -> tuple[Group, ...]:
    """Return the streams of each pass, so that what is folded at once fits; raises MemoryLimitError.

    Those whose sums `ranks` processes share come last.
    """
    cost = direct_plan(loads, folding, forward_bytes, batches=batches, ranks=ranks)
    cost.require()
    shared = {one.layers for one in cost.strips}
    return tuple(Group(group, in_strips=group in shared) for group in cost.groups)


def direct_plan(
    loads: Sequence[LayerLoad], folding: Folding, forward_bytes: int = 0, *, batches: object = None, ranks: int = 1
) -> MemoryPlan:
    """Return what folding rows as they are made costs; how many segments `batches` have is looked at, where told."""
    return plan(
        loads,
        threads=folding.threads.workers,
        readers=folding.threads.readers,
        heldout_share=folding.holdout.share,
        shards=folding.shards,
        direct=True,
        memory_limit_bytes=folding.memory_limit_bytes,
        forward_bytes=forward_bytes,
        segments=folding.segments(length_of(batches)),
        ranks=ranks,
    )


def _save(root: Place, domain: str, network: NetworkRecord, sink: Folds, choice: str, folding: Folding) -> None:
    """Write the moments of one pass, and then that it ended."""
    folded = dataclasses.replace(sink.record(), choice=choice)
    for name, save in _savers(sink, folded):
        rule = folding.rule(folded.layers[name].features)
        drop_shards(root, domain, name, rule)
        save(root, domain, name, provenance=moments_provenance(network.fingerprint, folded, name, rule))
    sink.keep_end()


def _savers(sink: Folds, folded: DomainRecord) -> Iterator[tuple[str, Callable[..., None]]]:
    """Yield each layer with what writes its moments: whole, or as they come from the ranks that share its sums."""
    if isinstance(sink, StripSink):
        for name in folded.layers:
            yield name, partial(save_rows, records=sink.records(name))
    else:
        for name, split in sink.freeze():
            yield name, partial(save_split, split=split)


def _require_same_choice(what: str, made_from: Mapping[str, Any] | None, choice: str) -> None:
    """Raise FingerprintMismatchError where `what` is there and was made from other rows of the layers."""
    before = (made_from or {}).get("choice", choice)
    if before != choice:
        raise FingerprintMismatchError(
            f"{what} was made from {before}, this run takes {choice}: take the same rows, use another store, or delete "
            "the domain's folders below 'moments' and 'unfinished'"
        )
