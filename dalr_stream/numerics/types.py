"""The arrays that records and formulas are made of, defined once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]
"""Numbers of features, nodes, samples or ranks."""
Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]
