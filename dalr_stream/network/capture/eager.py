"""Runs a network layer by layer, as its source says: no fused kernel and no compiled graph in the place of its modules.

torch's transformer encoders read the weights of their layers in one fused kernel, and a compiled network runs a graph:
hooks are then not called, or break the graph at every layer. Both compute the same; only how is decided here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def layer_by_layer() -> Iterator[None]:
    """Turn off fused transformer kernels and compiled graphs; on leaving they are as they were."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _uncompiled():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Run compiled functions as they were before, where anything can have been compiled: importing dynamo is slow."""
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):  # torch before 2.6
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
