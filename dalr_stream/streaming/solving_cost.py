"""What solving one layer by one method holds, by arithmetic alone, and by which route it goes.

Counted is the most that is there at once beside the process: the weight as stored and in float64, what the method makes
of order m, d and rank, and what is read from the store at a time. A moment matrix of more than one block stays on disk
(`numerics.statistics.products`); only `published` and `optimal` form one, unless rows are kept and fewer than features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dalr_stream.numerics.diagnostics import Route
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.metric import Metric
from dalr_stream.numerics.rows.tiling import tile_rows
from dalr_stream.numerics.statistics.products import BLOCK_BYTES, BLOCK_FEATURES, FEW_ROWS, block_rows

_FLOAT64, _FLOAT32 = 8, 4
BLOCKS_READ = 4
"""A block of a matrix, the next one, its packed form, and a copy while it is unpacked."""
CHUNKS_SAVED = 2
"""Of a solution's factors: a chunk beside its packed form."""
SPECTRUM = 7
"""Matrices of order p that a regression holds around its eigendecomposition, which takes four of them."""
EIGEN = 3
"""Matrices of order d of an eigendecomposition by divide and conquer, the matrix among them."""
SVD_WORK = 6
"""Matrices of order p that LAPACK's gesdd works in."""
TURNED = 5
"""Matrices m x d where a layer with more outputs than inputs is turned onto what it can reach, and back."""
GREEDY, GREEDY_PAIR = 4, 6
"""Matrices of order m of a selection: the moments, Sigma as it is worked on, the factor; and of two domains."""
IN_METRIC = 3
"""More of a selection in a metric: M, A M, and A M as it is compacted; a reader's weights are smaller."""
ATTENTION = 4
"""Layers of an attention."""
RESTORING = 8
"""Matrices of order H p of heads: second moments, what restores them, and what they are made of."""
SMALL_THINGS = 4 * 2**20
"""Vectors, and what threads hold."""


@dataclass(frozen=True, slots=True)
class SolvedLayer:
    """What decides the cost of solving a layer, or one of the groups it is solved by."""

    name: str
    outputs: int
    inputs: int
    rows: int
    """Training rows on the target."""
    rows_kept: bool = False
    """Whether they are in the store."""
    groups: int = 1
    shards: int = 1
    """Moment records that are left out one by one."""
    chooses_ridge: bool = False
    """Whether solutions at several ridges are compared."""
    readers: tuple[int, ...] = ()
    """Features of what those read that read its channels: a selection starts from their moments."""

    @property
    def weight_bytes(self) -> int:
        """The weight, as stored and in float64; of all groups as stored."""
        return (_FLOAT32 * self.groups + _FLOAT64) * self.outputs * self.inputs

    @property
    def small(self) -> int:
        """Bytes of a matrix of order p, the lesser of outputs and inputs."""
        return _FLOAT64 * min(self.outputs, self.inputs) ** 2

    @property
    def wide(self) -> int:
        """Bytes of p x d."""
        return _FLOAT64 * min(self.outputs, self.inputs) * self.inputs

    @property
    def factors_bytes(self) -> int:
        """Basis and down, at every rank."""
        return self.wide + _FLOAT64 * self.outputs * min(self.outputs, self.inputs)


@dataclass(frozen=True, slots=True)
class SolvingCost:
    """The most that is held while one layer is solved by one method, and its curves are made."""

    layer: str
    method: Method
    route: Route
    """The one that the rule decides; where Cholesky is refused, eigenvalues take the memory that is counted."""
    peak_bytes: int


