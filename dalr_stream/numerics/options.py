"""Options parsed where they enter: enums given as members or as their values, and whole numbers within a range."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

import numpy as np

from dalr_stream.errors import InvalidInputError, RankError

Choice = TypeVar("Choice", bound=StrEnum)


def parse_choice(kind: type[Choice], value: str, name: str) -> Choice:
    """Return the member of `kind` that `value` is or names; raises InvalidInputError listing them."""
    try:
        return kind(value)
    except ValueError:
        names = ", ".join(repr(member.value) for member in kind)
        raise InvalidInputError(f"{name} must be one of {names}, got {value!r}") from None


def integer_within(value: int, largest: int, name: str) -> int:
    """Return `value` as an int in 1..largest; raises RankError."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not 1 <= value <= largest:
        raise RankError(f"{name} must lie in 1..{largest}, got {value}")
    return int(value)
