"""Options parsed where they enter: enums given as members or as their values, and whole numbers within a range."""

from __future__ import annotations

from enum import StrEnum
from numbers import Real
from typing import TypeGuard, TypeVar

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


def whole_number(value: int, name: str, least: int = 1) -> int:
    """Return `value` as an int of at least `least`; raises InvalidInputError."""
    if not _is_whole(value) or value < least:
        raise InvalidInputError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(value)


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether something is a real number, and neither NaN nor a truth value."""
    return isinstance(value, Real) and not isinstance(value, bool) and value == value  # noqa: PLR0124  # NaN is not


def require_share(value: float, name: str) -> None:
    """Raise InvalidInputError for what is no number in (0, 1]."""
    if not is_number(value) or not 0.0 < value <= 1.0:
        raise InvalidInputError(f"{name} must lie in (0, 1], got {value!r}")


def integer_within(value: int, largest: int, name: str) -> int:
    """Return `value` as an int in 1..largest; raises RankError."""
    if not _is_whole(value) or not 1 <= value <= largest:
        raise RankError(f"{name} must lie in 1..{largest}, got {value}")
    return int(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
