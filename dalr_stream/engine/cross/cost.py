"""What pairs of layers cost before two networks run on anything: rows of both side by side, and a forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dalr_stream.engine.estimate import taken_of
from dalr_stream.network.capture.batches import samples_in
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.network.measure.memory import forward_memory
from dalr_stream.numerics.rows.streams import Pairing, stream_name
from dalr_stream.streaming.cost import LayerLoad

_FLOAT32 = 4
COPIES = 2
"""Of a batch's rows: those of each network, and both side by side."""


@dataclass(frozen=True, slots=True)
class PairMemory:
    """What a batch takes of two networks that run on it one after the other."""

    forward_bytes: int = 0
    """Of one forward pass, of whichever network takes more."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """How many a batch has of each stream."""

    @classmethod
    def of(cls, models: Iterable[nn.Module], batch: Any, layers: Sequence[LayerSpec], rule: RowRule) -> PairMemory:
        """Run each network on a batch; `layers` are of the first, and rows of the others are as many."""
        first, *others = models
        if batch is None or not samples_in(batch):
            return cls()
        taken = taken_of(first, batch, layers, rule)
        forward = max(forward_memory(model, batch).peak_bytes for model in (first, *others))
        return cls(forward, {name: one.rows.shape[0] for name, one in taken.items()})

    def batch_bytes(self, stream: str, features: int, beside: int = 0) -> int:
        """Return what the joint rows of a batch take, `features` wide, on their way to a tile.

        `beside` are those of a stream that z is to mend, in either network.
        """
        return COPIES * _FLOAT32 * self.rows.get(stream, 0) * (features + beside)


def pair_load(layer: LayerSpec, rows: int = 0, batch: PairMemory | None = None, *, mends: bool = False) -> LayerLoad:
    """Return what the plan needs to know of a layer's inputs beside its outputs, or what is to mend a stream."""
    pairing = Pairing.STREAM if mends else Pairing.OUTPUTS
    return _load(layer, pairing, layer.inputs + layer.outputs, rows, batch, layer.outputs if mends else 0)


def narrowest_pair_load(layer: LayerSpec, rows: int = 0, batch: PairMemory | None = None) -> LayerLoad:
    """Return the same for a layer whose outputs may follow from its inputs: those are watched where they are fewer."""
    if not is_wider_out(layer):
        return pair_load(layer, rows, batch)
    return _load(layer, Pairing.INPUTS, 2 * layer.inputs, rows, batch)


def is_wider_out(layer: LayerSpec) -> bool:
    """Tell whether a layer gives more features than it reads."""
    return layer.outputs > layer.inputs


def _load(  # what a load is made of
    layer: LayerSpec, pairing: Pairing, features: int, rows: int, batch: PairMemory | None, beside: int = 0
) -> LayerLoad:
    taken = 0 if batch is None else batch.batch_bytes(layer.stream, features, beside)
    return LayerLoad(stream_name(layer.name, pairing), features, rows, batch_bytes=taken)
