"""Precision of products of rows: float64, or float32 for speed; sums are float64 either way.

The fast mode takes the products of one tile of T rows in float32. What that costs: with u = 2^-24 and S the scatter,

    |error of S_ij| <= (1.01 T + 5) u sqrt(S_ii S_jj)     T <= 4096: 2.5e-4 at the very worst

to first order: 2 u for rounding both factors, as many products added up as there are rows, among them those that join
each 128 rows to the tile and the tile to what came before, and by Cauchy and Schwarz the tiles' bounds add up to that
of the whole. Rounding errors are of either sign and BLAS adds in blocks: measured are 3e-7 to 9e-7 on 512 to 8192
features of Gaussian rows. The bound holds for any units and any means, because rows are centred in float64 first and
each feature is then divided by a power of two that brings it near 1: nothing overflows and nothing that matters
vanishes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

UNIT_ROUNDOFF = 2.0**-24
"""Of float32."""
_ROWS_AT_ONCE = 64
LARGEST_EXPONENT = 1000
"""So that neither a scale nor its inverse overflows float64."""


class Precision(StrEnum):
    """Precision of the products of rows.

    Attributes
    ----------
    DOUBLE
        float64 throughout.
    SINGLE
        float32 products of each tile, float64 sums: the fast mode.
    """

    DOUBLE = "double"
    SINGLE = "single"


@dataclass(frozen=True, slots=True, eq=False)
class ScaledRows:
    """Centred rows rounded to float32, each feature in units of its own."""

    rows: NDArray[np.float32]
    """(n, d)"""
    scale: NDArray[np.float64]
    """(d,): the units, powers of two."""


def error_bound(tile_rows: int) -> float:
    """Return the largest |error of S_ij| / sqrt(S_ii S_jj) of float32 products in tiles of `tile_rows` rows."""
    return (1.01 * tile_rows + 5) * UNIT_ROUNDOFF


def scaled(rows: NDArray[np.float64]) -> ScaledRows:
    """Round centred rows (n, d), n >= 1, to float32 *within their own memory*: `rows` is overwritten.

    A narrow row never lies behind the wide ones that are still to be read, and numpy copies where one chunk overlaps
    itself, so no second tile is held.
    """
    largest = np.maximum(rows.max(axis=0), -rows.min(axis=0))
    exponents = np.clip(np.frexp(largest)[1], -LARGEST_EXPONENT, LARGEST_EXPONENT)
    narrow = rows.reshape(-1).view(np.float32)[: rows.size].reshape(rows.shape)
    to_units = np.ldexp(1.0, -exponents)
    for first in range(0, rows.shape[0], _ROWS_AT_ONCE):
        chunk = slice(first, first + _ROWS_AT_ONCE)
        np.multiply(rows[chunk], to_units, out=narrow[chunk], casting="same_kind")
    return ScaledRows(narrow, np.ldexp(1.0, exponents))
