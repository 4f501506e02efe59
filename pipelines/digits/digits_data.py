"""The two domains, as batches: printed glyphs (source) and scikit-learn's handwritten digits (target).

Factories named in the run files: `target_train`, `target_test`, `target_validation`, `source`. Each gives `Batches`,
which start again at every ``for`` and give the same rows in the same order. Inputs are 8x8 block counts divided by 16,
so 0..1; images of both domains are made the same way.

The invariant that keeps the numbers honest: for one seed and one number of samples, `target_train` and `target_test`
are the two halves of one stratified split, and training sees the first only. They hold every digit there is, so digits
to choose sizes on come out of the test half, where a run file asks for it. Source pictures for training, checking and
statistics come from separate random streams of the seed (`SourceUse`). Nothing here downloads or writes.
"""

from __future__ import annotations

import enum

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from glyph_atlas import glyph_atlas
from glyph_rendering import BLOCK, GlyphStyle, render_glyphs
from labelled_batches import Batches

FULL_BLOCK = BLOCK * BLOCK
"""The largest count, by which inputs are divided."""
TARGET_SAMPLES = 300
GLYPH_CLASSES = 600
GLYPH_FACES = 4


class SourceUse(enum.IntEnum):
    """What glyphs are drawn for: each use has its own random stream."""

    TRAINING = 0
    CHECKING = 1
    STATISTICS = 2


def target_train(*, seed: int, samples: int = TARGET_SAMPLES, batch_size: int = 100) -> Batches:
    """Give the digits to fine-tune and take statistics on: ``samples`` of the 1,797, each class in its proportion."""
    train, _ = _split(seed, samples)
    return _digits(train, batch_size)


def target_test(*, seed: int, samples: int = TARGET_SAMPLES, validation: int = 0, batch_size: int = 499) -> Batches:
    """Give the digits that `target_train` with the same seed and ``samples`` leaves over (1,497 of them by default).

    Without the ``validation`` of them that `target_validation` gives.
    """
    _, test = _split(seed, samples)
    return _digits(_apart(test, seed, validation)[1] if validation else test, batch_size)


def target_validation(
    *, seed: int, samples: int = TARGET_SAMPLES, validation: int = 300, batch_size: int = 100
) -> Batches:
    """Give ``validation`` digits to choose sizes on, which `target_test` with the same number leaves out."""
    _, test = _split(seed, samples)
    return _digits(_apart(test, seed, validation)[0], batch_size)


def source(
    *, seed: int, samples: int = 4000, batch_size: int = 500, classes: int = GLYPH_CLASSES, faces: int = GLYPH_FACES
) -> Batches:
    """Give printed glyphs for statistics of the source domain: fresh pictures, none of them a training one."""
    return source_glyphs(SourceUse.STATISTICS, seed, samples, classes=classes, faces=faces, batch_size=batch_size)


def source_glyphs(use: SourceUse, seed: int, samples: int, *, classes: int, faces: int, batch_size: int) -> Batches:
    """Draw ``samples`` pictures from the random stream of this use of the seed: every class in turn, then shuffled."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(use.value,)))
    labels = rng.permutation(np.arange(samples, dtype=np.int64) % classes)
    counts = render_glyphs(glyph_atlas(classes, faces), labels, GlyphStyle(), rng)
    return Batches(_as_inputs(counts), torch.from_numpy(labels), batch_size)


def _split(seed: int, samples: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the indices of the training and the test digits: stratified, disjoint, all of them, ascending."""
    return _apart(np.arange(len(load_digits().target)), seed, samples)


def _apart(rows: NDArray[np.int64], seed: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give ``count`` of the rows, each class in its proportion, and the rest, both ascending."""
    labels = load_digits().target[rows]
    chosen, others = train_test_split(rows, train_size=count, random_state=seed, stratify=labels)
    return np.sort(chosen), np.sort(others)


def _digits(rows: NDArray[np.int64], batch_size: int) -> Batches:
    digits = load_digits()
    labels = torch.from_numpy(digits.target[rows].astype(np.int64))
    return Batches(_as_inputs(digits.images[rows]), labels, batch_size)


def _as_inputs(counts: NDArray[np.generic]) -> torch.Tensor:
    """(n, 8, 8) counts in 0..16 as (n, 1, 8, 8) float32 in 0..1, exact: 16 is a power of two."""
    return torch.from_numpy(counts.astype(np.float32)[:, None] / FULL_BLOCK)