def solving_cost(layer: SolvedLayer, method: Method) -> SolvingCost:
    """Return the route and the peak of one method."""
    if method.family is Family.SELECTION:
        return SolvingCost(layer.name, method, _selection_route(method), _selection_bytes(layer, method))
    if method.family is Family.HEADS:
        return SolvingCost(layer.name, method, Route.EIGEN, _heads_bytes(layer))
    route = _route(layer, method)
    by_route = {Route.SVD: _svd_bytes, Route.OUTPUTS: _anchored_bytes, Route.DUAL: _dual_bytes}
    held = _record_bytes(layer.inputs) * layer.groups
    solving = layer.weight_bytes + by_route.get(route, _matrix_bytes)(layer)
    if layer.outputs > layer.inputs and route is not Route.SVD:
        solving += TURNED * _FLOAT64 * layer.outputs * layer.inputs
    if method.needs_gradients:
        solving = max(_gradient_bytes(layer), solving + _metric_bytes(layer))
    saving = layer.weight_bytes + layer.factors_bytes + CHUNKS_SAVED * min(BLOCK_BYTES, layer.wide)
    others = (layer.groups - 1) * (_FLOAT64 * layer.outputs * layer.inputs + layer.factors_bytes)
    again = layer.factors_bytes + _FLOAT64 * layer.outputs * layer.inputs if layer.chooses_ridge else 0
    peak = held + others + again + max(solving, saving)
    peak = max(peak, curves_bytes(layer), _shards_bytes(layer, method)) + SMALL_THINGS
    return SolvingCost(layer.name, method, route, peak)


def solution_bytes(layer: SolvedLayer) -> int:
    """Count factors of every rank as they are read back, with the weight, of all groups."""
    return layer.groups * (_FLOAT64 * layer.outputs * layer.inputs + layer.factors_bytes)


def selection_bytes(layer: SolvedLayer) -> int:
    """Count a selection of every size as it is read back; none of a layer whose channels nobody reads."""
    return _FLOAT64 * (layer.outputs * layer.groups) ** 2 if layer.readers else 0


def replacement_bytes(layer: SolvedLayer) -> int:
    """Count what takes a layer's place, which is no larger than the layer: in float64, and once more as it is cut."""
    return _FLOAT64 * layer.groups * layer.outputs * layer.inputs


def curves_bytes(layer: SolvedLayer) -> int:
    """Count the solution, one more m x d, and what is read of the training and of the held-out record."""
    weight = _FLOAT64 * layer.outputs * layer.inputs
    records = 2 * layer.groups * _record_bytes(layer.inputs)
    return solution_bytes(layer) + weight + records + _reading_bytes(layer)


def report_bytes(layer: SolvedLayer) -> int:
    """Count curves and spectra: the weight's singular values beside the solution and what it is measured on."""
    records = 2 * layer.groups * _record_bytes(layer.inputs)
    return max(curves_bytes(layer), solution_bytes(layer) + records + _svd_bytes(layer)) + SMALL_THINGS


def _route(layer: SolvedLayer, method: Method) -> Route:
    options = method.dalr_options
    if options is None:
        return Route.SVD
    if options.variant.shrinks_to_weight:
        return Route.OUTPUTS
    return Route.DUAL if layer.rows_kept and layer.rows < layer.inputs else Route.CHOLESKY


def _selection_route(method: Method) -> Route:
    return Route.RANKING if method in (Method.PRUNE_MEAN, Method.PRUNE_MAX) else Route.GREEDY


def _svd_bytes(layer: SolvedLayer) -> int:
    copy = _FLOAT64 * layer.outputs * layer.inputs
    return copy + layer.factors_bytes + SVD_WORK * layer.small


def _anchored_bytes(layer: SolvedLayer) -> int:
    products = 3 * layer.small + _reading_bytes(layer)
    return max(products, (SPECTRUM + 1) * layer.small, layer.wide + SPECTRUM * layer.small)


def _gradient_bytes(layer: SolvedLayer) -> int:
    """Count the gradients' record, their second moment, and its eigendecomposition, beside the weight."""
    record = max(_record_bytes(layer.outputs), _block_bytes(layer.outputs))
    return layer.weight_bytes + record + (1 + EIGEN) * _FLOAT64 * layer.outputs**2


def _metric_bytes(layer: SolvedLayer) -> int:
    """Count the metric's vectors, the gradients' record where it stays, and the weight as the loss sees it."""
    square = _FLOAT64 * layer.outputs**2
    return square + _record_bytes(layer.outputs) + 2 * _FLOAT64 * layer.outputs * layer.inputs


