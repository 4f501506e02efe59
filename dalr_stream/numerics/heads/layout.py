"""Which layers make up one attention, and how their features are parted into heads."""

from __future__ import annotations

from dataclasses import dataclass

from dalr_stream.errors import InvalidInputError


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

    Examples
    --------
    >>> import dalr_stream as ds
    >>> ds.numerics.HeadLayout("q", "k", "v", "o", heads=8, groups=2, size=64).shared
    4
    """

    queries: str
    keys: str
    values: str
    output: str
    heads: int
    groups: int
    size: int

    def __post_init__(self) -> None:
        for name in ("heads", "groups", "size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidInputError(f"layer '{self.output}': {name} must be a positive integer, got {value!r}")
        if self.heads % self.groups:
            raise InvalidInputError(
                f"layer '{self.output}': {self.heads} heads of queries cannot share {self.groups} of keys and values"
            )

    @property
    def shared(self) -> int:
        """Heads of the queries that share one of the keys and values."""
        return self.heads // self.groups

    @property
    def layers(self) -> tuple[str, str, str, str]:
        """The names, in the order of a forward pass."""
        return self.queries, self.keys, self.values, self.output
