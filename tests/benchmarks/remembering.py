"""Peak memory in fresh processes, beside what the plan said before anything ran."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "streaming"))
from peak_memory import increment_of, projected, tall_store


@dataclass(frozen=True)
class Held:
    """A line of the table; MiB beyond what the process held before."""

    features: int
    tiles: int
    held_out: float
    measured: float
    planned: float


def peaks(widths: Sequence[int], tiles: Sequence[int]) -> list[Held]:
    """Fold stores of so many tiles; the last number of tiles at every width but the widest."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tall_store(root / "warm", 64, 2)
        for d in widths:
            for count in tiles[:1] if d > 8192 else tiles:
                store = tall_store(root / f"{d}-{count}", d, count)
                for share in (0.0,) if d > 8192 else (0.0, 0.1):
                    measured, planned = increment_of(store, share=share), projected(d, share=share)
                    found.append(Held(d, count, share, measured / 2**20, planned / 2**20))
    return found
