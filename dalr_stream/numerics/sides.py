"""What a stream of rows is called: a layer's inputs by the layer's name, its outputs as `name@outputs`.

Rows, moments and folders go by that name, so the two can lie beside each other and never pass for one another.
"""

from __future__ import annotations

from enum import StrEnum


class Side(StrEnum):
    """Which side of a layer is watched."""

    INPUTS = "inputs"
    """What the layer reads, X."""
    OUTPUTS = "outputs"
    """What the module returns, Y = W X + b: the bias is in it, so the moments of Z = Y - b have the mean less b."""


def stream_name(layer: str, side: Side) -> str:
    """Return the name under which one side of a layer is kept."""
    return layer if side is Side.INPUTS else f"{layer}@{side.value}"


def layer_of_stream(stream: str) -> str:
    """Return the layer that a stream is a side of: weights are kept under its name."""
    layer, _, last = stream.rpartition("@")
    return layer if last in {side.value for side in Side} else stream
