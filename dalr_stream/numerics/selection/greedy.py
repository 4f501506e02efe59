"""Which nodes to keep: spectral pruning and MoMaSP.

Spectral pruning adds, greedily, the node that lets a linear map restore the most of all nodes (momasp.md, 3.1):

    r(J) = tr(Sigma_FJ Sigma_JJ^-1 Sigma_JF) / tr(Sigma),     A_J = Sigma_FJ Sigma_JJ^-1

In a metric M of what reads the nodes the same is tr(M Sigma_FJ Sigma_JJ^-1 Sigma_JF) / tr(M Sigma), see `readers`.
MoMaSP (3.2) subtracts a term for nodes whose moments differ between source and target. Both are exact greedy, not an
approximation, and nested: one run gives every size and every retention. With strength 0 the second is the first.

Nodes are taken in three turns: live nodes by score; nodes not live by what they explain; nodes that explain nothing
more (their residual is rounding), in ascending order, live ones first. Ties go to the lowest node.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.diagnostics import Diagnostics, Route
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.linalg.rank_k import one_blas_thread, usable_cores
from dalr_stream.numerics.methods import Form, Method
from dalr_stream.numerics.metric import Metric
from dalr_stream.numerics.options import parse_choice
from dalr_stream.numerics.selection.node_moments import both_domains, nodes_of, require_rows
from dalr_stream.numerics.selection.nodes import ChannelSelection, retention_of
from dalr_stream.numerics.selection.penalties import LIVE_SHARE, Penalty, penalty
from dalr_stream.numerics.selection.readers import metric_of
from dalr_stream.numerics.selection.residual import EXPLAINED, GAIN_TOLERANCE, SchurResidual
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.types import Indices, Mask, Matrix, Vector

ROUNDING = f"explained below {EXPLAINED:g} of a node's own moment, ties within {GAIN_TOLERANCE:g}"
_SELECTIONS = (
    Method.SPECTRAL,
    Method.SPECTRAL_READERS,
    Method.SPECTRAL_WEIGHTED,
    Method.MOMASP_NODE,
    Method.MOMASP_SUBSET,
    Method.MOMASP_WEIGHTED,
)
_NAMED = {(method.form, method.metric): method for method in _SELECTIONS}


@dataclass(frozen=True, slots=True, eq=False)
class _Regulariser:
    """The second term of Eq. 5."""

    penalty: Penalty
    live: Mask
    strength: float

    def term(self, gains: Vector, nodes: Indices) -> Vector:
        """Weigh the candidates `nodes`, whose V are `gains`: strength x std(V) x R_j / max R, 0 where max R is 0."""
        r = self.penalty.values()[nodes]
        largest = float(r.max())
        if largest == 0.0:
            return np.zeros(nodes.size)
        return self.strength * float(np.std(gains)) * (r / largest)


def spectral(
    moments: Moments | Layer,
    *,
    metric: Metric | str | ArrayLike = Metric.NODES,
    affine: bool = False,
    limit: int | None = None,
) -> ChannelSelection:
    """Order nodes so that the first k, for every k, explain the most of all nodes (spectral pruning).

    Parameters
    ----------
    moments
        Of the nodes themselves, after the nonlinearity, as the next layer sees them; or a `Layer`, which brings them.
    metric
        In which errors of nodes are compared: "nodes" as published; of a `Layer` also "readers", by what the outputs of
        the layers that read them lose, and "loss", weighted by the gradients of these; or a matrix (d, d) of one's own.
    affine
        Centre Sigma, and restore with an offset.
    limit
        Stop after this many nodes; by default all d are ordered. A limited selection is the beginning of the full one,
        bit for bit.

    Returns
    -------
    ChannelSelection
        Nested subsets of the nodes, with their retention at every size.

    Raises
    ------
    InvalidInputError
        For moments of no rows, a limit outside 1..d, and a metric whose weights or gradients are not known.

    See Also
    --------
    momasp : prefers nodes that respond alike on two domains.

    Notes
    -----
    Cost: d^2 operations a step, up to a small factor; 3/2 d^3 operations and 16 d^2 bytes in full; in a metric 2 d^3
    and 16 d^2 bytes more. What is restored does not depend on the metric, which nodes are kept does.

    Examples
    --------
    Node 2 repeats node 0, so it explains nothing more and comes last:

    >>> import numpy as np, dalr_stream as ds
    >>> nodes = np.random.default_rng(0).normal(size=(100, 3)) * [3.0, 2.0, 0.0]
    >>> nodes[:, 2] = nodes[:, 0]
    >>> selection = ds.spectral(ds.Moments.of(nodes))
    >>> selection.order.tolist()
    [0, 1, 2]
    >>> selection.at_size(2).restore.round(6).tolist()
    [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    """
    weigh = metric_of(moments, metric)
    return _greedy(nodes_of(moments), _method(None, metric), weigh, affine=affine, limit=limit)


def momasp(  # noqa: PLR0913  # each keyword is one decision of the papers, or of what reads the nodes
    target: Moments | Layer,
    source: Moments | Layer | None = None,
    *,
    form: Form | str = Form.NODE,
    strength: float = 1.0,
    metric: Metric | str | ArrayLike = Metric.NODES,
    centered: bool = True,
    affine: bool = False,
    limit: int | None = None,
) -> ChannelSelection:
    """Order nodes as `spectral` does, preferring those that respond alike on source and target (MoMaSP, Eqs. 3-5).

    Sigma comes from the target alone. A candidate's score is V_j - strength x std(V) x R_j / max R, with the
    (population) standard deviation and the maximum over live candidates that still explain something.

    Parameters
    ----------
    target, source
        Moments of the same nodes on both domains, or the layer on each. `momasp(layer)` alone takes the layer's own
        `source_nodes`.
    form
        `node` (Eq. 4, the better one in the paper) or `subset` (Eq. 3).
    strength
        lambda of Eq. 5, >= 0; 0 is `spectral`, bit for bit.
    centered
        Take C in the regulariser about the mean; False takes E[phi phi'], which the paper calls covariance too.
    metric, affine, limit
        As in `spectral`; by its name of the target's layer.

    Returns
    -------
    ChannelSelection
        Nested subsets of the nodes, with their retention on the target at every size.

    Raises
    ------
    InvalidInputError
        Where widths differ, there are no rows, or an option lies outside its range.

    See Also
    --------
    spectral : without a source domain.
    dalr_stream.numerics.diff : which nodes moved between the domains.

    Notes
    -----
    Cost: as `spectral`, and d^2 once (`node`) or d per step (`subset`).

    Examples
    --------
    Nodes 0 and 1 vary alike on the target, but node 0 had another mean on the source:

    >>> import numpy as np, dalr_stream as ds
    >>> nodes = np.random.default_rng(0).normal(size=(1000, 2)) * [1.1, 1.0]
    >>> target, source = ds.Moments.of(nodes), ds.Moments.of(nodes + [2.0, 0.0])
    >>> ds.spectral(target).order.tolist(), ds.momasp(target, source, strength=3.0).order.tolist()
    ([0, 1], [1, 0])
    """
    form = parse_choice(Form, form, "form")
    weigh = metric_of(target, metric)
    target, source = both_domains(target, source)
    method = _method(form, metric)
    if not 0.0 <= strength < np.inf:
        raise InvalidInputError(f"strength must be a finite number >= 0, got {strength}")
    if target.features != source.features:
        raise InvalidInputError(f"target has {target.features} features and source {source.features}: not one layer")
    for name, moments in (("target", target), ("source", source)):
        if moments.count == 0:
            raise InvalidInputError(f"{name} moments must come from at least one row, got none")
    if strength == 0.0:
        return _greedy(target, method, weigh, affine=affine, limit=limit, notes=("strength 0: spectral",))
    term, live = penalty(target, source, form=form, centered=centered)
    notes = (
        f"strength {strength:g}, C {'about the mean' if centered else 'about zero'}",
        f"live above tau = {LIVE_SHARE:g} of the median positive variance: {int(live.sum())} of {live.size}",
    )
    regulariser = _Regulariser(term, live, strength)
    return _greedy(target, method, weigh, affine=affine, limit=limit, regulariser=regulariser, notes=notes)


def _method(form: Form | None, metric: Metric | str | ArrayLike) -> Method:
    """Return the name of a selection; of a matrix of one's own that of the plain one."""
    named = Metric(metric) if isinstance(metric, str) else Metric.NODES
    if (form, named) not in _NAMED:
        known = ", ".join(f"'{metric}'" for some, metric in _NAMED if some is form)
        raise InvalidInputError(f"MoMaSP of form '{form}' goes with the metrics {known}, got '{named}'")
    return _NAMED[form, named]


def _greedy(
    moments: Moments,
    method: Method,
    metric: Matrix | None,
    *,
    affine: bool,
    limit: int | None,
    regulariser: _Regulariser | None = None,
    notes: tuple[str, ...] = (),
) -> ChannelSelection:
    """Take nodes one by one (Algorithm 1) until the limit, or until nothing explains anything more."""
    require_rows(moments)
    d = moments.features
    size = d if limit is None else limit
    if not 1 <= size <= d:
        raise InvalidInputError(f"limit must lie in 1..{d}, got {limit}")
    live = np.ones(d, np.bool_) if regulariser is None else regulariser.live
    # A step is too short to be shared: threads wait longer for one another than they work. What is not too short the
    # residual shares itself, in parts that do not depend on how many threads there are.
    with one_blas_thread(), ThreadPoolExecutor(usable_cores()) as executor:
        mean = None if affine else moments.mean
        residual = SchurResidual(moments.covariance, mean, size, executor, metric)
        taken, gains = _take_all(residual, live, regulariser, size)
    exhausted = not residual.open.any()
    idle = np.setdiff1d(np.arange(d), taken)
    last = idle[np.argsort(~live[idle], kind="stable")] if exhausted else idle[:0]
    order = np.concatenate([taken, last])[:size]
    left = 0.0 if exhausted else residual.left
    not_live = idle[: idle.size if exhausted else 0] if regulariser is None else np.flatnonzero(~live)
    return ChannelSelection(
        method=method,
        order=order,
        factor=residual.factor,
        retention=retention_of(gains, left, size),
        center=moments.mean.copy() if affine else np.zeros(d),
        not_live=not_live,
        diagnostics=Diagnostics(
            moments.count,
            moments.samples,
            d,
            len(taken) if exhausted else None,
            0.0,
            Route.GREEDY.value,
            (*notes, *residual.notes, ROUNDING),
            trace=residual.trace,
            energy=residual.energy,
        ),
    )


def _take_all(
    residual: SchurResidual, live: Mask, regulariser: _Regulariser | None, size: int
) -> tuple[Indices, Vector]:
    """Run the greedy; return the nodes taken and what each explained, in order."""
    taken: list[int] = []
    gains: list[float] = []
    while len(taken) < size and residual.open.any():
        live_here = residual.open & live[residual.nodes]
        first_turn = bool(live_here.any())
        position, scores = _choose(
            residual, live_here if first_turn else residual.open, regulariser if first_turn else None
        )
        node = int(residual.nodes[position])
        gains.append(residual.take(position, scores))
        taken.append(node)
        if regulariser is not None:
            regulariser.penalty.take(node)
    return np.array(taken, np.int64), np.array(gains)


def _choose(residual: SchurResidual, candidates: Mask, regulariser: _Regulariser | None) -> tuple[int, Vector]:
    """Position of the best score (Eq. 5) among the candidates, the lowest of those that tie; and all scores."""
    gains = residual.gains(candidates)
    scores = np.where(candidates, gains, -np.inf)
    if regulariser is not None:
        positions = np.flatnonzero(candidates)
        scores[positions] -= regulariser.term(gains[positions], residual.nodes[positions])
    tied = scores >= scores.max() - residual.tie
    return int(np.argmax(tied)), scores
