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
        self._scatter = create_array(
            draft.arrays / SCATTER.name,
            (features, features),
            np.dtype(np.float64),
            dimensions=SCATTER.dimensions,
            attributes={"meaning": SCATTER.meaning},
            on_its_way=True,
        )
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
        arrays: dict[str, NDArray[Any]] = {
            "mean": last.mean,
            "max_abs": np.maximum(np.abs(last.maximum), np.abs(last.minimum)),
            "maximum": last.maximum,
            "nonzero": last.nonzero,
        }
        for spec in schema.MOMENTS:
            if spec.name in arrays:
                write_array(self._draft.arrays, spec, arrays[spec.name])
        digests = {name: digest_of_array(array) for name, array in arrays.items()}
        digests[SCATTER.name] = self._digest()
        seal_record(self._draft, {"count": last.count, "samples": last.samples}, digests, provenance, self._name)

    def _digest(self) -> int:
        digest, step = 0, self._scatter.chunks[0]
        for row in range(0, self._features, step):
            rows = np.ascontiguousarray(self._scatter[row : row + step])
            digest = zlib.crc32(rows.reshape(-1).data.cast("B"), digest)
        return digest
