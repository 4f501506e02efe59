"""A compressed network written piece by piece, for one that is never in memory whole.

    small.unfinished/
        network/    the shards that are done
        records/    for each of them what was done to its layers, and its digest
    small/          the shards with their index, the plan, the card and the configuration: there whole, or not at all

A shard counts once its record is on disk, which is written after it and says what it was made from. So a writer that
was killed goes on after the last whole shard, and one that makes something else begins anew; what a folder held before
stays there until the new network takes its place.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dalr_stream.errors import InvalidInputError, StoreError, StoreLockedError
from dalr_stream.network.saved.checkpoint import require_own
from dalr_stream.network.saved.files import INDEX, file_digest, shard_name
from dalr_stream.network.saved.plan_file import describe
from dalr_stream.network.saved.shards import DIGESTS
from dalr_stream.network.saved.ties import tied_parameters
from dalr_stream.network.saved.weights import as_os_error, require_tensors_alone
from dalr_stream.network.surgery.compress import PLAN_ATTRIBUTE, mark
from dalr_stream.network.surgery.origin import ORIGIN_ATTRIBUTE, Origin
from dalr_stream.network.surgery.plan import Step, SurgeryPlan
from dalr_stream.storage.durable import TEMPORARY, explained, make_folder, new_file, place_folder, remove_folder
from dalr_stream.storage.json_record import RecordKind, digest_of, read_record, write_record
from dalr_stream.storage.layout import LOCK

_SHARD = RecordKind("shard", 1, "compress")
_RECORD = ".json"
_NETWORK, _RECORDS = "network", "records"
REST = ""
"""The piece of what is part of no other: parameters and buffers that hang on what holds the blocks."""


class ShardWriter:
    """Writes the shards of one network; made with `shard_writer`."""

    def __init__(self, folder: Path, skeleton: nn.Module, pieces: Sequence[str], made_from: str) -> None:
        """See what is there already; `skeleton` is given the compressed network's shape in the end."""
        self._folder, self._skeleton = folder, skeleton
        self._aliases = {name for group in tied_parameters(skeleton) for name in group[1:]}
        names = [name for name in skeleton.state_dict() if name not in self._aliases]
        holding = {name: next((one for one in pieces if name.startswith(f"{one}.")), REST) for name in names}
        ordered = [one for one in (*pieces, REST) if one in holding.values()]
        self._files = {one: shard_name(number, len(ordered)) for number, one in enumerate(ordered, 1)}
        self._rest = [name for name, one in holding.items() if one == REST]
        self._made_from = digest_of([made_from, holding])
        self._network, self._records = working_folder(folder) / _NETWORK, working_folder(folder) / _RECORDS
        self._known = {piece: record for piece in self._files if (record := self._record(piece)) is not None}
        self._sweep()

    @property
    def left(self) -> tuple[str, ...]:
        """The pieces that are to be written yet, in order; `REST` for what is part of none."""
        return tuple(piece for piece in self._files if piece not in self._known)

    def steps(self, piece: str) -> tuple[Step, ...]:
        """Return what was done to the layers of a piece that is written."""
        return SurgeryPlan.from_plain(self._known[piece]["steps"]).steps

    def tensors(self, piece: str) -> dict[str, torch.Tensor]:
        """Return the numbers of a piece that is written, by their names in the network."""
        return load_file(self._network / self._files[piece])

    def write(self, piece: str, module: nn.Module, steps: Sequence[Step] = ()) -> None:
        """Write one piece as it is now; on return it is on disk.

        `module` is the compressed piece, with its numbers; for `REST` the whole network, of which only what is part of
        no piece needs any. `steps` say what was done to its layers, by their names in the network.
        """
        state: dict[str, Any] = module.state_dict()
        if piece == REST:
            state = {name: state[name] for name in self._rest}
        else:
            require_tensors_alone(module)
            state = {f"{piece}.{name}": tensor for name, tensor in state.items()}
        state = {name: tensor.detach().contiguous() for name, tensor in state.items() if name not in self._aliases}
        path = self._network / self._files[piece]
        make_folder(path.parent)
        with new_file(path) as temporary, as_os_error():
            save_file(state, temporary, {"format": "pt"})
        record = {
            "made_from": self._made_from,
            "sha256": file_digest(path),
            "tensors": list(state),
            "bytes": sum(tensor.nbytes for tensor in state.values()),
            "steps": SurgeryPlan(tuple(steps)).to_plain(),
        }
        write_record(self._record_path(piece), _SHARD, record)
        self._known[piece] = json.loads(json.dumps(record))

    def finish(self, provenance: Mapping[str, Any] | None = None) -> nn.Module:
        """Write the index, the configuration, the card and the plan, and put all in its place.

        Every piece must have been written. Returns the network's shape, on the meta device.
        """
        before, small = getattr(self._skeleton, PLAN_ATTRIBUTE, SurgeryPlan()).steps, self._skeleton
        steps = tuple(step for piece in self._files for step in self.steps(piece))
        origin = Origin.of(small)
        SurgeryPlan(steps).apply(small)
        setattr(small, ORIGIN_ATTRIBUTE, origin)
        mark(small, small, (*before, *steps))
        with explained(self._folder):
            (self._network / INDEX).write_text(json.dumps(self._index(), indent=2) + "\n", encoding="utf-8")
            describe(small, self._network, provenance)
        place_folder(self._network, self._folder)
        remove_folder(working_folder(self._folder))
        return small

    def _index(self) -> dict[str, Any]:
        """Return the index as transformers reads it, and the digests of the files."""
        records = {self._files[piece]: self._known[piece] for piece in self._files}
        weight_map = {name: file for file, record in records.items() for name in record["tensors"]}
        total = sum(record["bytes"] for record in records.values())
        digests = {file: record["sha256"] for file, record in records.items()}
        return {"metadata": {"total_size": total, DIGESTS: digests}, "weight_map": dict(sorted(weight_map.items()))}

    def _record(self, piece: str) -> dict[str, Any] | None:
        """Return what is known of a shard; None where it is not there whole, or was made from something else."""
        path = self._network / self._files[piece]
        try:
            record: dict[str, Any] = read_record(self._record_path(piece), _SHARD)
        except StoreError:
            return None
        same = record["made_from"] == self._made_from and path.is_file() and file_digest(path) == record["sha256"]
        return record if same else None

    def _sweep(self) -> None:
        """Remove what another writer left, and shards that are not whole."""
        whole = {self._files[piece] for piece in self._known}
        for path in (*_files_in(self._network), *_files_in(self._records)):
            if path.name.removesuffix(_RECORD) not in whole:
                path.unlink()

    def _record_path(self, piece: str) -> Path:
        return self._records / f"{self._files[piece]}{_RECORD}"


