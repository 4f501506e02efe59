"""Steps that are kept beside a matrix, against the matrix with the steps taken."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dalr_stream.numerics.selection.downdate import Downdate


def residuals(rows, order):
    """R before the first step and after each one, densely."""
    r = rows.T @ rows / len(rows)
    found = [r]
    for p in order:
        r = r - np.outer(r[p], r[p]) / r[p, p]
        found.append(r)
    return found


@given(st.integers(2, 12), st.integers(0, 2**32 - 1), st.booleans())
def test_both_diagonals_and_the_columns_are_those_of_the_matrix(d, seed, told):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(3 * d + 5, d)) * np.exp(rng.normal(size=d))
    order = rng.permutation(d)[: rng.integers(1, d + 1)].tolist()
    before, *after = residuals(rows, order)
    downdate = Downdate.start(np.diagonal(before).copy(), np.sum(before**2, axis=0), d)
    for step, (p, r) in enumerate(zip(order, after, strict=True)):
        taken = downdate.take(
            p, downdate.column(p, before[p]), (before @ before)[p], downdate.length(p), order[:step] if told else ()
        )
        scale = np.trace(before)
        np.testing.assert_allclose(downdate.diagonal, np.diagonal(r), atol=1e-9 * scale)
        np.testing.assert_allclose(downdate.norms, np.sum(r**2, axis=0), atol=1e-9 * scale**2)
        np.testing.assert_allclose(downdate.column(d - 1, before[-1]), r[-1], atol=1e-9 * scale)
        assert not told or not taken[order[:step]].any()


def test_some_nodes_see_the_same_steps():
    rng = np.random.default_rng(0)
    before = np.cov(rng.normal(size=(40, 9)), rowvar=False)
    squared = before @ before
    whole = Downdate.start(np.diagonal(before).copy(), np.diagonal(squared).copy(), 3)
    whole.take(4, whole.column(4, before[4]), squared[4], whole.length(4))
    some = np.array([7, 2, 5])
    part = whole.among(some)
    part.take(1, part.column(1, before[2, some]), squared[2, some], part.length(1))
    assert whole.steps == 1
    whole.take(2, whole.column(2, before[2]), squared[2], whole.length(2))
    np.testing.assert_allclose(part.diagonal, whole.diagonal[some], atol=1e-14)
    np.testing.assert_allclose(part.norms, whole.norms[some], atol=1e-14)
