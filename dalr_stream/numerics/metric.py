"""In which metric a selection compares the errors of nodes: an option of the solvers, and part of methods' names."""

from __future__ import annotations

from enum import StrEnum


class Metric(StrEnum):
    """In which metric the errors of nodes are compared, where some of them are to be restored from others.

    Attributes
    ----------
    NODES
        The nodes' own: spectral pruning as published.
    READERS
        What the outputs of the layers that read them lose.
    LOSS
        The same weighted by the gradients of the loss by those outputs.
    """

    NODES = "nodes"
    READERS = "readers"
    LOSS = "loss"
