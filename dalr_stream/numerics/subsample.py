"""At most so many positions of each sample: a hash of seed, sample number and position, so any order agrees.

A choice depends on nothing else: not on the batches, not on how far a sample was padded, not on the layer (layers with
the same positions keep the same ones, so their rows stay paired).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dalr_stream.numerics.rows.sampling import uniform_hash

Keep = NDArray[np.bool_]
EVERY_ROW = "every row"
"""In place of the words of a rule that chooses some."""

_POSITION_BITS = 32  # tells 2^32 positions of 2^32 samples apart


def at_most(keep: Keep, most: int, *, seed: int, first_sample: int) -> Keep:
    """Return `keep` (N, T) with at most `most` positions of each sample left, those of the smallest hashes.

    `first_sample` is the number of the first of the N samples within its domain. Each subset of a sample's kept
    positions is as likely as any other of its size, over seeds: a sum over the positions chosen, times kept / chosen,
    is unbiased.
    """
    samples, positions = keep.shape
    if positions <= most:
        return keep
    numbers = np.arange(first_sample, first_sample + samples, dtype=np.int64) << _POSITION_BITS
    hashes = uniform_hash(numbers[:, None] + np.arange(positions), seed)
    hashes[~keep] = 1.0  # above every hash
    smallest = np.argsort(hashes, axis=1, kind="stable")[:, :most]
    chosen = np.zeros_like(keep)
    np.put_along_axis(chosen, smallest, values=True, axis=1)
    return chosen & keep
