"""Pictures on disk as batches for a network: decoded in threads, the same at every pass, from any batch on.

Two ways to bring a picture to the network's size, with Pillow alone. `crop`, torchvision's for VGG19: the shorter side
to 256 (bilinear, antialiased), then the middle 224 x 224. `squash`, that of the DALR authors' code: all of the picture
to 224 x 224 (bicubic, antialiased, as MATLAB's `imresize`), whatever its proportions. And two ways to centre RGB.
`spread`, what torchvision's weights were trained with: 0..1, then ImageNet's mean and standard deviation by channel.
`mean`, what MatConvNet's were trained with: 0..255 less ImageNet's mean by channel. MoMaSP's paper names neither. A
picture with a box is cut to the box before all that. Nothing random happens here: which pictures there are, and in
which order, is decided by whoever makes the list.

At most `AHEAD` batches are decoded before they are asked for, so memory is bounded by (AHEAD + 1) batches: 90 MiB of
float32 at 50 pictures of 224 x 224, and one picture at full size in each thread.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dalr_stream.errors import DatasetError

MEAN = (0.485, 0.456, 0.406)
SPREAD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's channels, of values in 0..1: what torchvision's VGG19 was trained with."""
MEAN_255 = (123.680, 116.779, 103.939)
"""Mean of values in 0..255: VGG's own, in the authors' code."""
SIDE = 224
AHEAD = 2
"""Batches that are decoded in advance."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a data set."""

    path: Path
    label: int
    """From 0; -1 where there is none."""
    box: tuple[float, float, float, float] | None = None
    """x, y, width, height in pixels, of the part to show; None for all of it."""


class Resize(StrEnum):
    """How a picture is brought to the network's size."""

    CROP = "crop"
    SQUASH = "squash"


class Normalise(StrEnum):
    """How its values are centred."""

    SPREAD = "spread"
    MEAN = "mean"


@dataclass(frozen=True, slots=True)
class Shown:
    """How pictures are given to the network; names are those of the loaders' options."""

    side: int = SIDE
    resize: Resize | str = Resize.CROP
    normalise: Normalise | str = Normalise.SPREAD

    def __post_init__(self) -> None:
        if self.side < 1:
            raise DatasetError(f"side must be at least 1, got {self.side}")
        for name, choices in {"resize": Resize, "normalise": Normalise}.items():
            if getattr(self, name) not in list(choices):
                known = " or ".join(f"'{choice.value}'" for choice in choices)
                raise DatasetError(f"{name} must be {known}, got '{getattr(self, name)}'")

    def as_input(self, image: Image.Image) -> torch.Tensor:
        """Give a picture as the network takes it: (3, side, side) float32."""
        image = image.convert("RGB")
        pixels = self._squashed(image) if self.resize == Resize.SQUASH else self._cropped(image)
        if self.normalise == Normalise.MEAN:
            pixels = pixels - np.float32(MEAN_255)
        else:
            pixels = (pixels / 255 - np.float32(MEAN)) / np.float32(SPREAD)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def _cropped(self, image: Image.Image) -> NDArray[np.float32]:
        """Make the shorter side 256/224 of ``side`` and cut the middle; sizes are rounded as torchvision rounds."""
        shorter = self.side * 256 // SIDE
        scale = shorter / min(image.size)
        width, height = (shorter if length == min(image.size) else int(length * scale) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - self.side) / 2), round((height - self.side) / 2)
        return np.asarray(image.crop((left, top, left + self.side, top + self.side)), dtype=np.float32)

    def _squashed(self, image: Image.Image) -> NDArray[np.float32]:
        """In float, as MATLAB resizes singles: nothing is rounded or cut to 0..255."""
        size = (self.side, self.side)
        channels = (Image.fromarray(np.asarray(band, dtype=np.float32)) for band in image.split())
        return np.stack([np.asarray(one.resize(size, Image.Resampling.BICUBIC)) for one in channels], axis=-1)


def load(picture: Picture, shown: Shown) -> torch.Tensor:
    """Read a picture from disk; (3, side, side) float32. Raises DatasetError that names a file that cannot be read."""
    try:
        with Image.open(picture.path) as image:
            return shown.as_input(image if picture.box is None else image.crop(_within(picture.box, image.size)))
    except (OSError, UnidentifiedImageError) as error:
        raise DatasetError(f"'{picture.path}' cannot be read as a picture: {error}; unpack its archive again") from None


def _within(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Give the box as left, top, right, bottom in whole pixels of the picture, one pixel wide at the least."""
    x, y, width, height = box
    left, top = min(max(int(x), 0), size[0] - 1), min(max(int(y), 0), size[1] - 1)
    right, bottom = min(math.ceil(x + width), size[0]), min(math.ceil(y + height), size[1])
    return left, top, max(right, left + 1), max(bottom, top + 1)


@dataclass(frozen=True, slots=True)
class ImageBatches:
    """Pictures in a fixed order as batches of (inputs, labels); iterating again gives the same batches.

    Parameters
    ----------
    pictures
        In their order.
    batch_size
        Pictures a batch; the last may be shorter.
    shown
        How pictures are given.
    threads
        That decode; by default as many as there are processors, 8 at most.
    numbers
        Which batches, ascending; all of them by default.
    """

    pictures: tuple[Picture, ...]
    batch_size: int = 50
    shown: Shown = field(default_factory=Shown)
    threads: int | None = None
    numbers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name, value in {"batch_size": self.batch_size, "threads": self.threads}.items():
            if value is not None and value < 1:
                raise DatasetError(f"{name} must be at least 1, got {value}")

    @property
    def samples(self) -> int:
        """Pictures in all batches: what a dry run shows."""
        return sum(self.batch_sizes())

    def __len__(self) -> int:
        return len(self._numbers)

    def starting_at(self, batch: int) -> ImageBatches:
        """Give the batches from number ``batch`` on: no picture before it is read."""
        return self.only(range(batch, len(self)))

    def batch_sizes(self) -> list[int]:
        """Return how many pictures each batch has."""
        return [len(self._pictures_of(number)) for number in self._numbers]

    def only(self, numbers: Sequence[int]) -> ImageBatches:
        """Give the batches of these numbers: no other picture is read."""
        return dataclasses.replace(self, numbers=tuple(self._numbers[number] for number in numbers))

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        pool = ThreadPoolExecutor(self.threads or min(os.cpu_count() or 1, 8), "pictures")
        try:
            waiting: deque[list[Future[torch.Tensor]]] = deque()
            for begun, number in enumerate(self._numbers):
                waiting.append([pool.submit(load, picture, self.shown) for picture in self._pictures_of(number)])
                if begun >= AHEAD:
                    yield self._finished(waiting, begun - AHEAD)
            while waiting:
                yield self._finished(waiting, len(self) - len(waiting))
        finally:
            pool.shutdown(cancel_futures=True)

    @property
    def _numbers(self) -> Sequence[int]:
        every = range(math.ceil(len(self.pictures) / self.batch_size))
        return every if self.numbers is None else self.numbers

    def _pictures_of(self, number: int) -> tuple[Picture, ...]:
        return self.pictures[number * self.batch_size : (number + 1) * self.batch_size]

    def _finished(self, waiting: deque[list[Future[torch.Tensor]]], place: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = [picture.label for picture in self._pictures_of(self._numbers[place])]
        return torch.stack([future.result() for future in waiting.popleft()]), torch.tensor(labels)
