"""What of a network's state a file of weights can hold, and what of a file does not fit a network."""

from __future__ import annotations

import re

import torch
from torch import nn

from dalr_stream.errors import InvalidInputError


def require_tensors_alone(model: nn.Module) -> None:
    """Raise InvalidInputError where the state of a network is not all tensors: nothing else can be saved."""
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise InvalidInputError(
                f"'{name}' of the network's state is a {type(value).__name__}, and files of weights hold tensors "
                "alone: let get_extra_state give a tensor, or hold it as an attribute that the constructor sets"
            )


def first_mismatch(message: str) -> str:
    """Return the first of what torch says does not fit, a line for each kind, and how many more there are."""
    head, *lines = message.splitlines()
    mismatches: list[str] = []
    for line in map(str.strip, lines):
        keys = re.findall('"([^"]+)"', line)
        mismatches += [f"{line.partition(' key')[0].lower()} '{key}'" for key in keys] or [line.removesuffix(".")]
    return (mismatches or [head])[0] + (f" (and {len(mismatches) - 1} more)" if len(mismatches) > 1 else "")
