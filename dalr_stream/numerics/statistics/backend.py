"""What folds, and in what form it takes rows: numpy's way, and what another library has to bring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dalr_stream.numerics.rows.stacked import stacked
from dalr_stream.numerics.statistics.folding import CpuFold, NewFold


def _as_they_are(rows: Any) -> Any:
    return rows


@dataclass(frozen=True, slots=True)
class Backend:
    """The functions by which a fold handles rows; numpy's by default."""

    new_fold: NewFold = CpuFold
    join: Callable[[Sequence[Any]], Any] = np.concatenate
    """Concatenates rows."""
    to_host: Callable[[Any], Any] = np.asarray
    """Gives rows as an array, for a checkpoint."""
    stage: Callable[[Any], Any] = _as_they_are
    """Brings rows read from a store to where they are folded; called by the threads that read ahead."""
    stack: Callable[[Sequence[Any]], Any] | None = stacked
    """Makes the rows of a tile of those of several batches; None where it takes `join` to do so."""