def _matrix_bytes(layer: SolvedLayer) -> int:
    """Count Cholesky of a matrix of its own beside what is read of the record; or three of them."""
    matrix = _FLOAT64 * layer.inputs**2
    factored = matrix + _reading_bytes(layer) + 2 * layer.wide + SPECTRUM * layer.small
    return max(factored, EIGEN * matrix + 2 * layer.small)


def _dual_bytes(layer: SolvedLayer) -> int:
    """Count the rows; then two to four matrices of order n and three n x p; then the factors beside a tile of rows."""
    n, p, d = layer.rows, min(layer.outputs, layer.inputs), layer.inputs
    gram, seen = _FLOAT64 * n * n, _FLOAT64 * n * p
    blocks = _FLOAT64 * BLOCK_FEATURES * (n + p)
    first = _FLOAT32 * n * d + gram + seen + blocks
    solving = max(2 * gram + 3 * seen, (1 + EIGEN) * gram + seen) + SPECTRUM * layer.small
    return max(first, solving, seen + layer.wide + 2 * layer.small + _tile_bytes(d, n))


def _selection_bytes(layer: SolvedLayer, method: Method) -> int:
    square = _FLOAT64 * (layer.outputs * layer.groups) ** 2
    records = max((_FLOAT64 * width**2 + _block_bytes(width) for width in layer.readers), default=0)
    own = square * (len(layer.readers) + 1 if len(layer.readers) > 1 else 0)
    selecting = square * (GREEDY_PAIR if method.needs_source else GREEDY)
    if method.metric is not Metric.NODES:
        selecting += IN_METRIC * square
    return layer.groups * _FLOAT32 * layer.outputs * layer.inputs + max(records + own, selecting) + SMALL_THINGS


def _heads_bytes(layer: SolvedLayer) -> int:
    """Count the output layer's moments, what restores heads from all of them, and the layers of queries, keys, values.

    These read as many features as it gives, and give as many as it reads at most.
    """
    weights = ATTENTION * (_FLOAT32 + _FLOAT64) * layer.outputs * layer.inputs
    moments = _record_bytes(layer.inputs) + (ATTENTION - 1) * _record_bytes(layer.outputs)
    reading = _block_bytes(max(layer.inputs, layer.outputs))
    return weights + moments + reading + RESTORING * _FLOAT64 * max(layer.inputs, layer.outputs) ** 2 + SMALL_THINGS


def _shards_bytes(layer: SolvedLayer, method: Method) -> int:
    """Count the sums in a tree of the others where a shard is left out, and solving from one."""
    if layer.shards < 2:
        return 0
    sums = (layer.shards.bit_length() + 2) * _FLOAT64 * layer.inputs**2
    return sums + solving_cost(replace(layer, shards=1, rows_kept=False, rows=layer.inputs), method).peak_bytes


def _record_bytes(features: int) -> int:
    """Count a moment matrix that is read whole and kept while the layer is solved."""
    return _FLOAT64 * features**2 if block_rows(features) == features else 0


def _reading_bytes(layer: SolvedLayer) -> int:
    """Count what a product with the moments reads at a time: rows, where kept and few, or blocks of the matrix."""
    wide = block_rows(layer.inputs) < layer.inputs
    if wide and layer.rows_kept and layer.rows < FEW_ROWS * layer.inputs:
        height = min(layer.rows, tile_rows(layer.inputs))
        return _tile_bytes(layer.inputs, layer.rows) + 2 * _FLOAT64 * height * min(layer.outputs, layer.inputs)
    return _block_bytes(layer.inputs)


def _block_bytes(features: int) -> int:
    """Count blocks on the way from disk; a matrix of one block is counted where it is kept."""
    whole = block_rows(features) == features
    return (BLOCKS_READ - 2 * whole) * min(BLOCK_BYTES, _FLOAT64 * features**2)


def _tile_bytes(features: int, rows: int) -> int:
    """Count a tile of rows, its packed form, those that are meant, in float64 too, and the ones before them."""
    return min(rows, tile_rows(features)) * features * (4 * _FLOAT32 + _FLOAT64)
