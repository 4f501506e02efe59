"""Sums of records in a fixed order, so that the same records give the same bits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

from dalr_stream.errors import InvalidInputError


class Summand(Protocol):
    """A record that is added to others of its kind."""

    def __add__(self, other: Any, /) -> Any: ...


Addable = TypeVar("Addable", bound=Summand)


def merge_all(records: Iterable[Addable]) -> Addable:
    """Add up records in a fixed pairwise tree: ((0 + 1) + (2 + 3)) + ((4 + 5) + ...

    Parameters
    ----------
    records
        At least one; `Moments`, or anything else that is added with `+`. They are taken one at a time and added as soon
        as the tree allows, as a binary counter carries: of r records that are made on the way, at most log2(r) + 2 are
        held.

    Returns
    -------
    record
        Their sum, whose bits depend on the records and their order alone.

    Raises
    ------
    InvalidInputError
        For no records.

    Examples
    --------
    >>> import dalr_stream as ds
    >>> ds.numerics.merge_all(ds.Moments.of([[float(i)]]) for i in range(5)).mean.tolist()
    [2.0]
    """
    subtrees: list[tuple[int, Addable]] = []
    for record in records:
        size, total = 1, record
        while subtrees and subtrees[-1][0] == size:
            total = subtrees.pop()[1] + total
            size *= 2
        subtrees.append((size, total))
    if not subtrees:
        raise InvalidInputError("merge_all: needs at least one record")
    _, total = subtrees.pop()
    while subtrees:
        total = subtrees.pop()[1] + total
    return total
