"""Ranks as threads of one process: what one sends, another takes from a queue."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dalr_stream.numerics.rows.tiling import RowBatch
from dalr_stream.streaming.ranks.link import Message, Traffic


class StoppedError(Exception):
    """Stands for the end of a process."""


class Queues:
    def __init__(self, ranks):
        self.ways = {(one, other): queue.Queue() for one in range(ranks) for other in range(ranks)}
        self.stopped = threading.Event()


class QueueLink:
    def __init__(self, queues, rank, ranks):
        self.queues, self.rank, self.ranks, self.traffic = queues, rank, ranks, Traffic()

    def send(self, rank, message):
        self.queues.ways[self.rank, rank].put(Message(message.facts, [np.array(a) for a in message.arrays]))

    def receive(self, rank):
        while True:
            self.check()
            try:
                message = self.queues.ways[rank, self.rank].get(timeout=0.05)
            except queue.Empty:
                continue
            self.traffic.messages += bool(message.arrays)
            self.traffic.array_bytes += sum(array.nbytes for array in message.arrays)
            return message

    def check(self):
        if self.queues.stopped.is_set():
            raise StoppedError


def on_ranks(ranks, work):
    """Return what `work(link)` gives on rank 0; where a rank fails, the others stop and its error is raised."""
    queues = Queues(ranks)

    def one(rank):
        try:
            return work(QueueLink(queues, rank, ranks))
        except BaseException:
            queues.stopped.set()
            raise

    with ThreadPoolExecutor(ranks) as threads:
        futures = [threads.submit(one, rank) for rank in range(ranks)]
        errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, StoppedError)):
        raise error
    return futures[0].result()


def send(sink, layers, sizes, *, stop_at=None, changed=None):
    """Give a sink batches of these sizes, cut from each layer's rows; `changed`: the batch that another loader gave."""
    first = 0
    for number, size in enumerate(sizes):
        if number == stop_at:
            raise StoppedError
        digest = f"{number}-{first}" + ("x" if number == changed else "")
        if not sink.skip(number, size, digest):
            cut = {name: rows[first : first + size] for name, rows in layers.items()} if size else {}
            sink.write(RowBatch(size, digest, cut))
        first += size
    sink.finish()


def folded_on(ranks, new_sink, layers, sizes, folding, **options):
    """Return the moments, the record and the traffic of rank 0, each rank with a sink of its own."""

    def work(link):
        with ThreadPoolExecutor(1) as executor:
            sink = new_sink(folding, executor, link=link)
            send(sink, layers, sizes, **options)
            return None if link.rank else (dict(sink.freeze()), sink.record(), link.traffic)

    return on_ranks(ranks, work)
