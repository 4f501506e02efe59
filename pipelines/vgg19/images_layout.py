"""What the readers of data sets share: where data sets lie, what they hold, and what to say of one that is not whole.

A reader (`images_cub`, `images_flowers`, `images_actions`, `images_imagenet`) turns one official layout into a
`DataSet`: every picture, which of them train and which test. It reads index files and folders only, never pixels;
counts, splits and the presence of every file are checked before anything is computed. Nothing here downloads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dalr_stream.errors import DatasetError
from images_batches import Picture

DATA = Path(__file__).parents[2] / "data"
"""The project's data folder: relative roots are below it."""

SUFFIXES = {".jpeg", ".jpg", ".png"}

Expected = Literal["official"] | Mapping[str, int]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Counts:
    """What a data set holds."""

    train: int
    test: int
    classes: int


@dataclass(frozen=True, slots=True)
class DataSet:
    """A labelled data set with its official splits, as indices of pictures, ascending."""

    name: str
    pictures: tuple[Picture, ...]
    train: Rows
    test: Rows
    validation: Rows | None = None
    """The part of `train` that the data set itself sets apart; None where it does not."""

    @property
    def labels(self) -> Rows:
        """(n,) labels from 0."""
        return np.array([picture.label for picture in self.pictures], dtype=np.int64)

    def require(self, expected: Expected, official: Counts) -> DataSet:
        """Give this data set back; raise DatasetError where a count is not as expected or a picture is missing."""
        wanted = official if expected == "official" else Counts(**expected)
        found = Counts(len(self.train), len(self.test), len(set(self.labels.tolist())))
        if found != wanted:
            raise DatasetError(
                f"{self.name}: expected {_in_words(wanted)}; the index files give {_in_words(found)}: unpack the "
                "official archive again, or name the counts of your own subset in the loader's option 'expect'"
            )
        if np.intersect1d(self.train, self.test).size:
            raise DatasetError(f"{self.name}: the training and the test split share pictures")
        missing = [picture.path for picture in self.pictures if not picture.path.is_file()]
        if missing:
            raise DatasetError(
                f"{self.name}: {len(missing):,} of {len(self.pictures):,} pictures are missing, the first is "
                f"'{missing[0]}': unpack the official archive again"
            )
        return self


def _in_words(counts: Counts) -> str:
    return f"{counts.train:,} training and {counts.test:,} test pictures of {counts.classes} classes"


def require_file(path: Path, name: str, archive: str) -> Path:
    """Give the path back; raise DatasetError that says where it goes and what it comes in, where there is nothing."""
    if not path.exists():
        raise DatasetError(
            f"{name}: there is no '{path}', which is, or comes in, the official {archive}: put it there, or name "
            "another folder in the loader's option 'root' (data/README.md shows the layout)"
        )
    return path


def table_of(path: Path, columns: int) -> list[list[str]]:
    """Give the lines of an index file, split at blanks; raise DatasetError at a line of another number of columns."""
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    for number, line in enumerate(lines, start=1):
        if len(line) != columns:
            raise DatasetError(f"'{path}', line {number}: expected {columns} columns, got {len(line)}")
    return lines


def pictures_in(folder: Path) -> list[Path]:
    """Give the pictures of a folder in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
