"""Cross moments by layer, as an accumulation leaves them, and the networks that they are between.

A store of cross moments is a store like any other: it holds moments of the rows [x | z], x of one network and z of
another, under the name of the pair of streams (`Pairing`). What identifies it is both networks, x's first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalr_stream.engine.layer_moments import LayerMoments, OnDemand
from dalr_stream.errors import FingerprintMismatchError, LayerNotFoundError, StoreNotFoundError
from dalr_stream.numerics.rows.streams import Pairing, layer_of_stream
from dalr_stream.numerics.statistics.cross import CrossMoments
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.storage.contents import LayerRecord
from dalr_stream.storage.manifest import Manifest
from dalr_stream.storage.places.place import Place

_BETWEEN = ":"
Weights = tuple[NDArray[Any], NDArray[Any] | None]
"""Weight (m, d) and bias (m,) of a layer."""


@dataclass(frozen=True, slots=True)
class LayerCrossMoments(Mapping[str, CrossMoments]):
    """Cross moments of the training rows, by layer name; `heldout` has those of the rows kept apart, where any were.

    `shards` has the records that a layer's training moments are the sum of, where they were asked for.
    """

    training: Mapping[str, CrossMoments]
    heldout: Mapping[str, CrossMoments] = field(default_factory=dict)
    shards: Mapping[str, Sequence[CrossMoments]] = field(default_factory=dict)

    @classmethod
    def of(cls, joint: LayerMoments, pairs: Mapping[str, PairRecord]) -> LayerCrossMoments:
        """Return views of the moments of joint rows, in memory or in a store; `pairs` by the names given here."""

        def view(known: Mapping[str, Moments], name: str) -> CrossMoments:
            return CrossMoments(known[pairs[name].stream], pairs[name].inputs)

        def parts(name: str) -> Sequence[CrossMoments]:
            return [CrossMoments(shard, pairs[name].inputs) for shard in joint.shards[pairs[name].stream]]

        def those_in(known: Mapping[str, object]) -> tuple[str, ...]:
            return tuple(name for name, pair in pairs.items() if pair.stream in known)

        return cls(
            OnDemand(tuple(pairs), partial(view, joint.training)),
            OnDemand(those_in(joint.heldout), partial(view, joint.heldout)),
            OnDemand(those_in(joint.shards), parts),
        )

    def with_outputs_through(self, layers: Mapping[str, Weights]) -> LayerCrossMoments:
        """Return moments of what `layers` give where those known are of what they read, by their weights."""
        if not layers:
            return self

        def through(known: Mapping[str, CrossMoments], name: str) -> CrossMoments:
            return _given_by(known[name], layers[name]) if name in layers else known[name]

        return LayerCrossMoments(
            OnDemand(tuple(self.training), partial(through, self.training)),
            OnDemand(tuple(self.heldout), partial(through, self.heldout)),
        )

    def __getitem__(self, layer: str) -> CrossMoments:
        try:
            return self.training[layer]
        except KeyError:
            raise LayerNotFoundError(
                f"there are no cross moments of layer '{layer}': of {', '.join(self) or 'no layer'} only"
            ) from None

    def __contains__(self, layer: object) -> bool:
        return layer in self.training

    def __iter__(self) -> Iterator[str]:
        return iter(self.training)

    def __len__(self) -> int:
        return len(self.training)


def _given_by(read: CrossMoments, weights: Weights) -> CrossMoments:
    weight, bias = weights
    wide = weight.astype(np.float64)
    return read.with_outputs_through(wide, np.zeros(len(wide)) if bias is None else bias.astype(np.float64))


@dataclass(frozen=True, slots=True)
class PairRecord:
    """A stream of joint rows [x | z]."""

    stream: str
    inputs: int
    """d, the width of x."""
    outputs: int
    """m, the width of z."""

    @property
    def features(self) -> int:
        """d + m."""
        return self.inputs + self.outputs


@dataclass(frozen=True, slots=True)
class NetworkPair:
    """The fingerprints of two networks of which rows stand side by side."""

    compressed: str
    """Of the one that x is taken from."""
    original: str
    """Of the one that z is taken from."""

    @property
    def fingerprint(self) -> str:
        """What a store of cross moments is identified by."""
        return f"{self.compressed}{_BETWEEN}{self.original}"

    @classmethod
    def parse(cls, fingerprint: str) -> NetworkPair | None:
        """Return the pair; None for the fingerprint of one network."""
        compressed, between, original = fingerprint.partition(_BETWEEN)
        return cls(compressed, original) if between else None

    def require_in(self, root: Place) -> None:
        """Raise FingerprintMismatchError where the store at `root` is there and is of other networks."""
        try:
            here = Manifest.read(root).network.fingerprint
        except StoreNotFoundError:
            return
        known = self.parse(here)
        if known is None:
            raise FingerprintMismatchError(
                f"'{root}' is the store of one network, with fingerprint {here[:12]}: keep cross moments in a store of "
                "their own"
            )
        for which, before, now in (
            ("compressed", known.compressed, self.compressed),
            ("original", known.original, self.original),
        ):
            if before != now:
                raise FingerprintMismatchError(
                    f"'{root}' has cross moments of the {which} network with fingerprint {before[:12]}, this one has "
                    f"{now[:12]}: it changed since; use the same weights, or another store"
                )


def pairs_in(layers: Mapping[str, LayerRecord]) -> dict[str, PairRecord]:
    """Return the pairs of a store's streams, by the name of their layer: what it reads beside what it gives."""
    return {
        layer_of_stream(stream): PairRecord(stream, record.inputs, record.outputs)
        for stream, record in layers.items()
        if record.side == Pairing.OUTPUTS.value
    }
