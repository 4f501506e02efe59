"""What large runs would take on 8 to 64 devices: the engine's own plan of their shapes, and rates measured or assumed.

Nothing is run. Measured is the rate of sums (docs/results/devices.md); assumed are those of the network and the link.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dalr_stream.streaming.cost import LayerLoad
from dalr_stream.streaming.plan import plan

SUMS_A_SECOND = 65_536 * 4096**2 / 0.04
"""Measured: entries of X X^T, d^2 a row, that an H200 adds up in double precision."""
LINK_BYTES_A_SECOND = 2.5e9
"""Assumed: what reaches rank 0."""
RANK_BYTES = 180 * 2**30
"""Memory of the machine for a rank's sums."""
SEGMENTS = 256
HOURS = 3600.0


@dataclass(frozen=True)
class Job:
    """A network and its data."""

    name: str
    rows: int
    """Pictures or tokens."""
    multiply_adds: float
    """Of the network, a row."""
    rate: float
    """Assumed: multiply-adds of the network a second on one device."""
    widths: tuple[tuple[int, ...], ...]
    """Of the watched layers, those of each block together."""


@dataclass(frozen=True)
class Planned:
    """What a job takes on some ranks."""

    job: Job
    by_block: bool
    ranks: int
    passes: int
    """Through the network, or through one block after the other."""
    join_bytes: int
    """What rank 0 receives in the last join of all passes together, of log2 of the ranks; there are more before it."""
    moments_bytes: int
    rank_bytes: int

    @property
    def network_hours(self) -> float:
        """Every pass is one through the network; block by block all blocks together are one."""
        passes = 1 if self.by_block else self.passes
        return passes * self.job.rows * self.job.multiply_adds / self.job.rate / self.ranks / HOURS

    @property
    def sums_hours(self) -> float:
        """Rows to moments."""
        entries = sum(width**2 for block in self.job.widths for width in block)
        return self.job.rows * entries / SUMS_A_SECOND / self.ranks / HOURS

    @property
    def joins_hours(self) -> float:
        """What the last joins take on the link."""
        return self.join_bytes / LINK_BYTES_A_SECOND / HOURS


def decoder(name: str, tokens: int, parameters: float, depth: int, width: int, middle: int) -> Job:
    """Return a decoder: what queries, keys and values read, what the output reads, and both halves of a gated MLP."""
    return Job(name, tokens, parameters, 0.4 * 989e12 / 2, ((width, width, width, middle),) * depth)


JOBS = (
    Job("VGG19, ImageNet", 1_281_167, 19.6e9, 0.5 * 67e12 / 2, ((25_088, 4096, 4096),)),
    decoder("8B decoder", 2**22, 8.0e9, 32, 4096, 14_336),
    decoder("70B decoder", 2**22, 70.0e9, 80, 8192, 28_672),
)
RANKS = (8, 16, 32, 64)


def planned(job: Job, ranks: int, *, by_block: bool) -> Planned:
    """Return what it takes: all blocks in passes over the whole network, or one block after the other."""
    blocks = [
        [LayerLoad(f"{number}.{place}", width, job.rows) for place, width in enumerate(block)]
        for number, block in enumerate(job.widths)
    ]
    parts = blocks if by_block else [[load for block in blocks for load in block]]
    plans = [
        plan(part, threads=1, heldout_share=0.0, direct=True, memory_limit_bytes=RANK_BYTES, segments=SEGMENTS)
        for part in parts
    ]
    sums = [4 * load.features * (load.features + 1) for part in parts for load in part]
    return Planned(
        job,
        by_block,
        ranks,
        sum(len(one.groups) for one in plans),
        (ranks - 1).bit_length() * sum(sums),
        8 * sum(load.features**2 for part in parts for load in part),
        max(one.peak_bytes for one in plans),
    )


def plans() -> Iterator[Planned]:
    """Yield all of them."""
    for job in JOBS:
        for by_block in (False, True) if len(job.widths) > 1 else (False,):
            for ranks in RANKS:
                yield planned(job, ranks, by_block=by_block)
