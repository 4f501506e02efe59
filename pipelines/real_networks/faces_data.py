"""Faces of Labeled Faces in the Wild and pictures of anything else, 25 x 25, of which scikit-image ships 100 each.

Factories: `target` for statistics, the first half of each, and `unseen` for scores, the second half.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import interpolate

from labelled_batches import Batches
from package_files import file_of

SIDE = 48
EACH = 100
"""Faces come first."""


def target(*, seed: int, batch_size: int = 25) -> Batches:
    """Return pictures for statistics, labelled 1 for a face; the seed decides their order."""
    return _pictures(range(EACH // 2), seed, batch_size)


def unseen(*, seed: int, batch_size: int = 25) -> Batches:
    """Return the others."""
    return _pictures(range(EACH // 2, EACH), seed, batch_size)


def _pictures(numbers: range, seed: int, batch_size: int) -> Batches:
    every = torch.from_numpy(
        np.load(file_of("skimage", "data/lfw_subset.npy", install="--no-deps 'scikit-image>=0.24'"))
    )
    rows = torch.tensor([*numbers, *(EACH + number for number in numbers)])
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    pixels = interpolate(255 * every[rows][:, None].float(), size=(SIDE, SIDE), mode="bilinear")
    return Batches(((pixels - 127.5) / 128).expand(-1, 3, -1, -1).contiguous(), (rows < EACH).long(), batch_size)
