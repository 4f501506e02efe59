"""The passes over the batches that a network takes block by block, in their order.

forward     each block up to the last one that is watched
back        with gradients, from the last block to the first one that is watched for them: a block's inputs are
            folded together with its gradients then, and on the way forward the batches only go through it
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import overload


@dataclass(frozen=True, slots=True)
class BlockGroup(Sequence[str]):
    """The streams that are folded in one pass of a block: of some blocks none."""

    number: int
    streams: tuple[str, ...]
    again: bool = False
    """Whether the block ran before for other streams, and what it gives is on disk."""
    back: bool = False
    """Whether gradients go back through it."""

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return self.streams[index]

    def __len__(self) -> int:
        return len(self.streams)


@dataclass(frozen=True, slots=True)
class BlockOrder:
    """Which passes there are."""

    blocks: int
    watched: Collection[int]
    """The blocks whose layers are watched."""
    followed: Collection[int]
    """Those that are watched for gradients."""

    @property
    def turn(self) -> int | None:
        """The block at which the way back ends; None where there is none."""
        return min(self.followed, default=None)

    @property
    def last(self) -> int:
        """The last block that is run: with gradients that of the network."""
        return max(self.watched) if self.turn is None else self.blocks - 1

    @property
    def forward(self) -> range:
        """The blocks that are run on the way forward, in order; with gradients the last one is run on the way back."""
        return range(self.last + (self.turn is None))

    @property
    def back(self) -> range:
        """The blocks of the way back, in order."""
        return range(0) if self.turn is None else range(self.last, self.turn - 1, -1)

    def groups(self, parts: Callable[[int], Sequence[tuple[str, ...]]], followed: Collection[str]) -> list[BlockGroup]:
        """Return the passes; `parts` has the streams of a block by what fits, `followed` those of gradients."""
        found: list[BlockGroup] = []
        for number in self.forward:
            found += [BlockGroup(number, ())] if number in self.back else _groups(number, parts(number))
        for number in self.back:
            for group in _groups(number, parts(number)):
                back = not group.again or any(stream in followed for stream in group)
                found.append(dataclasses.replace(group, back=back))
        return found


def _groups(number: int, parts: Sequence[tuple[str, ...]]) -> list[BlockGroup]:
    return [BlockGroup(number, part, again=part is not parts[0]) for part in parts]
