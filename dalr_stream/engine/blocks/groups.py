"""The passes over the batches that a network takes block by block, in their order.

forward     each block up to the last one that is watched
back        with gradients, from the last block to the first one that is watched for them: a block's inputs are
            folded together with its gradients then, and on the way forward the batches only go through it
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dalr_stream.engine.row_feed import Group
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.numerics.rows.streams import Side


@dataclass(frozen=True, slots=True)
class BlockOrder:
    """Which passes there are."""

    watched: frozenset[int]
    """The blocks whose layers are watched."""
    followed: tuple[tuple[LayerSpec, ...], ...]
    """Of each block, the layers that are watched for gradients."""
    all_back: bool = False
    """Whether blocks before these wait for the way back, too: for moments of one block at a time."""

    @classmethod
    def of(
        cls, layers: Sequence[LayerSpec], numbers: Mapping[str, int], blocks: int, *, all_back: bool = False
    ) -> BlockOrder:
        """Look at some layers; `numbers` has the block of each one's stream."""
        gradients = [layer for layer in layers if layer.side is Side.GRADIENTS]
        followed = (tuple(one for one in gradients if numbers[one.stream] == block) for block in range(blocks))
        return cls(frozenset(numbers.values()), tuple(followed), all_back)

    @property
    def turn(self) -> int | None:
        """The block at which the way back ends; None where there is none."""
        first = next((number for number, layers in enumerate(self.followed) if layers), None)
        return min(self.watched) if self.all_back and first is not None else first

    @property
    def last(self) -> int:
        """The last block that is run: with gradients that of the network."""
        return max(self.watched) if self.turn is None else len(self.followed) - 1

    @property
    def forward(self) -> range:
        """The blocks that are run on the way forward, in order; with gradients the last one is run on the way back."""
        return range(self.last + (self.turn is None))

    @property
    def back(self) -> range:
        """The blocks of the way back, in order."""
        return range(0) if self.turn is None else range(self.last, self.turn - 1, -1)

    def groups(
        self, streams: Sequence[Sequence[str]], parts: Callable[[Sequence[str]], Sequence[Group]]
    ) -> list[Group]:
        """Return the passes; `parts` parts the `streams` of a block by what fits."""
        found: list[Group] = []
        for number in self.forward:
            found += _of_block(number, parts([] if number in self.back else streams[number]))
        for number in self.back:
            followed = {layer.stream for layer in self.followed[number]}
            for group in _of_block(number, parts(streams[number])):
                back = not group.again or not followed.isdisjoint(group)
                found.append(dataclasses.replace(group, back=back))
        return found


def _of_block(number: int, parts: Sequence[Group]) -> list[Group]:
    return [dataclasses.replace(part, block=number, again=again > 0) for again, part in enumerate(parts)]
