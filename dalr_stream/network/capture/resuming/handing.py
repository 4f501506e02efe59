"""How what is known of a forward pass is handed out to it, and what is kept of what it gives: copies, by default."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn

from dalr_stream.network.capture.resuming.calls import Call
from dalr_stream.network.capture.resuming.given import Form, Spent, form_of, mapped


class Handing(Protocol):
    """How what is known is handed out to one forward pass, and what becomes of what is to be kept of it."""

    held_bytes: int
    """Of copies."""

    def watching(self, model: nn.Module) -> AbstractContextManager[None]:
        """Be around the forward pass."""

    def out(self, kept: torch.Tensor | Form) -> torch.Tensor:
        """Return what stands for something known: the network may overwrite it."""

    def keep(self, way: Call, value: Any, source: Any, *, used: bool) -> Any:
        """Return what is kept of what a call gave; `source` is what was known of it, None for what is new."""

    def give_up(self) -> None:
        """Let go of the copies: nothing is kept after all."""


class Copies:
    """Copies of what is handed out and of what is kept, as either may be overwritten: of one tensor a single one."""

    def __init__(self) -> None:
        self._handed: dict[int, torch.Tensor] = {}
        self._own: dict[int, tuple[torch.Tensor, int, torch.Tensor]] = {}
        self.held_bytes = 0

    def watching(self, _: nn.Module) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()

    def out(self, kept: torch.Tensor | Form) -> torch.Tensor:
        """Return a copy, or what has the form alone."""
        if isinstance(kept, Form):
            return Spent.of(kept)
        if id(kept) not in self._handed:
            self._handed[id(kept)] = self.copy_of(kept)
        return self._handed[id(kept)]

    def copy_of(self, kept: torch.Tensor) -> torch.Tensor:
        """Return the copy that is handed out."""
        return kept.clone()

    def keep(self, _: Call, value: Any, source: Any, *, used: bool) -> Any:
        """Return a copy, or the form of what is not used; what was known is kept as it is."""
        if not used:
            return mapped(value if source is None else source, form_of)
        return mapped(value, self._copy) if source is None else source

    def give_up(self) -> None:
        """Let go of what is kept."""
        self._own, self.held_bytes = {}, 0

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        known = self._own.get(id(tensor))
        if known is not None and known[1] == tensor._version:  # noqa: SLF001  # torch has no public name for it
            return known[2]
        copied = tensor.detach().clone()
        self.held_bytes += copied.nbytes
        self._own[id(tensor)] = tensor, tensor._version, copied  # noqa: SLF001
        return copied