@contextmanager
def shard_writer(
    folder: Path, skeleton: nn.Module, pieces: Sequence[str], made_from: str | None = None
) -> Iterator[ShardWriter]:
    """Open what writes a compressed network to `folder`, going on where one that was killed stopped.

    Parameters
    ----------
    folder
        A new folder, or one that holds a saved network, which stays there until `finish`.
    skeleton
        The network before, on the meta device: it says which tensors there are, and is reshaped by `finish`.
    pieces
        The names of the modules that are written one by one, as `Pieces.names`.
    made_from
        What decides all numbers, as a digest: shards that were made from the same are not made again. None to begin
        anew each time.

    Raises
    ------
    InvalidInputError
        Where the folder holds anything else than a saved network.
    StoreLockedError
        Where another process is writing it.
    """
    require_own(folder)
    working = working_folder(folder)
    _require_own_working(working)
    make_folder(working)
    lock = filelock.FileLock(working / LOCK, timeout=0)
    try:
        with explained(working):
            lock.acquire()
    except filelock.Timeout:
        raise StoreLockedError(
            f"'{folder}' is being written by another process: wait for it, or write to another folder"
        ) from None
    try:
        yield ShardWriter(folder, skeleton, pieces, made_from or secrets.token_hex())
    except BaseException:
        if made_from is None:  # nobody could tell whether it may be used
            remove_folder(working)
        raise
    finally:
        lock.release()


def working_folder(folder: Path) -> Path:
    """Return where a network is until it is whole."""
    return folder.with_name(f"{folder.name}.unfinished")


def _require_own_working(working: Path) -> None:
    """Raise InvalidInputError where somebody else's folder has the name: it is removed in the end."""
    there = {path.name for path in working.iterdir()} if working.is_dir() else set()
    foreign = sorted(name for name in there - {LOCK, _NETWORK, _RECORDS} if not name.startswith(TEMPORARY))
    if foreign:
        raise InvalidInputError(
            f"'{working}', where the network is until it is whole, holds other files, '{foreign[0]}' for one: move "
            "them elsewhere, or choose another folder"
        )


def _files_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
