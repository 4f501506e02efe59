"""Ridges as a run file writes them: a number, what chooses one, or absolute ones by method."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any

from pydantic import AfterValidator, BeforeValidator

from dalr_stream.numerics.methods import Method


class RidgeFrom(StrEnum):
    """What chooses a ridge: rows that the solution has not seen, or shrinkage, the moments themselves."""

    HELDOUT = "heldout"
    SHARDS = "shards"
    SHRINKAGE = "shrinkage"


def ridge_or(*choosers: RidgeFrom) -> BeforeValidator:
    """Return a parser of a ridge, or of what chooses it: one for both, so that a wrong value is one message."""

    def parse(value: Any) -> float | RidgeFrom:
        if value in list(choosers):
            return RidgeFrom(value)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = -1.0
        if not 0.0 <= number < math.inf:
            *others, last = (f"'{chooser.value}'" for chooser in choosers)
            raise ValueError(f"must be {', '.join(['a number >= 0', *others])} or {last}, got {value!r}")
        return number

    return BeforeValidator(parse)


def _absolute(value: float | dict[Method, float] | None) -> float | dict[Method, float] | None:
    named = value if isinstance(value, dict) else {} if value is None else {None: value}
    for method, number in named.items():
        if method is not None and not method.takes_ridge:
            raise ValueError(f"no ridge changes '{method.value}': leave it out")
        if not 0.0 <= number < math.inf:
            raise ValueError(f"must be >= 0 and finite, got {number}")
    return value


ABSOLUTE = AfterValidator(_absolute)
"""Checks absolute ridges: one for all methods, or a table by method."""
