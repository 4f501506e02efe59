"""In which order the rows of a layer come: sample after sample, or position after position.

A layer that gets (N, T, d), or (N T, d) reshaped from it, has its rows sample after sample. One that gets (T, N, d), as
torch's recurrent and attention layers do by default, or (T N, d), has the first position of every sample, then the
second. Only a batch with one sample changed tells these apart: see `proof`.
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

    def numbers(self, leading: tuple[int, ...], samples: int) -> NDArray[np.int64]:
        """(N, P): the flat number of each row of each sample."""
        before = math.prod(leading[: self.turns]) // samples if self.turns else 1
        rows = np.arange(math.prod(leading), dtype=np.int64)
        return rows.reshape(before, samples, -1).swapaxes(0, 1).reshape(samples, -1)

    @property
    def words(self) -> str:
        """The order in words."""
        return "position after position" if self.turns else "sample after sample"


Orders = Mapping[str, RowOrder | None]
"""By stream, where it is proved; None for a stream of one row a sample, in which all orders are the same."""


def possible_orders(leading: tuple[int, ...], samples: int) -> Iterator[RowOrder]:
    """Yield the orders in which `samples` samples can give rows of a shape, the most usual first."""
    rows = math.prod(leading)
    if samples == 0 or rows % samples:
        return
    yield RowOrder()
    for turns in range(1, len(leading) + 1):
        if math.prod(leading[:turns]) % samples == 0 and math.prod(leading[:turns]) > samples:
            yield RowOrder(turns)


def order_in(orders: Orders | None, stream: str, leading: tuple[int, ...], samples: int) -> RowOrder:
    """Return the order of a layer's rows; samples come first where nothing is proved.

    Raises InvalidInputError where the batch that proved it had one row a sample, and this one has more.
    """
    order = (orders or {}).get(stream, RowOrder())
    if order is None and math.prod(leading) > samples:
        raise InvalidInputError(
            f"layer '{stream}': gave one row for each sample of the first batch, and rows of shape {leading} for these "
            f"{samples}: let a batch with several positions come first, which shows in what order they are"
        )
    return order or RowOrder()
