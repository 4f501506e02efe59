"""In which order the rows of a layer come: sample after sample, or position after position.

A layer that gets (N, T, d), or (N T, d) reshaped from it, has its rows sample after sample. One that gets (T, N, d), as
torch's recurrent and attention layers do by default, or (T N, d), has the first position of every sample, then the
second. Only a batch with one sample changed tells these apart: see `proofs.proof`.

A layer that is called several times may at some calls read a table that has no samples, of relative positions say.
Each sample reads all of it, as one that comes alone does, so that the rows do not depend on the size of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dalr_stream.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class RowOrder:
    """Where the sample stands among the leading dimensions of a layer's rows."""

    turns: int = 0
    """The sample turns fastest within so many of the first dimensions: in (T, N, d) within two, in (T N, d) within one.
    0 where samples come first."""
    of_every_sample: bool = False
    """Every row is of each sample: those of a table, of positions say, that a layer reads beside its samples' own."""

    routed: bool = False
    """A router decides which rows there are: see `routed`."""

    def numbers(self, leading: tuple[int, ...], samples: int) -> NDArray[np.int64]:
        """(N, P): the flat number of each row of each sample."""
        rows = np.arange(math.prod(leading), dtype=np.int64)
        if self.of_every_sample:
            return np.tile(rows, (samples, 1))
        before = math.prod(leading[: self.turns]) // samples if self.turns else 1
        return rows.reshape(before, samples, -1).swapaxes(0, 1).reshape(samples, -1)


Orders = Mapping[str, tuple[RowOrder | None, ...]]
"""By stream, where it is proved, of each call of its layer; None for one row a sample, where all orders are alike."""


def possible_orders(leading: tuple[int, ...], samples: int) -> Iterator[RowOrder]:
    """Yield the orders in which `samples` samples can give rows of a shape, the most usual first."""
    rows = math.prod(leading)
    if samples == 0 or rows % samples:
        return
    yield RowOrder()
    for turns in range(1, len(leading) + 1):
        if math.prod(leading[:turns]) % samples == 0 and math.prod(leading[:turns]) > samples:
            yield RowOrder(turns)


def order_of_call(orders: Orders | None, stream: str, number: int) -> RowOrder | None:
    """Return the order of a layer's rows at call `number`; samples come first where nothing is proved."""
    calls = (orders or {}).get(stream, ())
    return calls[number] if number < len(calls) else RowOrder()


def is_routed(orders: Orders | None, stream: str) -> bool:
    """Tell whether a router decides which rows a layer gets."""
    return any(order is not None and order.routed for order in (orders or {}).get(stream, ()))


def require_order(stream: str, order: RowOrder | None, leading: tuple[int, ...], samples: int) -> RowOrder:
    """Return the order of a layer's rows in a batch of `samples`.

    Raises InvalidInputError where the batch that proved it had one row a sample, and this one has more.
    """
    if order is None and math.prod(leading) > samples:
        raise InvalidInputError(
            f"layer '{stream}': gave one row for each sample of the first batch, and rows of shape {leading} for these "
            f"{samples}: let a batch with several positions come first, which shows in what order they are"
        )
    return order or RowOrder()
