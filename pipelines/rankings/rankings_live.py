"""The LIVE image quality database, release 2, in its official layout: pictures, opinions, and a split by reference.

    root/refimgs/*.bmp
    root/jp2k/img1.bmp, ..., info.txt      and the same in jpeg, wn, gblur, fastfading
    root/dmos.mat                          dmos and orgs (1, 982): jp2k, jpeg, wn, gblur, fastfading one after the other

A line of info.txt is the reference, the picture and a parameter. `orgs` is 1 where the picture is the reference itself;
those have no opinion and are left out. Opinions are differences from the reference: lower is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.io import loadmat

from dalr_stream.errors import DatasetError
from rankings_data import Scored, as_input

FOLDERS = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
"""In the order of dmos.mat, with the pictures of each."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """A distorted picture and what people said of it."""

    path: Path
    reference: str
    kind: str
    dmos: float


def read(root: Path, counts: dict[str, int] | None = None) -> list[Opinion]:
    """Read all opinions; raises DatasetError that names what is missing or does not agree."""
    counts = FOLDERS if counts is None else counts
    table = loadmat(_there(root / "dmos.mat"))
    dmos, originals = np.ravel(table["dmos"]), np.ravel(table["orgs"])
    if not len(dmos) == len(originals) == sum(counts.values()):
        raise DatasetError(
            f"LIVE: 'dmos.mat' has {len(dmos):,} opinions where there are {sum(counts.values()):,} pictures"
        )
    found, first = [], 0
    for kind, count in counts.items():
        references = _references(root / kind, count)
        for number in range(1, count + 1):
            path, place = _there(root / kind / f"img{number}.bmp"), first + number - 1
            if not originals[place]:
                found.append(Opinion(path, references[path.name], kind, float(dmos[place])))
        first += count
    return found


def split_by_reference(found: list[Opinion], seed: int, share: float = 0.8) -> tuple[list[Opinion], list[Opinion]]:
    """Part the opinions, so many of the references for training: no scene is in both."""
    references = sorted({one.reference for one in found})
    order = np.random.default_rng(seed).permutation(len(references))
    chosen = {references[number] for number in order[: round(share * len(references))]}
    return [one for one in found if one.reference in chosen], [one for one in found if one.reference not in chosen]


def crops(found: list[Opinion], seed: int, count: int, side: int) -> Scored:
    """Cut random squares out of the pictures; a score is 1 less the opinion in hundredths, so that more is better."""
    rng = np.random.default_rng(seed)
    cut = []
    for one in found:
        with Image.open(one.path) as image:
            pixels = np.asarray(image.convert("RGB"))
        corners = [[int(rng.integers(length - side + 1)) for length in pixels.shape[:2]] for _ in range(count)]
        cut.append(torch.stack([as_input(pixels[top : top + side, left : left + side]) for top, left in corners]))
    return Scored(torch.stack(cut), 1 - torch.tensor([one.dmos for one in found], dtype=torch.float32) / 100)


def _references(folder: Path, count: int) -> dict[str, str]:
    lines = [line.split() for line in _there(folder / "info.txt").read_text().splitlines() if line.strip()]
    if len(lines) != count:
        raise DatasetError(f"LIVE: '{folder / 'info.txt'}' names {len(lines)} pictures where there are {count}")
    return {picture: reference for reference, picture, *_ in lines}


def _there(path: Path) -> Path:
    if not path.is_file():
        raise DatasetError(f"LIVE: there is no '{path}': unpack the official archive (data/README.md shows where)")
    return path
