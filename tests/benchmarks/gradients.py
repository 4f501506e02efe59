"""Moments of inputs and of gradients in one pass, against a plain script: forward, backward and both products.

By CPU time, as the script uses one thread where torch and BLAS use one. The last rows say what each promise takes that
the script does not make, measured alone on the same rows: the same bits for any batches, means however large, what is
compared on resume.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import blas
from timing import Row, against, race
from torch import nn

import dalr_stream as ds
from dalr_stream.network.capture.batches import digest_of_inputs
from dalr_stream.network.capture.taken import Taken
from dalr_stream.numerics.rows.stacked import stacked
from dalr_stream.numerics.rows.tiling import tile_rows
from dalr_stream.numerics.statistics.centring import RUN_ROWS, centre, rows_in, runs_of
from dalr_stream.numerics.statistics.fold_rule import lane_count, product_rows
from dalr_stream.numerics.statistics.folding import FoldState
from dalr_stream.numerics.statistics.merging import merge_all

BAR = 1.15
LAYERS, CLASSES = 4, 10


@dataclass(frozen=True)
class Size:
    """Layers as wide as they are high, and the rows that go through them."""

    width: int
    rows: int
    batch: int

    @property
    def words(self) -> str:
        """For a row of the table."""
        return f"{self.width:,} wide, {self.batch:,} rows a batch"


SIZES = [Size(512, 40_960, 256), Size(512, 40_960, 2048), Size(1024, 16_384, 2048), Size(2048, 32_768, 2048)]


class Case:
    """A network of a size, its batches, and both ways to its moments."""

    def __init__(self, size: Size) -> None:
        torch.manual_seed(0)
        hidden = [module for _ in range(LAYERS) for module in (nn.Linear(size.width, size.width), nn.ReLU())]
        self.size = size
        self.model = nn.Sequential(*hidden, nn.Linear(size.width, CLASSES)).eval().requires_grad_(False)
        self.batches = list(torch.randn(size.rows, size.width).split(size.batch))
        self.names = [str(2 * number) for number in range(LAYERS)]

    def script(self, *, gradients: bool) -> None:
        """Add up X'X of what each layer reads, and G'G of the gradients by what it gives, in float64."""
        sums = {name: [np.zeros((self.size.width,) * 2, order="F") for _ in range(2)] for name in self.names}
        for batch in self.batches:
            for name, read, gradient in self.passed(batch, gradients=gradients):
                for number, rows in enumerate((read, gradient)[: 1 + gradients]):
                    doubles = rows.double().numpy().T
                    sums[name][number] = blas.dsyrk(1.0, doubles, 1.0, sums[name][number], overwrite_c=1)

    def passed(self, batch: torch.Tensor, *, gradients: bool) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Yield what each layer reads, and the gradient by what it gives."""
        read, given, x = [], [], batch
        with torch.set_grad_enabled(gradients):
            for name, module in self.model.named_children():
                read += [x.detach()] if name in self.names else []
                x = module(x)
                x = x if x.requires_grad or not gradients else x.requires_grad_()
                given += [x] if name in self.names else []
        if not gradients:
            yield from zip(self.names, read, read, strict=True)
            return
        p = x.detach().softmax(dim=-1)
        e = p.sqrt() * torch.randn_like(p).sign()
        yield from zip(self.names, read, torch.autograd.grad(x, given, e - p * e.sum(-1, keepdim=True)), strict=True)

    def engine(self, *, gradients: bool) -> None:
        """Do the same by `accumulate`."""
        layers = ds.watch(self.model, self.names, gradients=self.names if gradients else ())
        folding = ds.Folding(ds.HoldoutRule(0.0), ds.Threads(1))
        ds.accumulate(self.model, self.batches, layers, folding=folding, rows=ds.RowRule(prove=False))


def beside_scripts(sizes: Sequence[Size], turns: int) -> list[Row]:
    """Each size against its script, and what the promises take at the first of them."""
    rows = [row for size in sizes for row in beside_the_script(size, turns)]
    return [*rows, *promises(sizes[0], turns)]


def beside_the_script(size: Size, turns: int) -> list[Row]:
    """Both kinds of moments, and those of the inputs alone, each against its script."""
    case, rows = Case(size), []
    for gradients, what in ((True, "forward, backward, both products"), (False, "forward, products of inputs")):
        ours = "dalr_stream, inputs and gradients" if gradients else "dalr_stream, inputs"
        taken = race(
            {what: lambda g=gradients: case.script(gradients=g), ours: lambda g=gradients: case.engine(gradients=g)},
            turns,
            clock=time.process_time,
        )
        rows += [
            Row(f"{row.what}: {size.words}", row.seconds, row.ratio, row.bar)
            for row in against(what, taken, {ours: BAR})
        ]
    return rows


def promises(size: Size, turns: int) -> list[Row]:
    """What each promise takes alone, of the script's seconds."""
    case = Case(size)
    passed = [(read, gradient) for b in case.batches for _, read, gradient in case.passed(b, gradients=True)]
    streams = [rows for pair in passed for rows in pair]
    seconds = race(
        {
            "forward, backward, both products": lambda: case.script(gradients=True),
            "of it, widening rows to float64": lambda: [rows.double() for rows in streams],
            "digests of the batches": lambda: [digest_of_inputs(batch) for batch in case.batches],
            "rows of one's own, and finite": lambda: [Taken.of(rows.clone(), None) for rows in streams],
            "rows centred, extrema, zeros": _centred([rows.numpy() for rows in streams], size),
            "lanes joined": lambda: [_joined(size.width) for _ in range(2 * LAYERS)],
        },
        turns,
        clock=time.process_time,
    )
    return [
        Row(f"{row.what}: {size.words}", row.seconds, row.ratio)
        for row in against("forward, backward, both products", seconds, {})
    ]


def _centred(streams: list[np.ndarray], size: Size) -> Callable[[], None]:
    """Centre tiles of so many rows of each stream, and as many tiles as these fill."""
    height = min(tile_rows(size.width), size.rows)
    runs, at_once = runs_of(height), product_rows(size.width) // RUN_ROWS
    products = [runs[first : first + at_once] for first in range(0, len(runs), at_once)]
    out = np.empty((height + len(runs), size.width))

    def run() -> None:
        for number in range(2 * LAYERS):
            held: list[np.ndarray] = []
            for part in streams[number :: 2 * LAYERS]:
                held.append(part)
                if sum(map(len, held)) >= height:
                    for some in products:
                        centre(stacked(held), some, out[: rows_in(some) + len(some)])
                    held = []

    return run


def _joined(width: int) -> object:
    ones = np.ones(width)
    return merge_all(
        FoldState(2, 2, ones, np.zeros((width, width)), ones, ones, np.ones(width, np.int64))
        for _ in range(lane_count(width))
    ).moments()
