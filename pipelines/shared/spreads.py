"""A quantity over repetitions, in a cell of a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def mean_and_error(values: Sequence[float], digits: int = 1) -> str:
    """Return mean +- standard error; of a single value, the value."""
    error = f" +- {statistics.stdev(values) / math.sqrt(len(values)):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{error}"
