"""Solutions: one decomposition that holds every rank, one selection that holds every size.

Every low-rank method of the package is an orthonormal basis U (m, K) and a regression M (m, d), with
W ~ U_k U_k'M: rank k is the first k columns, so nothing is solved again when another rank is asked for, and squared
errors on any moments follow without data. Every selection is nested in the same way: an order in which nodes are
taken, and the columns of a pivoted Cholesky factor in that order.

Records are validated when made, and their arrays are never changed. Nothing here solves anything.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from dalr_stream.errors import InvalidInputError, ParameterIncreaseWarning, RankError
from dalr_stream.numerics.curves import error_curve, least_error_curve
from dalr_stream.numerics.linalg.psd import factor_ridge
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.options import parse_choice
from dalr_stream.numerics.rows.streams import Side
from dalr_stream.numerics.statistics.cross import CrossMoments
from dalr_stream.numerics.statistics.moments import Moments

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """What was decided on the way to a solution, and why. Plain values: `Diagnostics(**asdict(d))` gives it back."""

    count: int
    """Rows the moments came from; 0 where no moments were used."""
    samples: int
    """Samples those rows came from."""
    features: int
    """d"""
    numerical_rank: int | None
    """Of the weight (SVD), of the inputs' moments (published, optimal; None where Cholesky left it unknown), of the
    outputs' moments (anchored), of Sigma (greedy selections)."""
    ridge: float
    """The lambda that was used, absolute, on unnormalised sums."""
    route: str
    notes: tuple[str, ...] = ()
    ridge_sweep: tuple[tuple[float, float], ...] = ()
    """Relative ridges that were tried, ascending, each with its error on unseen rows; empty where none was chosen."""
    source: str = "inputs"
    """Whose moments: `inputs`, `outputs` (of the layer, alone), `cross` (inputs of one run, outputs of another)."""
    reason: str = ""
    """The rule that chose the route."""
    condition: float | None = None
    """Of the matrix that was factored or decomposed, with its ridge; an estimate where Cholesky did it."""
    psd_margin: float | None = None
    """Smallest eigenvalue over the trace of the moments that were factored (with the ridge's term for anchored): below
    0 by more than rounding where they are no sum of squares. None where only the largest were computed."""
    error: float | None = None
    """Plain squared error on the training moments at the largest rank held."""
    error_bound: float | None = None
    """What no factors of that rank, of the same centres, can be below; see `LowRankFactors.error_bound`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(self.notes))
        object.__setattr__(self, "ridge_sweep", tuple((ridge, error) for ridge, error in self.ridge_sweep))

    @property
    def chosen_ridge(self) -> float | None:
        """The relative ridge that the sweep chose: of those with the least error the largest."""
        return max(self.ridge_sweep, key=lambda tried: (-tried[1], tried[0]))[0] if self.ridge_sweep else None

    @property
    def rows_per_feature(self) -> float:
        """n / d: below 1 the data leave directions undetermined."""
        return self.count / self.features


@dataclass(frozen=True, slots=True, eq=False)
class LowRankLayer:
    """Two small layers for one: y ~ up (down x) + bias."""

    down: Matrix = field(repr=False)
    """(k, d): the first layer, without bias."""
    up: Matrix = field(repr=False)
    """(m, k): the second layer, orthonormal columns."""
    bias: Vector = field(repr=False)
    """(m,)"""

    @property
    def parts(self) -> tuple[LowRankLayer]:
        """Itself: `GroupedPair` has several."""
        return (self,)

    @property
    def rank(self) -> int:
        """Rank k."""
        return int(self.down.shape[0])

    @property
    def parameters(self) -> int:
        """Weights, k (m + d); the bias, which the layer had before, is not counted."""
        return self.down.size + self.up.size

    def balanced(self) -> LowRankLayer:
        """Return the same product with its scale shared, for storage in half precision; `up` is orthonormal no more.

        Column i of `up` and row i of `down` get the same norm, and then both matrices the same largest row norm, so
        that neither comes near the ends of the range before the other. The product changes by rounding alone.
        """
        share = np.sqrt(np.linalg.norm(self.down, axis=1))
        share[share == 0.0] = 1.0
        up, down = self.up * share, self.down / share[:, None]
        largest = [float(np.linalg.norm(part, axis=1).max()) for part in (up, down)]
        scale = np.sqrt(largest[1] / largest[0]) if min(largest) > 0.0 else 1.0
        return LowRankLayer(down / scale, up * scale, self.bias)


@dataclass(frozen=True, slots=True, eq=False)
class LowRankFactors:
    """Every rank of one decomposition: W (x - center) ~ U_k U_k'M (x - center), with U = basis and U'M = down."""

    method: Method
    weight: Matrix = field(repr=False)
    """(m, d): the original weight W."""
    basis: Matrix = field(repr=False)
    """(m, K): U, K <= min(m, d) orthonormal columns; fewer where only small ranks were asked for."""
    down: Matrix = field(repr=False)
    """(K, d): U'M."""
    center: Vector = field(repr=False)
    """(d,): zeros, or the training mean of the inputs where the bias is adjusted."""
    offset: Vector = field(repr=False)
    """(m,): b + W center."""
    objective: Vector = field(repr=False)
    """(K + 1,): the method's own objective on its training moments, at ranks 0..K."""
    diagnostics: Diagnostics

    def __post_init__(self) -> None:
        m, d = self.weight.shape
        k = self.basis.shape[-1]
        if not 0 < k <= min(m, d):
            raise InvalidInputError(f"low-rank factors: a {m} x {d} weight has ranks 1..{min(m, d)}, got {k} of them")
        expected = {"basis": (m, k), "down": (k, d), "center": (d,), "offset": (m,), "objective": (k + 1,)}
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise InvalidInputError(
                    f"low-rank factors: {name} must be {shape} for a {m} x {d} weight, got {getattr(self, name).shape}"
                )
        for name in ("weight", *expected):
            getattr(self, name).setflags(write=False)

    @property
    def parts(self) -> tuple[LowRankFactors]:
        """Itself: `GroupedFactors` has several."""
        return (self,)

    @property
    def outputs(self) -> int:
        """Outputs m."""
        return int(self.weight.shape[0])

    @property
    def inputs(self) -> int:
        """Inputs d."""
        return int(self.weight.shape[1])

    @property
    def max_rank(self) -> int:
        """K: min(m, d), or what the solver was asked for."""
        return int(self.basis.shape[1])

    @property
    def break_even_rank(self) -> int:
        """Largest rank that adds no parameters: floor(m d / (m + d))."""
        return self.outputs * self.inputs // (self.outputs + self.inputs)

    def at_rank(self, k: int, *, layer: str | None = None, balanced: bool = False) -> LowRankLayer:
        """Return the factors of rank `k`, views of this record, and the bias that goes with them.

        `balanced` shares the scale between the two, as `LowRankLayer.balanced` says: new arrays.
        Raises RankError outside 1..K. Warns ParameterIncreaseWarning where k (m + d) > m d. `layer` names
        the layer in those messages. Cost: k (m + d) for the bias.
        """
        prefix = "" if layer is None else f"layer {layer!r}: "
        k = _integer_within(k, self.max_rank, f"{prefix}rank")
        m, d = self.outputs, self.inputs
        if k > self.break_even_rank:
            message = (
                f"{prefix}rank {k} needs {k * (m + d)} parameters where the layer has {m * d}: "
                f"up to rank {self.break_even_rank} none are added"
            )
            warnings.warn(message, ParameterIncreaseWarning, stacklevel=2)
        up, down = self.basis[:, :k], self.down[:k]
        pair = LowRankLayer(down, up, self.offset - up @ (down @ self.center))
        return pair.balanced() if balanced else pair

    def errors(self, moments: Moments | CrossMoments, *, side: Side | str = Side.INPUTS) -> Vector:
        """Squared error ||y - y_k||^2 summed over the rows of `moments`, at k = 0..K: (K + 1,).

        Training or held-out moments of the layer's inputs; of its outputs alone (`side="outputs"`, truncated SVD and
        anchored only); or cross moments, where y is another run's. `curves` has the formulas and the resolution.

        Raises InvalidInputError where `moments` are of another width, of no rows, or do not decide the errors.
        Cost: 4 m d^2 operations, no data; 2 m^2 K from the outputs.
        """
        return error_curve(self, moments, parse_choice(Side, side, "side"))

    def error_bound(self, moments: Moments | CrossMoments, *, side: Side | str = Side.INPUTS) -> Vector:
        """(K + 1,): the least squared error of any map of rank 0..K about the same centres on these moments.

        Where `errors(moments)` is on it nothing is left to be won at that rank. Cost: eigenvalues of order m, 4/3 m^3
        operations, and the products that form the matrix.
        """
        return least_error_curve(self, moments, parse_choice(Side, side, "side"))


