"""Whether moments are those of a layer: their width is its inputs or outputs, and they come from some rows."""

from __future__ import annotations

from collections.abc import Mapping
from types import UnionType

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.rows.streams import Side
from dalr_stream.numerics.statistics.cross import CrossMoments
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.types import Matrix


def require_moments_of(weight: Matrix, moments: Moments | CrossMoments, side: Side, prefix: str = "") -> None:
    """Raise where `moments` are not those of the layer with this `weight` (m, d), or of no rows; `prefix` names it."""
    m, d = weight.shape
    if side not in (Side.INPUTS, Side.OUTPUTS):
        raise InvalidInputError(f"{prefix}side must be 'inputs' or 'outputs', got '{side.value}'")
    if isinstance(moments, Mapping):
        names = " or ".join(f"moments['{name}']" for name in moments)
        raise InvalidInputError(f"{prefix}moments must be of one layer, got a mapping: say {names}")
    _require_kind(moments, Moments | CrossMoments, f"{prefix}moments")
    if isinstance(moments, CrossMoments):
        width = f"{moments.input_features} inputs and {moments.output_features} outputs"
        fits = (moments.output_features, moments.input_features) == (m, d)
    else:
        width = f"{moments.features} {'features' if side is Side.INPUTS else side.value}"
        fits = moments.features == (d if side is Side.INPUTS else m)
    if not fits:
        raise InvalidInputError(f"{prefix}moments of {width} do not fit a weight of shape {weight.shape}")
    if moments.count == 0:
        raise InvalidInputError(f"{prefix}moments must come from at least one row, got none: accumulate some first")


def require_gradients_of(weight: Matrix, gradients: Moments, prefix: str = "") -> None:
    """Raise where `gradients` are not those by the outputs of the layer with this `weight`, or of no rows."""
    _require_kind(gradients, Moments, f"{prefix}gradients")
    if gradients.features != len(weight):
        raise InvalidInputError(
            f"{prefix}gradients by {gradients.features} outputs do not fit a weight of shape {weight.shape}"
        )
    if gradients.count == 0:
        raise InvalidInputError(f"{prefix}gradients must come from at least one row, got none: accumulate some first")


def _require_kind(given: object, kind: type | UnionType, name: str) -> None:
    if not isinstance(given, kind):
        what = type(given).__name__
        raise InvalidInputError(f"{name} must be ds.Moments, got a {what}: of rows, ds.Moments.of(rows)")
