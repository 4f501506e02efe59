"""Digits for LeNet, 32 x 32 and grey: MNIST padded by two pixels, or scikit-learn's digits enlarged from 8 to 24.

The data set is named once in the run file, in [options]: `data` is `mnist` or `digits`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from digit_files import Pictures, handwritten, mnist
from labelled_batches import Batches

SIDE = 32
ENLARGED = 24
"""Side that digits of 8 x 8 are enlarged to: with the margin about the share of MNIST's field that a digit fills."""
BATCH = 500


def rows_for_training(*, seed: int, data: str = "digits") -> Batches:
    """Give the training rows: 60,000 of MNIST, or 1,000 of scikit-learn's digits."""
    return _rows(data, "train", seed)


def rows_for_test(*, seed: int, data: str = "digits") -> Batches:
    """Give the test rows: 10,000 of MNIST, or the 797 other digits."""
    return _rows(data, "test", seed)


def _rows(data: str, split: str, seed: int) -> Batches:
    if data == "mnist":
        pictures = mnist(split)
    elif data == "digits":
        pictures = _enlarged(handwritten(split, seed))
    else:
        raise ValueError(f"data: must be 'mnist' or 'digits', got {data!r}")
    margin = (SIDE - pictures.pixels.shape[-1]) // 2
    padded = np.pad(pictures.pixels, ((0, 0), (margin, margin), (margin, margin)))
    return Batches(torch.from_numpy(padded[:, None]), torch.from_numpy(pictures.labels), BATCH)


def _enlarged(pictures: Pictures) -> Pictures:
    maps = torch.from_numpy(pictures.pixels[:, None])
    larger = functional.interpolate(maps, size=(ENLARGED, ENLARGED), mode="bilinear", align_corners=False)
    return Pictures(larger[:, 0].numpy(), pictures.labels)
