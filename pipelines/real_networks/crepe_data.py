"""Tones whose pitch is known: frames of harmonics with noise, synthesised, and how near a network's pitch is.

Factories: `target` for statistics, `unseen` for scores; no frame is in both.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from crepe_network import FRAME
from labelled_batches import Batches

RATE = 16_000
LOWEST, HIGHEST = 65.0, 1000.0
"""Hz."""
CENTS_OF_CLASS_0, CENTS_OF_CLASS = 1997.3794084376191, 20.0
"""Of CREPE's classes, above 10 Hz."""
NEAR = 50.0
"""Cents: the pitch counts as right, as in CREPE's raw pitch accuracy."""


def target(*, seed: int, samples: int = 600, batch_size: int = 100) -> Batches:
    """Return frames for statistics, labelled by the class of their pitch."""
    return tones(2 * seed, samples, batch_size)


def unseen(*, seed: int, samples: int = 600, batch_size: int = 100) -> Batches:
    """Return other frames."""
    return tones(2 * seed + 1, samples, batch_size)


def tones(seed: int, samples: int, batch_size: int) -> Batches:
    """Draw tones: a pitch, up to 12 harmonics that fall off, phases, noise of a tenth of the tone or less."""
    draw = np.random.default_rng(seed)
    pitches = np.exp(draw.uniform(np.log(LOWEST), np.log(HIGHEST), samples))
    times, orders = np.arange(FRAME) / RATE, np.arange(1, 13)
    frames = np.empty((samples, FRAME), np.float32)
    for number, pitch in enumerate(pitches):
        loud = orders ** -draw.uniform(0.5, 2.0) * draw.uniform(0.3, 1.0, orders.size) * (pitch * orders < RATE / 2)
        phases = draw.uniform(0, 2 * np.pi, orders.size)
        tone = loud @ np.sin(2 * np.pi * pitch * orders[:, None] * times + phases[:, None])
        noisy = tone + draw.uniform(0, 0.1) * tone.std() * draw.standard_normal(FRAME)
        frames[number] = (noisy - noisy.mean()) / noisy.std()
    cents = 1200 * np.log2(pitches / 10)
    classes = np.round((cents - CENTS_OF_CLASS_0) / CENTS_OF_CLASS).astype(np.int64)
    return Batches(torch.from_numpy(frames), torch.from_numpy(classes), batch_size)


def pitch_accuracy(model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Return the share of frames whose likeliest class is within 50 cents of theirs."""
    right = total = 0
    with torch.inference_mode():
        for frames, classes in batches:
            gaps = (model(frames).argmax(1) - classes).abs() * CENTS_OF_CLASS
            right, total = right + int((gaps <= NEAR).sum()), total + len(classes)
    return right / total
