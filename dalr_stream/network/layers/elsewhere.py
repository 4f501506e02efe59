"""Networks whose weights are not all in memory: who has the numbers that tensors on the meta device stand for."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn

_ATTRIBUTE = "_weights_elsewhere"


class Elsewhere(Protocol):
    """What has the numbers of such a network."""

    device: torch.device
    """Where the network runs, whatever device its tensors are on meanwhile."""

    def digest(self, name: str) -> str:
        """Return the digest of one parameter's numbers, by its name in the network."""

    def visiting(self) -> AbstractContextManager[None]:
        """Let the network run: each piece of it that is not there has its numbers while it runs."""


def weights_elsewhere(model: nn.Module) -> Elsewhere | None:
    """Return what has the numbers of a network; None where the network itself has them."""
    found: Any = vars(model).get(_ATTRIBUTE)
    return None if found is None else found


def keep_elsewhere(model: nn.Module, numbers: Elsewhere) -> None:
    """Let a network know where its numbers are."""
    vars(model)[_ATTRIBUTE] = numbers


def forget_elsewhere(model: nn.Module) -> None:
    """Let a copy of such a network be one without numbers."""
    vars(model).pop(_ATTRIBUTE, None)
