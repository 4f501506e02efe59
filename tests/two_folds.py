"""Two folds of the same rows, and what must be equal between them."""

import numpy as np

from dalr_stream.numerics.linalg.precision import Precision
from dalr_stream.numerics.statistics.fold_rule import Strip
from dalr_stream.numerics.statistics.folding import CpuFold, FoldState, Workspace

TOLERANCE = 1e-12  # of sqrt(S_ii S_jj), as between two folds of numpy: only the order of additions differs


def cpu_fold(features, precision=Precision.DOUBLE):
    return CpuFold(FoldState.empty(Strip(0, features)), Workspace(), None, precision)


def folded(fold, rows, height):
    for start in range(0, len(rows), height):
        fold.update(rows[start : start + height], min(height, len(rows) - start))
    return fold.state().moments()


def assert_same_moments(moments, expected, tolerance=TOLERANCE):
    root = np.sqrt(np.diagonal(expected.scatter))
    assert (moments.count, moments.samples) == (expected.count, expected.samples)
    assert (np.abs(moments.scatter - expected.scatter) <= tolerance * np.outer(root, root)).all()
    spread = root / np.sqrt(max(moments.count, 1))
    assert (np.abs(moments.mean - expected.mean) <= TOLERANCE * spread + 1e-15 * np.abs(expected.mean)).all()
    assert np.array_equal(moments.maximum, expected.maximum)
    assert np.array_equal(moments.max_abs, expected.max_abs)
    assert np.array_equal(moments.nonzero, expected.nonzero)
