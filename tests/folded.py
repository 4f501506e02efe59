"""Rows that are hard to fold, folds over them in any batches, and what their moments must be."""

import numpy as np
from hypothesis import strategies as st

from dalr_stream.numerics.rows.tiling import Tiler
from dalr_stream.numerics.statistics.fold_rule import Strip
from dalr_stream.numerics.statistics.folding import CpuFold, FoldState, LaneFold, Workspace
from dalr_stream.numerics.statistics.merging import merge_all

MEAN_TOLERANCE = 1e-12  # relative to the standard error, besides the rounding of the mean itself at each update
SCATTER_TOLERANCE = 1e-12  # relative to sqrt(C_ii C_jj), DESIGN.md section 3


def cut(rows, sizes):
    """Batches of the given sizes, over and over until the rows are used up; zero sizes give empty batches."""
    start = 0
    while start < len(rows):
        for size in sizes:
            yield rows[start : start + size]
            start += size


batch_sizes = st.lists(st.sampled_from([0, 1, 2, 5, 64, 256, 257, 4095, 4096, 9000]), min_size=1, max_size=5).filter(
    lambda sizes: sum(sizes) > 200
)


def tiles_of(rows, sizes, height, samples=None):
    tiler, tiles = Tiler(height), []
    samples = np.arange(len(rows)) if samples is None else samples
    for batch, numbers in zip(cut(rows, sizes), cut(samples, sizes), strict=True):
        tiles += tiler.push(batch, numbers)
    return tiles + list(tiler.flush())


def fold(rows, rule, sizes, samples=None):
    lanes = [LaneFold(rule) for _ in range(rule.lanes)]
    for tile in tiles_of(rows, sizes, rule.tile_rows, samples):
        lanes[tile.number % rule.lanes].update(tile)
    return merge_all([lane.freeze() for lane in lanes])


def cpu_fold(features, executor=None):
    return CpuFold(FoldState.empty(Strip(0, features)), Workspace(), executor)


def hard_rows(kind, n=10_000):
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(n, 8)) @ rng.normal(size=(8, 8)) + rng.normal(size=8)
    if kind == "huge_mean":
        rows += 1e4 * rows.std(axis=0)
    elif kind == "sorted_by_class":
        rows[:, :4] += np.repeat(np.arange(10.0), n // 10)[:, None] * 1e4
        rows[:4096, 2] = 0.0  # dead in the whole first tile
    elif kind == "constant":
        rows[:, [1, 5]] = [0.1, -3e7]
    elif kind == "dead":
        rows[:, [0, 7]] = 0.0
    elif kind == "duplicated":
        rows[:, 6] = rows[:, 3]
        rows[:, 7] = -2.0 * rows[:, 3]
    return rows


KINDS = ["generic", "huge_mean", "sorted_by_class", "constant", "dead", "duplicated"]


def reference(rows):
    """Mean and scatter in extended precision, in one piece."""
    centred = rows.astype(np.longdouble) - rows[0]
    offset = centred.mean(axis=0)
    centred -= offset
    return rows[0] + offset, np.einsum("ni,nj->ij", centred, centred)


def assert_moments_of(moments, rows, updates=8):
    mean, scatter = reference(rows)
    root = np.sqrt(np.diagonal(scatter))
    assert moments.count == len(rows)
    assert (np.abs(moments.scatter - scatter) <= SCATTER_TOLERANCE * np.outer(root, root)).all()
    rounding = np.finfo(np.float64).eps * np.sqrt(updates) * np.abs(mean)
    assert (np.abs(moments.mean - mean) <= MEAN_TOLERANCE * root / len(rows) + 2 * rounding).all()
    assert np.array_equal(moments.scatter, moments.scatter.T)
    assert np.array_equal(moments.max_abs, np.abs(rows).max(axis=0))
    assert np.array_equal(moments.maximum, rows.max(axis=0))
    assert np.array_equal(moments.nonzero, (rows != 0).sum(axis=0))