@dataclass(frozen=True, slots=True, eq=False)
class SelectedNodes:
    """A subset of nodes, and how to put the others back: phi ~ restore phi[kept] + offset."""

    kept: Indices = field(repr=False)
    """(k,) ascending: the order the nodes have in the layer."""
    restore: Matrix = field(repr=False)
    """(d, k): A_J, its columns in the order of `kept`; the row of a kept node is a unit row."""
    offset: Vector = field(repr=False)
    """(d,): center - restore center[kept]; zeros unless affine."""
    retention: float

    @property
    def size(self) -> int:
        """Nodes kept, k."""
        return self.kept.size


@dataclass(frozen=True, slots=True, eq=False)
class ChannelSelection:
    """Nested subsets of d nodes: the first k of `order`, for every k.

    With a `limit` the order, and all that goes by size, ends there.
    """

    method: Method
    order: Indices = field(repr=False)
    """(s,): nodes in the order they are taken; s = d, or the limit."""
    factor: Matrix | None = field(repr=False)
    """(d, r): columns of the pivoted Cholesky factor of Sigma; column j is zero at the nodes taken before the j-th.
    r, at most s, is the rank found. None for pure pruning, which restores nothing."""
    retention: Vector = field(repr=False)
    """(s,): share of tr(Sigma) explained (Eq. 2) at sizes 1..s, non-decreasing, at most 1."""
    center: Vector = field(repr=False)
    """(d,): mean of the target where affine, else zeros."""
    not_live: Indices = field(repr=False)
    """Ascending: nodes that vary too little on the target to be compared (MoMaSP), or that explained nothing more
    when their turn came (spectral). They come last."""
    diagnostics: Diagnostics

    def __post_init__(self) -> None:
        d, s = self.center.size, self.order.size
        if s > d or self.retention.shape != (s,) or np.unique(self.order).size != s:
            raise InvalidInputError(f"selection: order must list distinct nodes of {d}, one retention each, got {s}")
        if self.factor is not None and (self.factor.shape[0] != d or self.factor.shape[1] > s):
            raise InvalidInputError(f"selection: factor must be {d} x at most {s}, got {self.factor.shape}")
        for array in (self.order, self.retention, self.center, self.not_live):
            array.setflags(write=False)
        if self.factor is not None:
            self.factor.setflags(write=False)

    @property
    def nodes(self) -> int:
        """All nodes, d."""
        return self.center.size

    def at_size(self, k: int, *, ridge: float = 0.0, layer: str | None = None) -> SelectedNodes:
        """Keep the first `k` nodes of the order.

        A_J = Sigma_FJ Sigma_JJ^-1 = L_F L_J^-1 with L the first k columns of the factor: one triangular solve.
        Kept nodes that depend on the others have columns that are zero outside their own row.

        A `ridge` > 0, relative to the mean diagonal of Sigma, makes it A_J = Sigma_FJ (Sigma_JJ + ridge I)^-1 for the
        nodes that went. Without one A_J fits the sample exactly once as many nodes are kept as there are rows, and
        other rows badly from a little before.

        Raises RankError outside 1..s, InvalidInputError for a negative ridge; `layer` names the layer in the message.
        Cost: d k^2 operations.
        """
        prefix = "" if layer is None else f"layer {layer!r}: "
        k = _integer_within(k, self.order.size, f"{prefix}number of kept nodes")
        if not 0.0 <= ridge < np.inf:
            raise InvalidInputError(f"{prefix}ridge must be a finite number >= 0, got {ridge}")
        taken = self.order[:k]
        restore = self._restore(taken, ridge)
        restore[taken] = np.eye(k)
        ascending = np.argsort(taken)
        kept, restore = taken[ascending], restore[:, ascending]
        offset = self.center - restore @ self.center[kept]
        return SelectedNodes(kept, restore, offset, float(self.retention[k - 1]))

    def _restore(self, taken: Indices, ridge: float) -> Matrix:
        """(d, k): A_J, also for the kept nodes, from the factor: Sigma_FJ = L L_J', Sigma_JJ = L_J L_J'."""
        k = taken.size
        restore = np.zeros((self.nodes, k))
        if self.factor is None or not self.factor.shape[1]:
            return restore
        r = min(k, self.factor.shape[1])
        columns = self.factor[:, :r]
        if ridge == 0.0:
            solved = scipy.linalg.solve_triangular(columns[taken[:r]], columns.T, lower=True, trans="T")
            restore[:, :r] = solved.T
            return restore
        kept = columns[taken]
        trace = float(np.vdot(self.factor, self.factor)) / float(self.retention[-1])
        system = factor_ridge(kept.T @ kept, ridge * trace / self.nodes)
        return columns @ system.pull_back(system.half(kept.T))

    def at_retention(self, alpha: float, *, ridge: float = 0.0, layer: str | None = None) -> SelectedNodes:
        """Keep the fewest nodes of the order that retain `alpha` of the information, 0 < alpha <= 1.

        Raises InvalidInputError outside that range, or where a limited order ends before.
        """
        prefix = "" if layer is None else f"layer {layer!r}: "
        if not 0.0 < alpha <= 1.0:
            raise InvalidInputError(f"{prefix}retention must lie in (0, 1], got {alpha}")
        k = int(np.searchsorted(self.retention, alpha)) + 1
        if k > self.order.size:
            raise InvalidInputError(
                f"{prefix}retention {alpha} is not reached by {self.order.size} nodes "
                f"({self.retention[-1]:.6f}): raise the limit"
            )
        return self.at_size(k, ridge=ridge, layer=layer)


def _integer_within(value: int, largest: int, name: str) -> int:
    """Return `value` as an int in 1..largest; raises RankError."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not 1 <= value <= largest:
        raise RankError(f"{name} must lie in 1..{largest}, got {value}")
    return int(value)
