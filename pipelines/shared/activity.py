"""How evenly the features of a layer respond (DALR, Fig. 2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HALF = 0.5


def half_share(rates: NDArray[np.float64]) -> float:
    """Return the smallest share of the features that carries half of the activations, from each one's rate."""
    carried = np.cumsum(np.sort(rates)[::-1])
    return (int(np.searchsorted(carried, HALF * carried[-1])) + 1) / rates.size
