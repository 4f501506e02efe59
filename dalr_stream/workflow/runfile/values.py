"""How values of a run file are written: names of functions, devices, masks, shares, bytes."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from dalr_stream.errors import ConfigError

_FUNCTION = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"
FACTORY, METRIC, LOSS = rf"^{_FUNCTION}$", rf"^(accuracy|{_FUNCTION})$", rf"^(cross_entropy|outputs|{_FUNCTION})$"
DEVICE, FOLD_DEVICE = r"^(cpu|cuda(:\d+)?)$", r"^(cpu|cupy|cuda(:\d+)?)$"
PATTERNS = {
    FACTORY: "must read like module:function",
    METRIC: 'must be "accuracy" or module:function',
    LOSS: 'must be "cross_entropy", "outputs" or module:function',
    DEVICE: "must be cpu, cuda or cuda:1",
    FOLD_DEVICE: "must be cpu, cuda, cuda:1 or cupy",
}
"""What each pattern asks for, in words."""
Factory = Annotated[str, Field(pattern=FACTORY)]
Options = dict[str, Any]


def _read_mask(value: Any) -> Any:
    """Take a name, names for calls, or a table of these; one validator, so that a wrong value is one message."""
    names = value.values() if isinstance(value, dict) else [value]
    flat = [one for name in names for one in (name if isinstance(name, list) and name else [name])]
    if not all(isinstance(one, str) and one for one in flat):
        raise ValueError(f"must be a key of the batch or 'module:function', a list or a table of these, got {value!r}")
    return value


Masks = Annotated[
    str | list[str] | dict[str, str | list[str]],
    BeforeValidator(_read_mask),
    Field(json_schema_extra={"in_words": "key of the batch, module:function, or a list or a table of these"}),
]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]


def parse_bytes(text: str) -> int:
    """Return the bytes in `8GiB`, `500 MB` or `1024`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?\s*", text, re.IGNORECASE)
    if match is None:
        raise ConfigError(f"must read like 8GiB, 500MB or 1024, got '{text}'")
    number, unit = float(match[1]), (match[2] or "").lower()
    power = " kmgt".index(unit[0]) if unit else 0
    return int(number * (1024 if unit.endswith("i") else 1000) ** power)


def _bytes_can_be_read(text: str) -> str:
    parse_bytes(text)
    return text


Bytes = Annotated[str, AfterValidator(_bytes_can_be_read), Field(json_schema_extra={"in_words": "bytes, e.g. 8GiB"})]
"""A number of bytes, written `8GiB`."""
