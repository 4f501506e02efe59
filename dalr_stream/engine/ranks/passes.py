"""A pass that several ranks fold: what rank 0 announces, what the others compare, and the sink that each of them has.

Rank 0 decides how the layers are parted into passes, since it knows the memory limit and what the store has; the others
do as it says. One process goes the same way, with nobody to tell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dalr_stream.engine.backend import backend_of
from dalr_stream.engine.row_feed import Folds, Group, RowFeed
from dalr_stream.errors import FingerprintMismatchError
from dalr_stream.network.capture.loaders import length_of
from dalr_stream.progress import Progress, Silent
from dalr_stream.storage.batches import Batches
from dalr_stream.streaming.fold_sink import FoldSink
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.ranks.link import Link, tell
from dalr_stream.streaming.ranks.segment_sink import SegmentSink
from dalr_stream.streaming.ranks.strip_sink import StripSink

_GROUP = "group"


def new_sink(  # what is folded how, and by whom
    feed: RowFeed,
    folding: Folding,
    executor: ThreadPoolExecutor,
    link: Link,
    *,
    in_strips: bool,
    compares: bool = True,
    **options: Any,
) -> Folds:
    """Return what folds a pass, by lanes or by segments; `in_strips`: ranks share the sums, not the batches alone.

    `compares` is false where nothing is kept, and this process makes the only pass; see `ComparingSink`.
    """
    backend = backend_of(folding)
    if in_strips:
        return StripSink(folding, executor, link=link, backend=backend, **options)
    if not folding.segment_batches:
        return FoldSink(folding, executor, backend=backend, compares=compares, **options)
    return SegmentSink(folding, executor, link=link, length=length_of(feed.batches), backend=backend, **options)


def require_same_on_all(link: Link, facts: Mapping[str, Any]) -> None:
    """Raise FingerprintMismatchError, on a rank that has them, for other facts than rank 0's."""
    if link.ranks > 1:
        _require_same(facts, tell(link, facts), link.rank)


def announced(link: Link, group: Group, folding: Folding, *, in_strips: bool = False) -> Group:
    """Tell the other ranks which streams the next pass folds, and whether they share the sums; return the same.

    They do where the plan says so, where the pass was begun so, and without segments always.
    """
    in_strips = in_strips or group.in_strips or (link.ranks > 1 and not folding.segment_batches)
    group = dataclasses.replace(group, in_strips=in_strips)
    if link.ranks > 1:
        tell(link, {_GROUP: group.plain})
    return group


def end_of(link: Link, progress: Progress) -> None:
    """Tell the other ranks that there are no more passes."""
    if link.ranks > 1:
        tell(link, {})
        received = link.traffic.array_bytes / 2**20
        progress.note(f"ranks: {link.ranks} of them, {received:,.1f} MiB of rows and sums received by rank 0")


def take_part(feed: RowFeed, folding: Folding, link: Link) -> None:
    """Do another rank's part of every pass that rank 0 announces."""
    first_pass = Batches()
    while told := tell(link, None):
        group = Group.of_plain(told[_GROUP])
        with ThreadPoolExecutor(folding.threads.workers) as executor:
            sink = new_sink(feed, folding, executor, link, in_strips=group.in_strips, first_pass=first_pass)
            if not sink.ended:
                feed.send(group, sink, folding, Silent())
            first_pass = sink.batches.batches


def common_facts(feed: RowFeed, network: str, folding: Folding) -> dict[str, Any]:
    """Return what all ranks must have in common; `network` is the feed's fingerprint."""
    rule = dict(folding.facts)
    return {
        "network": network,
        "streams": list(feed.streams),
        "choice": feed.choice,
        "BLAS": rule.pop("blas", ""),
        "rule": rule,
    }


def _require_same(ours: Mapping[str, Any], told: Mapping[str, Any], rank: int) -> None:
    """Raise FingerprintMismatchError where this rank was given something else than rank 0."""
    different = next((name for name, value in ours.items() if told[name] != value), None)
    if different is None:
        return
    remedy = "give every rank the same network, layers and settings"
    if different == "BLAS":
        remedy = "install the same on all, give all the same OPENBLAS_CORETYPE, or accept it with any_blas=True"
    raise FingerprintMismatchError(
        f"ranks: rank {rank} has another {different} than rank 0 ({_short(ours[different])}, there "
        f"{_short(told[different])}): {remedy}"
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
