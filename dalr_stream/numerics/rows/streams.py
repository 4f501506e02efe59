"""Names of streams of rows: inputs by the layer's name, the others as `name@outputs`, `name@channels` and so on.

Rows of two networks side by side, [x | z], are a stream too: `name@cross` and the other members of `Pairing`.

A group of a convolution is a layer of its own, `name@group0`, `name@group1`, ... Rows, moments and folders go by these
names, so they can lie side by side without being mistaken for one another.
"""

from __future__ import annotations

from enum import StrEnum

from dalr_stream.errors import InvalidInputError

GROUP = "@group"
_NO_FOLDERS = "", ".", ".."
_IN_NO_FOLDER = "/\\\0"


class Side(StrEnum):
    """What of a layer is recorded.

    Attributes
    ----------
    INPUTS
        What the layer reads, X.
    OUTPUTS
        What the module returns, Y = W X + b: the bias is in it, so the moments of Z = Y - b have the mean less b.
    CHANNELS
        What the layer reads, one row per position and one feature per channel: selections are solved from it.
    GRADIENTS
        The gradient of a loss by Y, a row where Y has one.
    RESIDUAL
        What Y is added to, the stream before the layer writes into it, in the layer's own units.
    """

    INPUTS = "inputs"
    OUTPUTS = "outputs"
    CHANNELS = "channels"
    GRADIENTS = "gradients"
    RESIDUAL = "residual"


class Pairing(StrEnum):
    """What stands beside what, row for row, where two networks are watched: [x | z]."""

    OUTPUTS = "cross"
    """What the layer reads in one network beside what it gives in the other."""
    STREAM = "cross-stream"
    """What it reads in the one beside what it gives in the other, and what the stream that takes it in has lost."""
    INPUTS = "cross-inputs"
    """What the layer reads in the one beside what it reads in the other."""
    CHANNELS = "cross-channels"
    """The channels that the layer reads in the one beside those that it reads in the other."""

    @classmethod
    def of(cls, inputs: Side, targets: Side) -> Pairing:
        """Return the pairing of x, which has the one side, with z, which has the other."""
        pairings = {(Side.INPUTS, Side.OUTPUTS): cls.OUTPUTS, (Side.INPUTS, Side.INPUTS): cls.INPUTS}
        pairings[Side.CHANNELS, Side.CHANNELS] = cls.CHANNELS
        try:
            return pairings[inputs, targets]
        except KeyError:
            raise InvalidInputError(
                f"{inputs.value} cannot be paired with {targets.value} of another network"
            ) from None


SIDES = frozenset([*(side.value for side in Side), *(pairing.value for pairing in Pairing)])
"""What may follow '@' in the name of a stream."""


def stream_name(layer: str, side: Side | Pairing) -> str:
    """Return the name under which rows of a layer are kept."""
    return layer if side is Side.INPUTS else f"{layer}@{side}"


def layer_of_stream(stream: str) -> str:
    """Return the layer that a stream is a side of: weights are kept under its name."""
    layer, _, last = stream.rpartition("@")
    return layer if last in SIDES else stream


def group_name(layer: str, number: int) -> str:
    """Return the name of one group of a layer."""
    return f"{layer}{GROUP}{number}"


def module_name(name: str) -> str:
    """Return the name of the module that a layer, or a group of one, is."""
    return name.partition(GROUP)[0]


def require_name(name: str, what: str) -> None:
    """Raise InvalidInputError where `name` is not the name of one folder within a store, but a path to others."""
    if name in _NO_FOLDERS or any(sign in name for sign in _IN_NO_FOLDER):
        raise InvalidInputError(
            f"{what} {name!r}: is the name of a folder in a store, so it must not be empty, '.' or '..', nor contain "
            "'/', '\\' or NUL: rename it"
        )
