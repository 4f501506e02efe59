"""Several small batches on their way through the blocks together: each block is read once for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dalr_stream.errors import DalrStreamError
from dalr_stream.network.blocks.passes import BlockPasses
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.capture.proofs.observed import Observed, observed_pass
from dalr_stream.network.capture.resuming.calls import Call
from dalr_stream.network.capture.resuming.given import UsedError
from dalr_stream.network.capture.resuming.onward import ForwardRun
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.numerics.rows.streams import module_name

_SEED = 0x51ED270B


@dataclass(frozen=True, slots=True)
class BlockWalk:
    """A `proofs.ahead.Walk` through a network that was proved to give the same block by block."""

    model: nn.Module
    passes: BlockPasses
    pieces: Pieces

    def __call__(self, batches: Sequence[Any], layers: Sequence[LayerSpec]) -> list[Observed] | None:
        """Return what each batch showed, of as many blocks as are watched; None where one goes another way.

        What is drawn in a pass shows: each has random numbers of its own. Held: what a block gives of all batches.
        """
        by_pass: dict[int, list[LayerSpec]] = {}
        for layer in layers:
            by_pass.setdefault(self.passes.pass_of(module_name(layer.name)), []).append(layer)
        observed: list[Observed] = [{} for _ in batches]
        states: list[Mapping[Call, Any]] = [{} for _ in batches]
        devices = sorted({parameter.device.index for parameter in self.model.parameters() if parameter.is_cuda})
        with torch.random.fork_rng(devices=devices):
            for number in range(max(by_pass, default=-1) + 1):
                with self.pieces.present(self.passes.pieces[number]):
                    for each, batch in enumerate(batches):
                        torch.manual_seed(_SEED + number * len(batches) + each)
                        seen, kept = self._through(number, batch, states[each], by_pass.get(number, []))
                        if kept is None:
                            return None
                        observed[each] |= seen
                        states[each] = kept
        return observed

    def _through(
        self, number: int, batch: Any, given: Mapping[Call, Any], layers: Sequence[LayerSpec]
    ) -> tuple[Observed, Mapping[Call, Any] | None]:
        """Take one batch through one block; None in place of what is kept where it goes another way."""
        last = number == len(self.passes) - 1
        run = ForwardRun(given, {} if last else self.passes.done[number], until_kept=True)
        with observed_pass(self.model, layers) as seen:
            try:
                run(self.model, batch)
            except (DalrStreamError, torch.OutOfMemoryError):
                raise
            except (Exception, UsedError):  # noqa: BLE001  # whatever it is, the whole network says it
                return {}, None
        return seen, run.kept if run.is_complete else None
