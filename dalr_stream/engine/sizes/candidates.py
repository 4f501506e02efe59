"""Networks with other layers in some blocks of one whose weights stay on disk: all go through its blocks together.

None of them is ever whole in memory: while a block is there, what takes the places of its layers is cut and put in for
one network after the other, and its batches go one block further. So weights are read once for all of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from dalr_stream.errors import DiskSpaceError
from dalr_stream.network.blocks.alone import AlonePieces
from dalr_stream.network.blocks.changed_piece import ChangedPieces, Cut
from dalr_stream.network.blocks.passes import BlockPasses, Blocks
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.blocks.proof import Generations, prove_blocks
from dalr_stream.network.blocks.side_by_side import Outcome, Question, SideBySide, Variant
from dalr_stream.network.blocks.uncached import uncached
from dalr_stream.network.surgery.compress import parameter_count
from dalr_stream.numerics.rows.streams import module_name
from dalr_stream.progress import Progress

T = TypeVar("T")
_OF_DISK = 0.8
"""That is free: what networks on their way may take together."""


@dataclass
class Candidates:
    """The networks that `model` may become."""

    model: nn.Module
    example: Any
    """A batch: which blocks there are is seen and proved on it."""
    samples: int
    """That go through the blocks, about, for each network."""
    folder: Path
    """Where what blocks give lies meanwhile."""
    blocks: Blocks = True

    def variant(self, cuts: Mapping[str, Cut], fewer: Callable[[str, int], None] = lambda *_: None) -> Variant:
        """Return the network in which some layers are replaced; `fewer` is told of parameters gone, by piece."""
        by_piece: dict[str, list[str]] = {}
        for layer in cuts:
            by_piece.setdefault(self.pieces.holding(module_name(layer)) or "", []).append(layer)

        @contextmanager
        def made(piece: str) -> Iterator[nn.Module]:
            small = self._changed.piece(piece, {layer: cuts[layer] for layer in by_piece[piece]})
            fewer(piece, parameter_count(self.model.get_submodule(piece)) - parameter_count(small))
            yield small

        return Variant(by_piece, made)

    def outcomes(
        self,
        variants: Sequence[Variant],
        questions: Sequence[Question],
        progress: Progress,
        title: str,
        made_from: str | None = None,
    ) -> list[Outcome]:
        """Return what became of each network; see `SideBySide`."""
        _ = self._changed  # before a block is there: the network is run whole for it
        folder = self.folder / "stream"
        together = SideBySide(self.model, self._proved[0], self.pieces, folder, progress, title, made_from)
        return together.outcomes(variants, questions)

    def groups(self, networks: Sequence[T]) -> Iterator[Sequence[T]]:
        """Part networks into as many as the disk has room for at once; raises DiskSpaceError where it has for none."""
        if not networks:
            return
        each = self._proved[1].sample_bytes * self.samples
        self.folder.mkdir(parents=True, exist_ok=True)
        free = int(_OF_DISK * shutil.disk_usage(self.folder).free)
        if 2 * each > free:
            raise DiskSpaceError(
                f"'{self.folder}': measuring a network block by block takes {2 * each / 2**30:,.1f} GiB of disk for "
                f"what its blocks and the original's give, and {free / 2**30:,.1f} GiB may be taken: free some, or "
                "measure on fewer samples"
            )
        at_once = max(1, free // max(each, 1) - 1)
        yield from (networks[begin : begin + at_once] for begin in range(0, len(networks), at_once))

    @cached_property
    def pieces(self) -> Pieces:
        """Those of the network."""
        return Pieces.of(self.model)

    @cached_property
    def _proved(self) -> tuple[BlockPasses, Generations]:
        with uncached(self.model):
            passes = BlockPasses.of(self.model, self.example, self.pieces, self.blocks)
            return passes, prove_blocks(self.model, self.example, passes, self.pieces)

    @cached_property
    def _changed(self) -> ChangedPieces:
        """Gives pieces with other layers in them; cost: a forward pass of two samples."""
        passes = self._proved[0]
        called = dict.fromkeys(piece for pieces in passes.pieces for piece in pieces)
        return ChangedPieces(AlonePieces.of(self.model, self.example, self.pieces, called), passes)
