"""How fast a machine, its links and a bucket are: stated by the user, measured here, or assumed; and which of these."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields

import torch

from dalr_stream.errors import InvalidInputError

ASSUMED = {"link": 1.25e9, "bucket": 2e8, "request": 0.05}
"""A link of 10 Gbit/s; two connections to a bucket, as tiles are put two at a time, of 100 MB/s each; and what object
stores take before their first byte."""
_WIDTH = 1024
_TURNS = 3


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast things go. What is left out is measured where the estimate is made, or assumed where that cannot be.

    Attributes
    ----------
    forward
        Floating-point operations a second of a forward pass, on one rank.
    sums
        Floating-point operations a second of adding up X'X, on one rank: d^2 a row, as half of the matrix is computed.
    link
        Bytes a second that one rank receives from others; 1.25e9 is assumed.
    bucket
        Bytes a second to and from a bucket; 2e8 is assumed.
    request
        Seconds until a bucket's server answers; 0.05 is assumed.

    Examples
    --------
    >>> import dalr_stream as ds
    >>> ds.Rates(forward=4e14, sums=2.7e13).link is None
    True
    """

    forward: float | None = None
    sums: float | None = None
    link: float | None = None
    bucket: float | None = None
    request: float | None = None

    def __post_init__(self) -> None:
        for name in self.names():
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidInputError(f"rates: {name} must be above 0, got {value}")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return what there are rates of."""
        return tuple(one.name for one in fields(cls))

    def of(self, name: str) -> float:
        """Return the rate of `link`, `bucket` or `request`: as stated, or as it is assumed."""
        stated: float | None = getattr(self, name)
        return ASSUMED[name] if stated is None else stated

    def source(self, name: str) -> str:
        """Return which of the two it is."""
        return "assumed" if getattr(self, name) is None else "as stated"


def products_here() -> float:
    """Return the floating-point operations a second of a float32 product on this machine's processor, measured."""
    one, seconds = torch.ones(_WIDTH, _WIDTH), float("inf")
    for _ in range(_TURNS):
        begun = time.perf_counter()
        torch.mm(one, one)
        seconds = min(seconds, time.perf_counter() - begun)
    return 2 * _WIDTH**3 / seconds
