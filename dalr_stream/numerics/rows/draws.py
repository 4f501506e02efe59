"""Random numbers of a sample: decided by seed, sample number and draw, and by nothing else.

Philox is a function of a key and a counter (Salmon et al. 2011): here the key is (seed, sample), the counter begins at
the draw. So the numbers are the same in whatever batch a sample comes, after any interruption and on any machine.
A position has the numbers of its rank among those of its sample that count: padding before it changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORD = 64


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
        """(N, T, C): -1 or 1 with equal chance, independent of one another, at each of `positions`."""
        words = -(-features // _WORD)
        bits = np.unpackbits(self._words(positions * words).view(np.uint8), axis=1, bitorder="little")
        by_position = bits.reshape(self.samples, positions, words * _WORD)[:, :, :features]
        return np.float32(1) - np.float32(2) * by_position

    def uniform(self, positions: int) -> NDArray[np.float64]:
        """(N, T): numbers from [0, 1), one at each of `positions`."""
        return (self._words(positions) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def _words(self, count: int) -> NDArray[np.uint64]:
        """(N, count): 64 random bits each, lowest byte first."""
        words = np.empty((self.samples, count), "<u8")
        for number in range(self.samples):
            key: Any = np.array([self.seed % 2**64, self.first_sample + number], np.uint64)
            counter: Any = np.array([0, 0, 0, self.draw], np.uint64)
            words[number] = np.random.Philox(counter=counter, key=key).random_raw(count)
        return words
