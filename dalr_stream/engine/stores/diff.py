"""What moved between two domains, layer by layer, from the moments in one store or in two of one network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import FingerprintMismatchError, InvalidInputError
from dalr_stream.network.layers.patterns import match_names
from dalr_stream.numerics.selection.shift import MomentShift, diff
from dalr_stream.storage.places.place import Place, place_of


def diff_domains(
    store: str | Place,
    target: str,
    source: str,
    *,
    other: str | Place | None = None,
    layers: Sequence[str] = ("*",),
) -> Iterator[tuple[str, MomentShift]]:
    """Yield each layer that matches `layers` and how its inputs moved from `source` to `target`, all rows of both.

    `source` is read from the store `other` where given. Features of two networks are not the same features, so both
    stores must have been made from one; merged stores do. Memory: one layer's two domains, 8 doubles a d^2 at most.

    Raises FingerprintMismatchError for two networks, StoreNotFoundError for moments that are not there,
    LayerNotFoundError for a pattern that matches no layer of both.
    """
    here = StoreView.open(place_of(store))
    there = here if other is None else StoreView.open(place_of(other))
    if here.root == there.root and target == source:
        raise InvalidInputError(f"diff: '{target}' does not differ from itself: name two domains, or another store")
    prints = [one.manifest.network.fingerprint for one in (here, there)]
    if prints[0] != prints[1]:
        raise FingerprintMismatchError(
            f"'{here.root}' was made from the network with fingerprint {prints[0][:12]}, '{there.root}' from "
            f"{prints[1][:12]}: features of two networks cannot be compared one by one"
        )
    shared = [name for name in here.manifest.network.layers if name in there.manifest.network.layers]
    matched = {name for pattern in layers for name in match_names(pattern, shared)}
    return ((n, diff(here.all_rows(target, n), there.all_rows(source, n))) for n in shared if n in matched)
