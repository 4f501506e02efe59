"""Random pictures of glyphs, reduced the way the UCI digits were.

A sample is a letter of the atlas seen through a random affine map (rotation, shear, scale, translation), a slow random
bend of the paper and a random pen thickness; the result is a 32x32 black and white bitmap, of which each 4x4 block is
counted: 8x8 values in 0..16. That is how the UCI digits came from scanned forms.

The invariant: a picture depends on the atlas, the style and the generator passed in, and on nothing else. All samples
go through one vectorised call per chunk (about 15,000 pictures a second on one core); there is no per-sample loop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from glyph_atlas import BITMAP, MARGIN, GlyphAtlas

BLOCK = 4
"""Side of the block of bitmap pixels that one value counts."""
CHUNK = 4096
"""Samples rendered at once: their places on the fields take 32 MB."""
BEND_KNOTS = 4
"""The bend is a smooth field through 4x4 random displacements."""


@dataclass(frozen=True, slots=True)
class GlyphStyle:
    """How far the random affine map, the bend and the pen may go; all uniform in +- the value but for ``bend``.

    Parameters
    ----------
    rotation_degrees, shear
        Shear is horizontal displacement per unit of height.
    stretch
        Width and height are scaled by factors in 1 - stretch .. 1 + stretch / 2, each its own.
    shift_pixels
        Translation, of 32.
    bend_pixels
        Standard deviation of the displacements at the knots.
    thin_pixels, thick_pixels
        The edge of the stroke moves by -thin .. +thick.
    """

    rotation_degrees: float = 15.0
    shear: float = 0.25
    stretch: float = 0.3
    shift_pixels: float = 3.0
    bend_pixels: float = 1.0
    thin_pixels: float = 0.5
    thick_pixels: float = 1.0


def render_glyphs(
    atlas: GlyphAtlas, labels: NDArray[np.int64], style: GlyphStyle, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """(n, 8, 8) block counts in 0..16, one picture of each label, in a face drawn uniformly from the label's.

    Cost: 1,024 field lookups a picture; memory: `CHUNK` bitmaps at a time, the result besides.
    """
    fields = torch.from_numpy(atlas.fields)
    counts = np.empty((len(labels), BITMAP // BLOCK, BITMAP // BLOCK), dtype=np.uint8)
    for start in range(0, len(labels), CHUNK):
        part = labels[start : start + CHUNK]
        pictures = torch.from_numpy(rng.integers(atlas.first[part], atlas.first[part + 1]))
        grid = _places(len(part), style, rng)
        distance = functional.grid_sample(fields[pictures, None], grid, padding_mode="border", align_corners=False)
        edge = rng.uniform(-style.thick_pixels, style.thin_pixels, size=(len(part), 1, 1))
        counts[start : start + CHUNK] = block_counts(distance[:, 0].numpy() > edge.astype(np.float32))
    return counts


def block_counts(bitmaps: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Count the set pixels of each 4x4 block: (n, 32, 32) to (n, 8, 8), values 0..16."""
    n, height, width = bitmaps.shape
    blocks = bitmaps.reshape(n, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    counts: NDArray[np.uint8] = blocks.sum(axis=(2, 4), dtype=np.uint8)
    return counts


def _places(n: int, style: GlyphStyle, rng: np.random.Generator) -> torch.Tensor:
    """(n, 32, 32, 2) positions on the field, in -1..1, that the pixels of each bitmap look at."""
    to_field = BITMAP / (BITMAP + 2 * MARGIN)
    affine = torch.from_numpy(_affine(n, style, rng).astype(np.float32))
    grid = functional.affine_grid(affine, [n, 1, BITMAP, BITMAP], align_corners=False)
    knots = rng.standard_normal((n, 2, BEND_KNOTS, BEND_KNOTS), dtype=np.float32) * (style.bend_pixels / (BITMAP / 2))
    bend = functional.interpolate(
        torch.from_numpy(knots), size=(BITMAP, BITMAP), mode="bilinear", align_corners=True
    ).permute(0, 2, 3, 1)
    return (grid + bend) * to_field


def _affine(n: int, style: GlyphStyle, rng: np.random.Generator) -> NDArray[np.float64]:
    """(n, 2, 3) maps from bitmap position to glyph position, both in -1..1: shear, then rotation, then scale."""
    angle = rng.uniform(-style.rotation_degrees, style.rotation_degrees, n) * (math.pi / 180)
    shear = rng.uniform(-style.shear, style.shear, n)
    across, down = 1 / rng.uniform(1 - style.stretch, 1 + style.stretch / 2, (2, n))
    shift = rng.uniform(-style.shift_pixels, style.shift_pixels, (n, 2)) / (BITMAP / 2)
    cos, sin = np.cos(angle), np.sin(angle)
    linear = np.array([[across * cos, across * (shear * cos - sin)], [down * sin, down * (shear * sin + cos)]])
    return np.concatenate([linear.transpose(2, 0, 1), shift[:, :, None]], axis=2)
