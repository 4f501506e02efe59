"""Photographs made worse on purpose, five levels each: JPEG, JPEG 2000, Gaussian blur, Gaussian noise.

How good a distorted picture is nobody has to say: of one original and one distortion, a lower level is better. The
levels are this file's; the slides name the four distortions and five levels (Liu et al., ICCV 2017).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, uniform_filter

Pixels = NDArray[np.uint8]
"""(height, width, 3)"""
LEVELS = 5
QUALITY = (70, 40, 22, 12, 5)
"""Of JPEG."""
RATIOS = (6, 12, 20, 32, 48)
"""Of compression, by JPEG 2000; beyond some 50 its header leaves a small patch nothing to encode."""
SIGMAS = (0.6, 1.0, 1.6, 2.4, 3.6)
"""Of the blur, in pixels."""
DEVIATIONS = (6, 12, 20, 32, 50)
"""Of the noise, in 0..255."""
WINDOW = 7
"""Side of the windows of `similarity`."""


def jpeg(pixels: Pixels, level: int, _: np.random.Generator) -> Pixels:
    """Compress by JPEG, levels 1 to 5."""
    return _through(pixels, "JPEG", quality=QUALITY[level - 1])


def jpeg_2000(pixels: Pixels, level: int, _: np.random.Generator) -> Pixels:
    """Compress by JPEG 2000."""
    return _through(pixels, "JPEG2000", quality_mode="rates", quality_layers=[RATIOS[level - 1]], irreversible=True)


def blur(pixels: Pixels, level: int, _: np.random.Generator) -> Pixels:
    """Blur by a Gaussian."""
    sigma = SIGMAS[level - 1]
    return np.asarray(gaussian_filter(pixels.astype(np.float32), (sigma, sigma, 0)).round(), np.uint8)


def noise(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Add white Gaussian noise."""
    added = pixels + rng.normal(0.0, DEVIATIONS[level - 1], pixels.shape)
    return np.asarray(added.clip(0, 255).round(), np.uint8)


DISTORTIONS: Mapping[str, Callable[[Pixels, int, np.random.Generator], Pixels]] = {
    "jpeg": jpeg,
    "jpeg 2000": jpeg_2000,
    "blur": blur,
    "noise": noise,
}


def similarity(one: Pixels, other: Pixels) -> float:
    """Return the structural similarity of two pictures, in grey with uniform windows (Wang et al., 2004)."""
    x, y = (pixels.astype(np.float64).mean(axis=2) for pixels in (one, other))
    mean_x, mean_y = uniform_filter(x, WINDOW), uniform_filter(y, WINDOW)
    spread_x, spread_y = uniform_filter(x * x, WINDOW) - mean_x**2, uniform_filter(y * y, WINDOW) - mean_y**2
    shared = uniform_filter(x * y, WINDOW) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = (2 * mean_x * mean_y + c1) * (2 * shared + c2)
    return float((values / ((mean_x**2 + mean_y**2 + c1) * (spread_x + spread_y + c2))).mean())


def _through(pixels: Pixels, kind: str, **options: object) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    file.seek(0)
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))
