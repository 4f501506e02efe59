"""Folding on a CUDA device, by torch and by CuPy, against the device's own matrix product in the same precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accumulating import stored_rows
from timing import Row, against, race

from dalr_stream import Folding, HoldoutRule
from dalr_stream.engine.backend import backend_of
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.numerics.linalg.precision import Precision
from dalr_stream.numerics.rows.tiling import tile_rows
from dalr_stream.numerics.statistics.fold_rule import Strip
from dalr_stream.numerics.statistics.folding import FoldState
from dalr_stream.storage.removal import forget_moments

DTYPES = {Precision.DOUBLE: torch.float64, Precision.SINGLE: torch.float32}
BAR = 1 / 0.7
"""At least 70 % of the rate of the product."""


@dataclass(frozen=True)
class Card:
    """The device that the figures are of, in words."""

    name: str
    versions: str


def card() -> Card | None:
    """Return the CUDA device, or None where there is none."""
    if not torch.cuda.is_available():
        return None
    versions = [f"torch {torch.__version__}"]
    if _has_cupy():
        import cupy

        versions.append(f"CuPy {cupy.__version__}")
    return Card(torch.cuda.get_device_name(0), ", ".join(versions))


def in_memory(n: int, d: int, precision: Precision, turns: int) -> list[Row]:
    """Rows that lie on the device, tile after tile: the fold against the whole product of the same tiles."""
    height = tile_rows(d)
    rows = torch.randn(n, d, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    tiles = list(rows.split(height))
    product = "x.T @ x, all of it, added up"
    candidates = {
        product: lambda: _products([tile.to(DTYPES[precision]) for tile in tiles]),
        "torch fold, rows on the device": lambda: _fold("cuda", precision, tiles),
    }
    if _has_cupy():
        import cupy

        own = [cupy.from_dlpack(tile) for tile in tiles]
        candidates["CuPy fold, rows on the device"] = lambda: _fold("cupy", precision, own)
    return against(product, race(candidates, turns), dict.fromkeys(list(candidates)[1:], BAR))


def from_store(n: int, d: int, turns: int) -> list[Row]:
    """Rows in a zarr store: numpy on the cores of this machine, torch and CuPy on the device."""
    devices: dict[str, str | None] = {"numpy on the CPU": None, "torch on the device": "cuda"}
    if _has_cupy():
        devices["CuPy on the device"] = "cupy"
    with stored_rows(n, d) as (store, _):
        seconds = race({name: _accumulated(store.root, device) for name, device in devices.items()}, turns)
    return against("numpy on the CPU", seconds, {})


def _products(tiles: list[torch.Tensor]) -> None:
    total = torch.zeros(tiles[0].shape[1], tiles[0].shape[1], dtype=torch.float64, device="cuda")
    for tile in tiles:
        if tile.dtype == torch.float64:
            total.addmm_(tile.T, tile)
        else:
            total += tile.T @ tile
    torch.cuda.synchronize()


def _fold(device: str, precision: Precision, tiles: list[Any]) -> None:
    folding = Folding(HoldoutRule(0.0), device=device, precision=precision)
    d = tiles[0].shape[1]
    fold = backend_of(folding).new_fold(FoldState.empty(Strip(0, d)), None, None, precision)
    for tile in tiles:
        fold.update(tile, len(tile))
    torch.cuda.synchronize()


def _accumulated(root: Path, device: str | None) -> Callable[[], object]:
    def run() -> None:
        forget_moments(root, "target")
        accumulate_stored(root, domain="target", folding=Folding(HoldoutRule(0.0), device=device))

    return run


def _has_cupy() -> bool:
    try:
        import cupy
    except ImportError:
        return False
    return bool(cupy.cuda.runtime.getDeviceCount())
