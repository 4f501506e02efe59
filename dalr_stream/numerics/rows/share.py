"""Which batches a process works on, where several share them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

UNSEEN = "-"
"""In place of the digest of a batch that another process loads, or that is compared with none."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a process does of the batches up to some number."""

    stop: int
    """The batch after the last of which this is known."""
    own: Sequence[int]
    """The batches before it that this process loads: its own, and some of others' to be compared. They ascend."""
