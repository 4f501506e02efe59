"""Which samples are held out, which shard the others go to, and which positions of a sample are kept.

Each is decided by a hash of seed, sample number and position, and depends on nothing else: not on the order of the
batches, not on how far a sample was padded, not on the layer (layers with the same positions keep the same ones, so
their rows stay paired).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dalr_stream.errors import InvalidInputError

Keep = NDArray[np.bool_]
EVERY_ROW = "every row"
"""Recorded where no rule leaves rows out."""

_POSITION_BITS = 32  # tells 2^32 positions of 2^32 samples apart


@dataclass(frozen=True, slots=True)
class HoldoutRule:
    """Which samples are held out: decided by a hash of seed and sample number, whatever the order.

    Attributes
    ----------
    share
        Share of the samples to hold out, in [0, 1); 0 holds out none.
    seed
        Seed of the hash.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> ds.HoldoutRule(share=0.25).mask(np.arange(8)).tolist()
    [False, False, True, False, True, False, True, False]
    """

    share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.share < 1.0:
            raise InvalidInputError(f"heldout_share must lie in [0, 1), got {self.share}")

    def mask(self, samples: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return True for each held-out sample number."""
        return uniform_hash(samples, self.seed) < self.share

    def assign(self, samples: NDArray[np.int64], shards: int) -> NDArray[np.int64]:
        """Return the shard, 0 to `shards` - 1, of each sample number; `shards` for the held-out ones.

        What the share leaves of the hash's range is cut evenly, so each shard is a random part of the training samples.
        """
        u = (uniform_hash(samples, self.seed) - self.share) / (1.0 - self.share)
        shard = np.minimum((u * shards).astype(np.int64), shards - 1)
        return np.where(self.mask(samples), shards, shard)


def uniform_hash(numbers: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Map integers to [0, 1), seeded (splitmix64; Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        z = numbers.astype(np.uint64) + np.uint64(1)
        z = z * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed % 2**64) * np.uint64(0xD1342543DE82EF95)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def at_most(keep: Keep, most: int, *, seed: int, first_sample: int) -> Keep:
    """Return `keep` (N, T) with at most `most` positions of each sample left, those of the smallest hashes.

    `first_sample` is the number of the first of the N samples within its domain. A position is hashed by its rank among
    those that the sample keeps, so neither padding before them nor the batch that the sample came in decides anything.
    Each subset of a sample's kept positions is as likely as any other of its size, over seeds: a sum over the positions
    left, times (positions before) / (positions left), is unbiased.
    """
    samples, positions = keep.shape
    if positions <= most:
        return keep
    numbers = np.arange(first_sample, first_sample + samples, dtype=np.int64) << _POSITION_BITS
    ranks = np.cumsum(keep, axis=1) - 1
    hashes = uniform_hash(numbers[:, None] + ranks, seed)
    hashes[~keep] = 1.0  # above every hash
    smallest = np.argsort(hashes, axis=1, kind="stable")[:, :most]
    among_smallest = np.zeros_like(keep)
    np.put_along_axis(among_smallest, smallest, values=True, axis=1)
    return among_smallest & keep
