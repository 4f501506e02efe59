"""What solving layer after layer gained over solving all of them at once, as it is kept and said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dalr_stream.engine.sequential import in_words


@dataclass(frozen=True, slots=True)
class LayerGain:
    """Relative output error of one layer, ||Y - Y~|| / ||Y - b||, in the two compressed networks."""

    layer: str
    parallel: float
    """All layers solved from the original network's statistics."""
    sequential: float
    """Each solved in the network as compressed so far."""

    def __str__(self) -> str:
        return f"{self.layer} {self.parallel:.4f} -> {self.sequential:.4f}"


@dataclass(frozen=True, slots=True)
class SequenceGain:
    """Both networks measured on the same rows, at the same sizes."""

    passes: tuple[tuple[str, ...], ...]
    """The layers of each pass."""
    measured_on: str
    """Which rows, in words."""
    layers: tuple[LayerGain, ...]
    """In the order of execution; a layer that a selection narrowed is measured at what reads its nodes."""

    def __str__(self) -> str:
        gains = ", ".join(map(str, self.layers))
        return (
            f"layers were compressed one after the other, in {in_words(self.passes)}; relative output error on "
            f"{self.measured_on}, all at once -> one after the other: {gains}"
        )

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> SequenceGain:
        """Return the record that `dataclasses.asdict` turned into plain values."""
        layers = tuple(LayerGain(**layer) for layer in plain["layers"])
        return cls(tuple(tuple(group) for group in plain["passes"]), plain["measured_on"], layers)
