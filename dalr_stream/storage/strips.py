"""Moment records written strip by strip, for a scatter matrix that memory does not hold.

The record is the one `records.save_moments` would write. A strip brings rows of the lower triangle, and by symmetry the
columns above them, so a chunk is filled over several strips; the digest is taken at the end, from the disk.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalr_stream.errors import InvalidInputError, StoreDamagedError
from dalr_stream.numerics.linalg.rank_k import mirror_lower
from dalr_stream.numerics.statistics.fold_rule import Strip
from dalr_stream.numerics.statistics.folding import FoldState, LaneState
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.storage import schema
from dalr_stream.storage.arrays import create_array, open_array, write_array
from dalr_stream.storage.places.place import Place, readable, remove_folder
from dalr_stream.storage.records.draft import Draft, arrays_of, new_record
from dalr_stream.storage.records.moments import SCATTER, VECTORS, fill_moments, name_of_moments
from dalr_stream.storage.records.record import Name, digest_of_array, holding, load_record, seal_record


def save_strips(
    paths: Mapping[str, Place], features: int, strips: Iterable[LaneState], provenance: Mapping[str, Any]
) -> None:
    """Write the `training` and `heldout` records of one layer from the strips of their matrices, ascending.

    Memory: one strip and a few chunks. Both records appear after the last strip, or neither.
    """
    with ExitStack() as stack:
        writers = {part: stack.enter_context(_writer(path, features, provenance)) for part, path in paths.items()}
        for strip in strips:
            for part, writer in writers.items():
                state = getattr(strip, part)
                if state is not None:
                    writer.add(state)


def load_strip(path: Place, strip: Strip) -> FoldState:
    """Read one strip of a moment record, as a fold of these rows would have left it: its cells and a few chunks.

    The vectors are compared to their digests, the chunks of the matrix to their own checksums. Raises
    StoreDamagedError, StoreNotFoundError.
    """
    arrays, values = load_record(path, VECTORS)
    with holding(path, "moments"):
        count, samples = values["count"], values["samples"]
        vectors = [arrays[name][: strip.stop] for name in ("mean", "maximum", "max_abs", "nonzero") if count]
    if count == 0:
        return FoldState.empty(strip)
    try:
        with readable(path):
            stored = open_array(arrays_of(path, values) / SCATTER.name)
            scatter = np.ascontiguousarray(stored[strip.first : strip.stop, : strip.stop])
    except schema.DECODE_ERRORS as error:
        raise StoreDamagedError(f"'{path}': array '{SCATTER.name}' is damaged ({error}): accumulate again") from error
    mean, maximum, max_abs, nonzero = vectors
    return FoldState(count, samples, mean, scatter, maximum, -max_abs, nonzero)


def save_matrix_rows(
    path: Place, last: FoldState, rows: Iterable[NDArray[np.float64]], provenance: Mapping[str, Any]
) -> None:
    """Write one record: the vectors of `last`, and whole rows of its matrix, some at a time and in order.

    No chunk is written twice or read again. Memory: some rows and a few chunks.
    """
    with new_record(path) as draft:
        if last.count == 0:
            fill_moments(draft, Moments.empty(last.mean.size), provenance, name_of_moments(path))
            return
        scatter = _new_scatter(draft, last.mean.size)
        digest = 0
        for chunk, first in _whole_chunks(rows, scatter.chunks[0]):
            scatter[first : first + len(chunk)] = chunk
            digest = zlib.crc32(np.ascontiguousarray(chunk).reshape(-1).data.cast("B"), digest)
        _seal(draft, last, digest, provenance, name_of_moments(path))


def _whole_chunks(rows: Iterable[NDArray[np.float64]], height: int) -> Iterator[tuple[NDArray[np.float64], int]]:
    """Yield rows by chunks of a height, the last one shorter, and the number of the first of each."""
    first, left = 0, np.empty((0, 0))
    for some in rows:
        begin = min(height - len(left), len(some)) if len(left) else 0
        left = np.concatenate([left, some[:begin]]) if begin else left
        if len(left) == height:
            yield left, first
            first, left = first + height, left[:0]
        while len(left) == 0 and begin + height <= len(some):
            yield some[begin : begin + height], first
            first, begin = first + height, begin + height
        if begin < len(some):
            left = some[begin:].copy()
    if len(left):
        yield left, first


@contextmanager
def _writer(path: Place, features: int, provenance: Mapping[str, Any]) -> Iterator[_RecordWriter]:
    with new_record(path) as draft:
        writer = _RecordWriter(draft, features, name_of_moments(path))
        yield writer
        writer.finish(provenance)


class _RecordWriter:
    def __init__(self, draft: Draft, features: int, name: Name) -> None:
        self._draft = draft
        self._name = name
        self._features = features
        self._scatter = _new_scatter(draft, features)
        self._last: FoldState | None = None

    def add(self, state: FoldState) -> None:
        """Write a strip's rows and, transposed, the columns above them."""
        h, stop = state.scatter.shape
        first, step = stop - h, self._scatter.chunks[0]
        square = state.scatter[:, first:].copy()
        mirror_lower(square)
        for row in range(first, stop, step):
            end = min(row + step, stop)
            lower = state.scatter[row - first : end - first, :first]
            self._scatter[row:end, :stop] = np.hstack([lower, square[row - first : end - first]])
        for row in range(0, first, step):
            end = min(row + step, first)
            self._scatter[row:end, first:stop] = np.ascontiguousarray(state.scatter[:, row:end].T)
        self._last = state

    def finish(self, provenance: Mapping[str, Any]) -> None:
        """Write the vectors, which the last strip has in full, and the digests."""
        last = self._last
        if last is None or last.count == 0:
            remove_folder(self._draft.arrays / SCATTER.name)
            fill_moments(self._draft, Moments.empty(self._features), provenance, self._name)
            return
        if last.mean.size != self._features:
            raise InvalidInputError(f"strips end at {last.mean.size} of {self._features} features")
        _seal(self._draft, last, self._digest(), provenance, self._name)

    def _digest(self) -> int:
        digest, step = 0, self._scatter.chunks[0]
        for row in range(0, self._features, step):
            rows = np.ascontiguousarray(self._scatter[row : row + step])
            digest = zlib.crc32(rows.reshape(-1).data.cast("B"), digest)
        return digest


def _new_scatter(draft: Draft, features: int) -> Any:
    return create_array(
        draft.arrays / SCATTER.name,
        (features, features),
        np.dtype(np.float64),
        dimensions=SCATTER.dimensions,
        attributes={"meaning": SCATTER.meaning},
        on_its_way=True,
    )


def _seal(draft: Draft, last: FoldState, digest: int, provenance: Mapping[str, Any], name: Name) -> None:
    """Write the vectors of a record, of whose matrix this is the digest, and make it one."""
    arrays: dict[str, NDArray[Any]] = {
        "mean": last.mean,
        "max_abs": np.maximum(np.abs(last.maximum), np.abs(last.minimum)),
        "maximum": last.maximum,
        "nonzero": last.nonzero,
    }
    for spec in schema.MOMENTS:
        if spec.name in arrays:
            write_array(draft.arrays, spec, arrays[spec.name])
    digests = {part: digest_of_array(array) for part, array in arrays.items()}
    values = {"count": last.count, "samples": last.samples}
    seal_record(draft, values, {**digests, SCATTER.name: digest}, provenance, name)
