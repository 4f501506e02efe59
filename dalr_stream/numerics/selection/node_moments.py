"""The moments that a selection starts from: those of a layer's nodes, as their readers read them."""

from __future__ import annotations

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.statistics.moments import Moments


def nodes_of(moments: Moments | Layer) -> Moments:
    """Return the moments of a layer's nodes, or the moments themselves."""
    return moments.known_nodes if isinstance(moments, Layer) else moments


def both_domains(target: Moments | Layer, source: Moments | Layer | None) -> tuple[Moments, Moments]:
    """Return the moments of the nodes on the target and on the source."""
    if source is None and isinstance(target, Layer):
        return target.known_nodes, target.known_source_nodes
    if source is None:
        raise InvalidInputError("momasp compares two domains: the moments of the nodes on the source are needed")
    return nodes_of(target), nodes_of(source)


def require_rows(moments: Moments) -> None:
    """Raise InvalidInputError for moments of no rows."""
    if moments.count == 0:
        raise InvalidInputError("moments must come from at least one row, got none: accumulate some first")
