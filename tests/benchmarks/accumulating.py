"""Tiles on disk to sums, against the matrix product they consist of and against what else one might use."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import torch
import zarr
from scipy.linalg import blas
from sklearn.decomposition import IncrementalPCA
from timing import Row, against, race

from dalr_stream.numerics.linalg.rank_k import add_rank_k, one_blas_thread
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.rows.tiling import RowBatch, tile_rows
from dalr_stream.numerics.statistics.fold_rule import FoldRule
from dalr_stream.storage.manifest import LayerRecord, NetworkRecord
from dalr_stream.storage.store import ActivationStore
from dalr_stream.storage.writer import open_writer
from dalr_stream.streaming.folding import Threads
from dalr_stream.streaming.lanes import LaneTask
from dalr_stream.streaming.schedule import accumulate_layer

BARS = {"dalr_stream, from zarr": 1.15, "dalr_stream, from zarr, a tenth held out": 1.15}
ARRAY = "activations/target/fc"


@contextmanager
def stored_rows(n: int, d: int) -> Iterator[tuple[ActivationStore, np.ndarray]]:
    """A store of n rows of one layer, like activations after a ReLU, and the same rows in memory."""
    rng = np.random.default_rng(0)
    rows = np.maximum(rng.standard_normal((n, d), np.float32), 0)
    with tempfile.TemporaryDirectory() as folder:
        with open_writer(
            Path(folder), "target", NetworkRecord("f" * 64, {"fc": LayerRecord("Linear", d, 1, "w")})
        ) as writer:
            for start in range(0, n, 1024):
                block = rows[start : start + 1024]
                writer.skip(start // 1024, len(block), str(start))
                writer.write(RowBatch(len(block), str(start), {"fc": block}))
            writer.finish()
        yield ActivationStore(folder), rows


def syrk(rows: np.ndarray) -> Callable[[], object]:
    """One call of BLAS on all rows in float64: the same work, in memory, by all cores."""
    doubles = np.asfortranarray(rows.T.astype(np.float64))
    return lambda: blas.dsyrk(1.0, doubles, lower=1)


def same_work(rows: np.ndarray) -> Callable[[], object]:
    """What the engine does to rows beside the product, by numpy, nothing read: widen, centre, extrema and counts."""
    height, shift = tile_rows(rows.shape[1]), rows.mean(axis=0, dtype=np.float64)

    def run() -> None:
        total = np.zeros((rows.shape[1],) * 2, order="F")
        for start in range(0, len(rows), height):
            tile = rows[start : start + height]
            np.count_nonzero(tile, axis=0), tile.max(axis=0), tile.min(axis=0)
            centred = tile - shift
            centred.sum(axis=0)
            blas.dsyrk(1.0, centred.T, 1.0, total, lower=1, overwrite_c=1)

    return run


def accumulate(store: ActivationStore, share: float) -> Callable[[], object]:
    task = LaneTask(store.root, "target", "fc", FoldRule(store.rows("target", "fc").features, HoldoutRule(share)))
    return lambda: accumulate_layer(task, Threads())


def bars(n: int, d: int, turns: int) -> list[Row]:
    """The engine against BLAS alone."""
    with stored_rows(n, d) as (store, rows):
        seconds = race(
            {
                "dsyrk in memory": syrk(rows),
                "widen, centre, count, dsyrk in memory": same_work(rows),
                "dalr_stream, from zarr": accumulate(store, 0.0),
                "dalr_stream, from zarr, a tenth held out": accumulate(store, 0.1),
            },
            turns,
        )
    return against("dsyrk in memory", seconds, BARS)


def wide(n: int, d: int, turns: int) -> list[Row]:
    """The engine where a threaded dsyrk of the whole matrix is no reference.

    OpenBLAS 0.3.30, which scipy ships, was seen to crash in it at 25,088 features by two threads; numpy's `x.T @ x` is
    another library's and holds the matrix twice.
    """
    with stored_rows(n, d) as (store, rows):
        doubles = rows.astype(np.float64)
        seconds = race(
            {"product in memory": _product(doubles), "dalr_stream, from zarr": accumulate(store, 0.0)}, turns
        )
    return against("product in memory", seconds, {"dalr_stream, from zarr": BARS["dalr_stream, from zarr"]})


def _product(doubles: np.ndarray) -> Callable[[], object]:
    def run() -> None:
        total = np.zeros((doubles.shape[1],) * 2)
        with ThreadPoolExecutor(Threads().workers) as executor, one_blas_thread():
            add_rank_k(total, doubles, executor)

    return run


def alternatives(n: int, d: int, turns: int) -> list[Row]:
    """The engine against other ways to the same X'X (uncentred, without counts, extrema and digests, not resumable)."""
    with stored_rows(n, d) as (store, rows):
        array = zarr.open_array(store.root / ARRAY, mode="r")
        seconds = race(
            {
                "dsyrk in memory": syrk(rows),
                "dalr_stream, from zarr": accumulate(store, 0.0),
                "numpy loop over chunks": lambda: _numpy_loop(array),
                "dask x.T @ x": lambda: _dask_product(store.root),
                "dask da.reduction": lambda: _dask_reduction(store.root),
                "torch addmm over chunks": lambda: _torch_addmm(array),
                "sklearn IncrementalPCA": lambda: _incremental_pca(array),
            },
            turns,
        )
    return against("dsyrk in memory", seconds, {"dalr_stream, from zarr": BARS["dalr_stream, from zarr"]})


def _chunks(array: zarr.Array) -> Iterator[np.ndarray]:
    height = array.chunks[0]
    return (np.asarray(array[start : start + height]) for start in range(0, array.shape[0], height))


def _numpy_loop(array: zarr.Array) -> np.ndarray:
    total = np.zeros((array.shape[1], array.shape[1]))
    for chunk in _chunks(array):
        doubles = chunk.astype(np.float64)
        total += doubles.T @ doubles
    return total


def _dask_product(root: Path) -> np.ndarray:
    x = da.from_zarr(str(root / ARRAY)).astype(np.float64)
    with dask.config.set(scheduler="threads"):
        return (x.T @ x).compute()


def _dask_reduction(root: Path) -> np.ndarray:
    x = da.from_zarr(str(root / ARRAY)).astype(np.float64)
    blocks = x.to_delayed().ravel()
    products = [dask.delayed(lambda block: block.T @ block)(block) for block in blocks]
    while len(products) > 1:
        products = [dask.delayed(sum)(products[i : i + 4]) for i in range(0, len(products), 4)]
    return products[0].compute(scheduler="threads")


def _torch_addmm(array: zarr.Array) -> torch.Tensor:
    total = torch.zeros(array.shape[1], array.shape[1], dtype=torch.float64)
    for chunk in _chunks(array):
        doubles = torch.from_numpy(chunk).double()
        total.addmm_(doubles.T, doubles)
    return total


def _incremental_pca(array: zarr.Array) -> IncrementalPCA:
    pca = IncrementalPCA(n_components=min(32, array.shape[1]))
    for chunk in _chunks(array):
        if len(chunk) >= pca.n_components:
            pca.partial_fit(chunk)
    return pca
