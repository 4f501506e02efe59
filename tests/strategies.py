"""What activations look like when they are not kind: hypothesis strategies that draw rows (n, d) and layers."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from dalr_stream.numerics.methods import Variant

PLAIN_VARIANTS = [variant for variant in Variant if variant is not Variant.WEIGHTED]
"""Those that need no gradients."""

KINDS = (
    "generic",
    "rank_deficient",
    "dead",
    "duplicated",
    "constant",
    "huge_mean",
    "few_samples",
    "one_sample",
    "scales",
    "relu",
    "all_dead",
)


def make_rows(kind, n, d, seed):
    """Rows of the given kind; `few_samples` and `one_sample` overrule n."""
    rng = np.random.default_rng(seed)
    n = {"few_samples": max(1, d // 2), "one_sample": 1}.get(kind, n)
    rows = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)
    column = rng.integers(d)
    if kind == "rank_deficient":
        r = max(1, d // 2)
        rows = rng.normal(size=(n, r)) @ rng.normal(size=(r, d))
    elif kind == "dead":
        rows[:, column] = 0.0
        rows[:, 0] = 0.0
    elif kind == "duplicated":
        rows[:, column] = rows[:, 0]
        rows[:, -1] = -2.0 * rows[:, 0]
    elif kind == "constant":
        rows[:, column] = 0.1
        rows[:, 0] = -3.7
    elif kind == "huge_mean":
        rows += 1e4 * rng.choice([-1.0, 1.0], size=d)
    elif kind == "scales":
        rows *= 10.0 ** rng.integers(-3, 4, size=d)
    elif kind == "relu":
        rows = np.maximum(rows, 0.0)
    elif kind == "all_dead":
        rows = np.zeros((n, d))
    return rows


@st.composite
def row_blocks(draw, max_rows=40, max_features=12, kinds=KINDS):
    """Rows (n, d), one of every kind above."""
    kind = draw(st.sampled_from(kinds))
    n, d = draw(st.integers(1, max_rows)), draw(st.integers(1, max_features))
    return make_rows(kind, n, d, draw(st.integers(0, 2**32 - 1)))


@st.composite
def layers(draw, max_outputs=12, **options):
    """Rows (n, d), weight (m, d), which may be rank-deficient, and bias (m,)."""
    rows = draw(row_blocks(**options))
    m, seed = draw(st.integers(1, max_outputs)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(m, rows.shape[1]))
    if draw(st.booleans()) and m > 2:
        weight[1] = 2.0 * weight[0]
    return rows, weight, rng.normal(size=m)


@st.composite
def two_domains(draw, **options):
    """Target rows and source rows of the same nodes, each of its own kind."""
    target = draw(row_blocks(**options))
    kind, n = draw(st.sampled_from(KINDS)), draw(st.integers(2, 20))
    return target, make_rows(kind, n, target.shape[1], draw(st.integers(0, 2**32 - 1)))


@st.composite
def paired_blocks(draw, count):
    """Blocks of inputs (n, d) and outputs (n, m) of one layer, each of its own kind; one row, or none, in some."""
    d, m = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    kinds = st.sampled_from(["generic", "dead", "constant", "huge_mean", "relu", "scales", "all_dead"])
    blocks = []
    for _ in range(count):
        n, kept = draw(st.integers(1, 25)), draw(st.sampled_from([None, None, 0, 1]))
        seeds = st.integers(0, 2**31)
        x, z = (make_rows(draw(kinds), n, width, draw(seeds))[:kept] for width in (d, m))
        blocks.append((x, z))
    return blocks
