"""The two domains, as batches: program code (source) and English prose (target), character by character.

Factories named in the run files: `target_train`, `target_test`, `target_validation`, `source`; `is_text` is the mask
that keeps padding out of statistics. Batches are (inputs, targets): a text behind a start mark, and the text itself, so
that each position is to be answered with the character that comes next. Texts differ in length; a batch is as long as
its longest text, and zeros fill up the others.

The invariant that keeps the numbers honest: for one seed the paragraphs of prose are dealt to test, validation and
training once, whole, so no sentence of a test paragraph or beside it is ever trained on. Code for training, checking
and statistics is dealt in the same way. Nothing here downloads or writes.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from text_corpus import CONTEXT, code_pieces, prose_paragraphs, standard_library

PADDING = 0
START = 1
TEST_PARAGRAPHS = 240
VALIDATION_PARAGRAPHS = 120
STATISTICS_PIECES = 3000
CHECK_PIECES = 300
"""Pieces of code on which the source accuracy is reported; nothing is chosen by it."""


class ProseUse(enum.Enum):
    """What paragraphs of prose are for."""

    TEST = slice(0, TEST_PARAGRAPHS)
    VALIDATION = slice(TEST_PARAGRAPHS, TEST_PARAGRAPHS + VALIDATION_PARAGRAPHS)
    TRAINING = slice(TEST_PARAGRAPHS + VALIDATION_PARAGRAPHS, None)


class CodeUse(enum.Enum):
    """What pieces of code are for."""

    CHECKING = slice(0, CHECK_PIECES)
    STATISTICS = slice(CHECK_PIECES, CHECK_PIECES + STATISTICS_PIECES)
    TRAINING = slice(CHECK_PIECES + STATISTICS_PIECES, None)


@dataclass(frozen=True, slots=True)
class Batches:
    """Texts in a fixed order, cut into batches; iterating again gives the same batches.

    Parameters
    ----------
    texts
        (n, T) int64 in 0..127: ASCII, zeros behind the end.
    batch_size
        Texts a batch; the last may be shorter.
    """

    texts: torch.Tensor
    batch_size: int

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for texts in self.texts.split(self.batch_size):
            yield inputs_and_targets(texts)

    def __len__(self) -> int:
        return math.ceil(len(self.texts) / self.batch_size)

    def by_length(self) -> Batches:
        """Return the same texts, short ones first: less of each batch is padding."""
        return Batches(self.texts[lengths(self.texts).argsort(stable=True)], self.batch_size)


def target_train(*, seed: int, samples: int | None = None, batch_size: int = 100) -> Batches:
    """Give the prose to fine-tune and take statistics on: all that is dealt to training, or the first ``samples``."""
    return prose(ProseUse.TRAINING, seed, samples=samples, batch_size=batch_size)


def target_test(*, seed: int, samples: int | None = None, batch_size: int = 100) -> Batches:
    """Give the prose that decides nothing."""
    return prose(ProseUse.TEST, seed, samples=samples, batch_size=batch_size).by_length()


def target_validation(*, seed: int, samples: int | None = None, batch_size: int = 100) -> Batches:
    """Give prose to choose sizes on: neither trained on nor tested on."""
    return prose(ProseUse.VALIDATION, seed, samples=samples, batch_size=batch_size).by_length()


def source(*, seed: int, samples: int | None = None, batch_size: int = 100) -> Batches:
    """Give code for statistics of the source domain, none of it trained on."""
    return code(CodeUse.STATISTICS, seed, samples=samples, batch_size=batch_size)


def prose(use: ProseUse, seed: int, *, samples: int | None, batch_size: int) -> Batches:
    """Give the prose of a use, paragraph after paragraph in an order of the seed's."""
    found = prose_paragraphs(standard_library())
    order = np.random.default_rng(seed).permutation(len(found))[use.value]
    pieces = [piece for number in order for piece in found[number]]
    return Batches(as_texts(pieces[:samples]), batch_size)


def code(use: CodeUse, seed: int, *, samples: int | None, batch_size: int) -> Batches:
    """Give the code of a use, in an order of the seed's."""
    found = code_pieces(standard_library())
    order = np.random.default_rng(seed).permutation(len(found))[use.value]
    return Batches(as_texts([found[number] for number in order[:samples]]), batch_size)


def is_text(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return the mask of a batch, (N, T): True where a text is, False behind its end."""
    inputs, _ = batch
    return inputs != PADDING


def as_texts(pieces: Sequence[str]) -> torch.Tensor:
    """(n, `CONTEXT`) int64: the characters of each piece, zeros behind its end."""
    texts = np.full((len(pieces), CONTEXT), PADDING, dtype=np.int64)
    for row, piece in zip(texts, pieces, strict=True):
        row[: len(piece)] = np.frombuffer(piece.encode("ascii"), dtype=np.uint8)
    return torch.from_numpy(texts)


def inputs_and_targets(texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what is read and what is to be answered, both as long as the longest of ``texts``, (N, T)."""
    longest = int(lengths(texts).max())
    targets = texts[:, :longest]
    inputs = torch.nn.functional.pad(targets[:, :-1], (1, 0), value=START)
    return torch.where(targets == PADDING, PADDING, inputs), targets


def lengths(texts: torch.Tensor) -> torch.Tensor:
    """(n,): characters of each text."""
    return (texts != PADDING).sum(dim=1)
