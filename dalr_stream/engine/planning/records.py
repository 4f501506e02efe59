"""What was estimated: seconds, links and requests of each layer and of all, with what they rest on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from dalr_stream.engine.planning.rates import Rates
from dalr_stream.progress import seconds_in_words
from dalr_stream.storage.buckets.requests import Requests
from dalr_stream.streaming.plan import MemoryPlan


@dataclass(frozen=True, slots=True)
class LayerEstimate:
    """What one layer takes.

    Attributes
    ----------
    name
        Of its rows and moments.
    sums_seconds
        Rows to moments, by one process.
    sent_bytes
        What all ranks together send of it: its rows, or its sums in one join.
    requests
        What it asks of a bucket's server.
    """

    name: str
    sums_seconds: float
    sent_bytes: int
    requests: Requests


@dataclass(frozen=True, slots=True)
class Estimate:
    """What capturing and accumulating take, before they start.

    Attributes
    ----------
    plan
        Memory, disk, rows and passes, layer by layer.
    layers
        Time, links and requests of each layer.
    passes_seconds
        Forward passes, by one process.
    ranks
        How many processes share the work, each with such a machine for itself.
    beside
        What the store asks of a bucket's server for no layer: manifests, and its claim.
    rates
        How fast links and bucket are taken to be.
    basis
        What was measured, stated and assumed, in words.
    """

    plan: MemoryPlan
    layers: tuple[LayerEstimate, ...]
    passes_seconds: float
    ranks: int
    beside: Requests
    rates: Rates
    basis: tuple[str, ...]

    @property
    def sums_seconds(self) -> float:
        """Rows to moments of all layers, by one process."""
        return sum(layer.sums_seconds for layer in self.layers)

    @property
    def requests(self) -> Requests:
        """What a bucket's server is asked in all; nothing where the store is a folder."""
        return sum((layer.requests for layer in self.layers), self.beside)

    @property
    def sent_bytes(self) -> int:
        """What all ranks together send: rows, or sums in one join."""
        return sum(layer.sent_bytes for layer in self.layers)

    @property
    def received_bytes(self) -> int:
        """What rank 0, which receives most, receives of it."""
        if not self.plan.direct or self.ranks == 1:
            return self.sent_bytes
        shared = sum(layer.sent_bytes for layer in self.layers if self.plan.in_strips(layer.name) is not None)
        joined = (self.sent_bytes - shared) // (self.ranks - 1) * (self.ranks - 1).bit_length()
        return shared // self.ranks + joined

    @property
    def links_seconds(self) -> float:
        """Until rank 0 has received that."""
        return self.received_bytes / self.rates.of("link")

    @property
    def bucket_seconds(self) -> float:
        """Requests one after the other, and their bytes: none where nothing is done beside them."""
        asked = self.requests
        waiting = (asked.puts + asked.gets + asked.small) * self.rates.of("request")
        return waiting + (asked.put_bytes + asked.got_bytes) / self.rates.of("bucket")

    @property
    def seconds(self) -> float:
        """All of it on all ranks; rows that lie in a store are folded by one process."""
        shared = self.passes_seconds + (self.sums_seconds if self.plan.direct else 0.0)
        own = 0.0 if self.plan.direct else self.sums_seconds
        return shared / self.ranks + own + self.links_seconds + self.bucket_seconds

    @property
    def lines(self) -> Iterator[str]:
        """The totals in words, and what they rest on."""
        yield (
            f"capture and accumulate on {self.ranks} rank{'s'[: self.ranks - 1]}: about "
            f"{seconds_in_words(self.seconds)}; loading data is not in it"
        )
        if self.requests.puts:
            yield bucket_in_words(self.requests)
        yield from self.basis

    def facts(self) -> dict[str, Any]:
        """Return it as plain values; of the plan what `estimate --json` has."""
        return {
            "seconds": self.seconds,
            "passes_seconds": self.passes_seconds,
            "sums_seconds": self.sums_seconds,
            "links_seconds": self.links_seconds,
            "bucket_seconds": self.bucket_seconds,
            "ranks": self.ranks,
            "sent_bytes": self.sent_bytes,
            "received_bytes": self.received_bytes,
            "requests": asdict(self.requests),
            "layers": [asdict(layer) for layer in self.layers],
            "basis": list(self.basis),
        }


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def bucket_in_words(asked: Requests) -> str:
    """Say what a bucket's server is asked."""
    return (
        f"bucket: {asked.puts:,} puts of {_size(asked.put_bytes)}, {asked.gets:,} gets of {_size(asked.got_bytes)} "
        f"(before compression) and at most {asked.small:,} small requests, besides a put every 10 s, and checkpoints"
    )
