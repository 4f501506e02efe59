"""Moments of inputs X and outputs Z that come from two runs, row for row.

Where a layer's inputs come from an already compressed network and its targets from the original one, Z is no longer
W X, and X X' alone does not decide the regression: Z X' and Z Z' are needed too. All three are blocks of one matrix,
the moments of the joint rows [x | z], and one symmetric rank-k update of that costs no more than the three separately.
So a record here is a view of one `Moments` record, with its laws, and nothing is computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.types import Matrix, Vector


@dataclass(frozen=True, slots=True, eq=False)
class CrossMoments:
    """Moments of inputs X (n, d) and outputs Z (n, m), whose i-th rows belong together.

    Views share the joint record's memory unless documented as new arrays. Z is whatever was folded: where it
    includes a bias b, so do its mean and everything about zero; `cross_scatter_about(c, b)` takes it off again.

    Attributes
    ----------
    joint
        Moments of the rows [x | z], d + m features.
    input_features
        d: how many of the joint features are inputs; they come first.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> inputs = np.array([[1.0], [2.0], [3.0]])
    >>> moments = ds.numerics.CrossMoments.of(inputs, 2.0 * inputs)
    >>> moments.cross_gram.tolist(), moments.squared_error(np.array([[2.0]]), np.zeros(1))
    ([[28.0]], 0.0)
    """

    joint: Moments
    input_features: int

    def __post_init__(self) -> None:
        if not 0 < self.input_features < self.joint.features:
            raise InvalidInputError(
                f"cross moments: inputs must be 1..{self.joint.features - 1} of the {self.joint.features} joint "
                f"features, so that at least one is an output, got {self.input_features}"
            )

    def __repr__(self) -> str:
        outputs = self.joint.features - self.input_features
        return f"CrossMoments of {self.joint.count:,} rows, {self.input_features} inputs, {outputs} outputs"

    @classmethod
    def of(cls, inputs: ArrayLike, outputs: ArrayLike, *, samples: int | None = None) -> CrossMoments:
        """Return the moments of `inputs` (n, d) and `outputs` (n, m), n >= 0, taken as one block.

        `samples` defaults to n.

        Raises
        ------
        InvalidInputError
            Where the rows do not pair up.
        NonFiniteError
            Where one holds NaN or Inf; the feature it names counts through [x | z].

        Notes
        -----
        Cost: n (d + m)^2 multiply-adds, 16 n (d + m) bytes.
        """
        joined = joint_rows(np.asarray(inputs), np.asarray(outputs))
        return cls(Moments.of(joined, samples=samples), np.asarray(inputs).shape[1])

    def __add__(self, other: CrossMoments) -> CrossMoments:
        """Moments of both sets of rows together. Commutative to the bit. Cost: (d + m)^2."""
        if not isinstance(other, CrossMoments):
            return NotImplemented
        self._require_widths(other, "be added")
        return CrossMoments(self.joint + other.joint, self.input_features)

    def __sub__(self, other: CrossMoments) -> CrossMoments:
        """Moments of the rows of `self` that are not in `other`; exact in the counts, else as `Moments`."""
        if not isinstance(other, CrossMoments):
            return NotImplemented
        self._require_widths(other, "be subtracted")
        return CrossMoments(self.joint - other.joint, self.input_features)

    @property
    def output_features(self) -> int:
        """m."""
        return self.joint.features - self.input_features

    @property
    def count(self) -> int:
        """Rows."""
        return self.joint.count

    @property
    def samples(self) -> int:
        """Independent samples the rows came from."""
        return self.joint.samples

    @property
    def inputs(self) -> Moments:
        """Moments of X alone: d features."""
        return self._part(slice(None, self.input_features))

    @property
    def outputs(self) -> Moments:
        """Moments of Z alone: m features."""
        return self._part(slice(self.input_features, None))

    @property
    def cross_scatter(self) -> Matrix:
        """(m, d): sum of (z - mean)(x - mean)'."""
        return self.joint.scatter[self.input_features :, : self.input_features]

    @property
    def cross_gram(self) -> Matrix:
        """(m, d): Z X' of the papers, the unnormalised sum of z x' about zero. A new array."""
        return self.cross_scatter_about(np.zeros(self.input_features), np.zeros(self.output_features))

    @property
    def cross_covariance(self) -> Matrix:
        """(m, d): cross_scatter / count, population normalised. A new array."""
        if self.count == 0:
            raise InvalidInputError("cross moments of no rows have no covariance: accumulate some rows first")
        return self.cross_scatter / self.count

    def part(self, inputs: int, outputs: int, width: int) -> CrossMoments:
        """Moments of `width` inputs from the number `inputs` on and as many outputs from `outputs` on. New arrays."""
        first = self.input_features + outputs
        features = np.r_[inputs : inputs + width, first : first + width]
        joint = self.joint
        mean, max_abs, maximum = (vector[features] for vector in (joint.mean, joint.max_abs, joint.maximum))
        scatter, nonzero = joint.scatter[np.ix_(features, features)], joint.nonzero[features]
        return CrossMoments(Moments(joint.count, joint.samples, mean, scatter, max_abs, maximum, nonzero), width)

    def with_outputs_through(self, weight: Matrix, bias: Vector) -> CrossMoments:
        """Moments of X and W Z + b, weight (m', m) and bias (m',): Z was what a layer reads, and this is what it gives.

        Of the outputs, which nobody saw, `max_abs` and `maximum` are NaN, and every one counts as non-zero. A new
        record of d + m' features. Cost: m' m (d + m + m').
        """
        d, joint, m = self.input_features, self.joint, len(weight)
        scatter = np.empty((d + m, d + m))
        scatter[:d, :d] = joint.scatter[:d, :d]
        scatter[d:, :d] = weight @ self.cross_scatter
        scatter[:d, d:] = scatter[d:, :d].T
        given = weight @ joint.scatter[d:, d:] @ weight.T
        scatter[d:, d:] = (given + given.T) / 2
        unknown = np.full(m, np.nan)
        through = Moments(
            joint.count,
            joint.samples,
            np.concatenate([joint.mean[:d], weight @ joint.mean[d:] + bias]),
            scatter,
            np.concatenate([joint.max_abs[:d], unknown]),
            np.concatenate([joint.maximum[:d], unknown]),
            np.concatenate([joint.nonzero[:d], np.full(m, joint.count)]),
        )
        return CrossMoments(through, d)

    def cross_scatter_about(self, inputs: Vector, outputs: Vector) -> Matrix:
        """(m, d): sum of (z - outputs)(x - inputs)' for any centres (d,) and (m,). A new array."""
        d = self.input_features
        about = np.outer((self.joint.mean[d:] - outputs) * self.count, self.joint.mean[:d] - inputs)
        about += self.cross_scatter
        return about

    def squared_error(self, weight: Matrix, bias: Vector) -> float:
        """||Y - (W X + b)||^2 of any affine map, weight (m, d) and bias (m,), summed over the rows.

        A difference of sums: resolved to eps x the outputs' scatter, and not clamped. Cost: 2 m d^2 operations.
        """
        inputs, outputs = self.inputs, self.outputs
        about = float(np.trace(outputs.scatter)) + float(np.vdot(weight @ inputs.scatter, weight))
        shift = outputs.mean - weight @ inputs.mean - bias
        return about - 2.0 * float(np.vdot(weight, self.cross_scatter)) + self.count * float(shift @ shift)

    def same_bits(self, other: CrossMoments) -> bool:
        """Tell whether both records hold exactly the same numbers."""
        return self.input_features == other.input_features and self.joint.same_bits(other.joint)

    def _part(self, features: slice) -> Moments:
        joint = self.joint
        return Moments(
            joint.count,
            joint.samples,
            joint.mean[features],
            joint.scatter[features, features],
            joint.max_abs[features],
            joint.maximum[features],
            joint.nonzero[features],
        )

    def _require_widths(self, other: CrossMoments, verb: str) -> None:
        mine, theirs = ((one.input_features, one.output_features) for one in (self, other))
        if mine != theirs:
            raise InvalidInputError(
                f"cross moments of {mine[0]} inputs and {mine[1]} outputs, and of {theirs[0]} and {theirs[1]}, cannot "
                f"{verb}: not the same layer"
            )


def joint_rows(inputs: NDArray[np.generic], outputs: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return [x | z] (n, d + m); raises InvalidInputError where the rows do not pair up."""
    if inputs.ndim != 2 or outputs.ndim != 2 or inputs.shape[0] != outputs.shape[0]:
        raise InvalidInputError(
            "cross moments: inputs and outputs must be matrices with one row per sample, got shapes "
            f"{inputs.shape} and {outputs.shape}"
        )
    return np.concatenate([inputs, outputs], axis=1)
