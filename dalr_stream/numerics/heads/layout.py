"""Which layers make up one attention, how their features are parted into heads, and which of them positions rotate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.types import Indices


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """The four layers of an attention; `Structure.heads_of` finds it.

    Attributes
    ----------
    queries, keys, values, output
        Names of the layers.
    heads
        H: heads of the queries, one after the other in what the layer gives.
    groups
        G: heads of keys and values, each shared by H / G neighbouring heads of the queries; G = H where none is.
    size
        p: dimensions of each.
    rotated
        R: the first dimensions of each head of queries and keys, into which positions are rotated by pairs; 0 where
        none are.
    interleaved
        Pairs are (2i, 2i + 1); else (i, i + R/2).

    Examples
    --------
    >>> import dalr_stream as ds
    >>> ds.numerics.HeadLayout("q", "k", "v", "o", heads=8, groups=2, size=64).shared
    4
    >>> ds.numerics.HeadLayout("q", "k", "v", "o", heads=8, groups=2, size=6, rotated=6).pairs.tolist()
    [[0, 3], [1, 4], [2, 5]]
    """

    queries: str
    keys: str
    values: str
    output: str
    heads: int
    groups: int
    size: int
    rotated: int = 0
    interleaved: bool = False

    def __post_init__(self) -> None:
        for name in ("heads", "groups", "size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidInputError(f"layer '{self.output}': {name} must be a positive integer, got {value!r}")
        if self.heads % self.groups:
            raise InvalidInputError(
                f"layer '{self.output}': {self.heads} heads of queries cannot share {self.groups} of keys and values"
            )
        if self.rotated % 2 or not 0 <= self.rotated <= self.size:
            raise InvalidInputError(
                f"layer '{self.output}': positions must be rotated into an even number of a head's {self.size} "
                f"dimensions, got {self.rotated!r}"
            )

    @property
    def shared(self) -> int:
        """Heads of the queries that share one of the keys and values."""
        return self.heads // self.groups

    @property
    def layers(self) -> tuple[str, str, str, str]:
        """The names, in the order of a forward pass."""
        return self.queries, self.keys, self.values, self.output

    @property
    def felt(self) -> tuple[str, str]:
        """The layers whose gradients say what the loss feels of the heads: keys and output layer."""
        return self.keys, self.output

    @property
    def pairs(self) -> Indices:
        """(R/2, 2): the dimensions that positions rotate together."""
        dimensions = np.arange(self.rotated)
        return dimensions.reshape(-1, 2) if self.interleaved else dimensions.reshape(2, -1).T

    @property
    def step(self) -> int:
        """2 where positions are rotated: pairs stay together, so heads get narrower by two dimensions at a time."""
        return 2 if self.rotated else 1

    @property
    def sizes(self) -> Indices:
        """The sizes that heads may have, ascending: multiples of `step`, and p."""
        return np.append(np.arange(self.step, self.size, self.step), self.size)
