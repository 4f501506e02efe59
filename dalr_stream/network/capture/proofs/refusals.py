"""What the proof of a capture says where it fails: the layer, the reason, what to do."""

from __future__ import annotations

from typing import NoReturn

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.proofs.observed import Calls

REMEDY = "or leave the layer out; prove=False (`capture.prove = false`) takes the rows as they come, unproved"


def called(stream: str, number: int, calls: int) -> str:
    """Return a layer in words, with the number of a call where there are several."""
    return f"'{stream}'" if calls == 1 else f"'{stream}', call {number + 1} of {calls}"


def refuse(layer: str, reason: str) -> NoReturn:
    """Raise InvalidInputError for what the proof found out about a layer, with what to do."""
    raise InvalidInputError(f"layer {layer}: {reason}, {REMEDY}")


def refuse_padding(layer: str) -> NoReturn:
    """Refuse a layer whose rows depend on what stands in the padding."""
    refuse(
        layer,
        "rows that count change with the content of the padding: the network is not given the mask, or does not leave "
        "padding out by it, or it is not this layer's mask",
    )


def refuse_routed(layer: str, rows: int, after: Calls) -> NoReturn:
    """Refuse a layer that got another number of rows for a batch with one sample replaced."""
    refuse(
        layer,
        f"it gave {rows} rows for a batch and {sum(len(seen.projections) for seen in after)} with one sample replaced: "
        "rows are packed, or sent to it by a router, so that whose they are is not known",
    )
