"""Random numbers of a sample: decided by seed, sample number, position and draw, and by nothing else.

Philox is a function of a key and a counter (Salmon et al. 2011), here of (seed, draw) and (sample, position). So the
numbers are the same in whatever batch a sample comes, after any interruption and on any machine. A position is meant by
its rank among those of its sample that count: padding before it changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORD = 64
_BLOCK = 4
"""Words that Philox gives at each value of its counter."""


@dataclass(frozen=True, slots=True)
class SampleDraws:
    """Draw number `draw` of some consecutive samples.

    Attributes
    ----------
    seed
        Seed of all draws.
    first_sample
        Number of the first sample within its domain.
    samples
        How many there are.
    draw
        Number of the draw.
    """

    seed: int
    first_sample: int
    samples: int
    draw: int

    def signs(self, positions: int, features: int) -> NDArray[np.float32]:
        """(N, T, C): -1 or 1 with equal chance, independent of one another, at each of `positions`.

        Cost: a call for each position, and some nanoseconds a sign.
        """
        words = -(-features // _WORD)
        by_position = np.stack([self._words(position, words) for position in range(positions)], axis=1)
        bits = np.unpackbits(by_position.view(np.uint8), axis=-1, count=features, bitorder="little")
        return np.float32(1) - np.float32(2) * bits

    def uniform(self, positions: int) -> NDArray[np.float64]:
        """(N, T): numbers from [0, 1), one at each of `positions`."""
        words = np.concatenate([self._words(position, 1) for position in range(positions)], axis=1)
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def _words(self, position: int, count: int) -> NDArray[np.uint64]:
        """(N, count): 64 random bits each, lowest byte first; samples lie one after the other along the counter."""
        blocks = -(-count // _BLOCK)
        key: Any = np.array([self.seed % 2**64, self.draw], np.uint64)
        counter: Any = np.array([self.first_sample * blocks, position, 0, 0], np.uint64)
        words = np.random.Philox(counter=counter, key=key).random_raw(self.samples * blocks * _BLOCK)
        return np.ascontiguousarray(words.reshape(self.samples, -1)[:, :count]).astype("<u8", copy=False)
