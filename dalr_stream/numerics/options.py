"""Options that are enums, given as members or as their string values."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from dalr_stream.errors import InvalidInputError

Choice = TypeVar("Choice", bound=StrEnum)


def parse_choice(kind: type[Choice], value: str, name: str) -> Choice:
    """Return the member of `kind` that `value` is or names; raises InvalidInputError listing them."""
    try:
        return kind(value)
    except ValueError:
        names = ", ".join(repr(member.value) for member in kind)
        raise InvalidInputError(f"{name} must be one of {names}, got {value!r}") from None
