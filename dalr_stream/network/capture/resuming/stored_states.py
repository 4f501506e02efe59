"""What is kept of a network between two passes, in a store: one record a batch, written before its rows are folded.

    unfinished/<domain>/@stream-<pass>/<first sample>/
    unfinished/<domain>/@compressed-<pass>/<first sample>/      of a compressed network beside its original
    unfinished/<domain>/@back-<pass>/<first sample>/            gradients by what was given, on the way back
    unfinished/<domain>/@proof-<pass>/<first sample>/           of a few samples, while the way back is proved

A pass writes what is new in it; what an earlier one gave and is still used stays in that one's records, and of all else
the form is kept. Tensors lie there byte by byte, whatever their type, and come back in memory of the same strides: the
operations that follow are the same on the same numbers. Records of passes that nothing is read of any more go when the
next pass begins, so that of what the blocks give two generations are there at once at most.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dalr_stream.errors import StoreDamagedError, StoreNotFoundError, UnsupportedLayerError
from dalr_stream.network.capture.resuming.calls import Call
from dalr_stream.network.capture.resuming.given import Form, form_of, mapped, tensors_in
from dalr_stream.network.capture.resuming.kept_states import Room, State
from dalr_stream.network.layers.tensor_bytes import bytes_of, of_bytes
from dalr_stream.storage import schema
from dalr_stream.storage.layout import UNFINISHED, remove_empty
from dalr_stream.storage.places.place import Place, remove_folder
from dalr_stream.storage.records.record import Arrays, load_record, origin_of, save_record
from dalr_stream.storage.schema import ArraySpec

_ENDLESS = 2**62
"""Memory that is not counted: a batch's values are on disk before those of the next one are made."""
STREAM, COMPRESSED, BACK, PROOF = "@stream", "@compressed", "@back", "@proof"
_ANOTHER_WAY = "blocks: for one of the batches {}: batches go different ways through the network; run it whole"


def not_called() -> UnsupportedLayerError:
    """Return the error for a batch that does not come to where the first one came."""
    return UnsupportedLayerError(_ANOTHER_WAY.format("modules are not called that the first batch called"))


def not_used_before() -> UnsupportedLayerError:
    """Return the error for a batch that needs what is not there, as the first one did not need it."""
    return UnsupportedLayerError(_ANOTHER_WAY.format("numbers are used that the first batch had no use for"))


@dataclass(slots=True)
class StoredStream:
    """The batches of one domain on their way through a network, as one pass reads and writes them."""

    root: Place
    domain: str
    number: int
    """Of the pass: it reads what the one before gave, and writes what it gives."""
    places: Sequence[Mapping[Call, int | None]]
    """For each place between two passes the calls that are done there, each with the pass that it was run in; with
    None where nothing uses what it gave any more."""
    made_from: Mapping[str, Any]
    """What identifies the network and its passes."""
    writes: bool = True
    """Whether a later pass reads what this one gives."""
    removes: bool = True
    """Whether records that nothing reads any more are removed here: of several ranks by the first."""
    name: str = STREAM
    since: int = 0
    """The pass that `name` begins with: what earlier ones gave is what the original's gave."""
    compressed: Sequence[str] = ()
    """Of a compressed network: what identifies it as far as each pass runs it."""
    room: Room = field(default_factory=lambda: Room(_ENDLESS))

    def state(self, key: int) -> State | None:
        """Return where the pass before left a batch; None in the first pass.

        Raises StoreDamagedError where that is not there, or is not what was written.
        """
        if self.number == 0:
            return None
        place, last = self.places[self.number - 1], self.number - 1
        given = self._read(last, key, [way for way, run_in in place.items() if run_in == last], forms=True)
        for earlier in sorted({run_in for run_in in place.values() if run_in not in (None, last)}):
            given |= self._read(earlier, key, [way for way, run_in in place.items() if run_in == earlier], forms=False)
        ordered = {way: given[way] for way in place}
        return State(ordered, sum(tensor.nbytes for tensor in tensors_in(tuple(ordered.values()))))

    def keep(self, key: int, given: Mapping[Call, Any] | None) -> None:
        """Write what a batch gave in this pass; None where not all of it came to be.

        Raises UnsupportedLayerError for the latter: the batch went another way through the network.
        """
        if not self.writes:
            return
        if given is None:
            raise not_called()
        tensors: dict[int, tuple[int, torch.Tensor]] = {}
        plain = []
        for way, value in given.items():
            new = self.places[self.number][way] == self.number
            plain.append([[list(part) for part in way], _plain(value if new else mapped(value, form_of), tensors)])
        arrays = {str(number): _bytes_of(tensor) for number, tensor in tensors.values()}
        specs = [_spec(number) for number in range(len(arrays))]
        save_record(self._path(self.number, key), specs, arrays, {"given": plain}, self._facts(self.number), names=3)

    def forget(self) -> None:
        """Raise UnsupportedLayerError: to begin at the inputs again, every block would be read again for each batch."""
        raise not_used_before()

    def has(self, key: int) -> bool:
        """Tell whether this pass has written what a batch gave."""
        return origin_of(self._path(self.number, key)) == self._facts(self.number)

    def drop_spent(self) -> None:
        """Remove the records that neither this pass nor a later one reads."""
        for earlier in range(self.number - 1 if self.removes else 0):
            if all(earlier not in place.values() for place in self.places[self.number - 1 :]):
                remove_folder(self._folder(earlier))

    def drop_unread(self) -> None:
        """Remove what this pass and later ones gave: on the way back from the last one, this one reads none of it."""
        for number in range(self.number, len(self.places) if self.removes else 0):
            remove_folder(self._folder(number))

    def drop(self, *, others_write: bool = False) -> None:
        """Remove all records of all passes, and folders that are empty then, where no other process may need them."""
        for number in range(len(self.places) + 1):
            remove_folder(self._folder(number))
        if not others_write:
            remove_empty(self.root)

    def _read(self, producer: int, key: int, ways: Sequence[Call], *, forms: bool) -> dict[Call, Any]:
        path = self._path(producer, key)
        remedy = f"delete '{self.root / UNFINISHED / self.domain}' and run again, which begins at the first block"
        try:
            _, values = load_record(path, [])
            wanted = {_way(way): plain for way, plain in values["given"] if forms or _way(way) in ways}
            numbers = set[int]().union(*(_numbers(wanted[way]) for way in ways))
            arrays, _ = load_record(path, [_spec(number) for number in sorted(numbers)])
        except StoreNotFoundError:
            raise StoreDamagedError(
                f"'{path}' is gone, where the block before left the batch of sample {key}: {remedy}"
            ) from None
        except (StoreDamagedError, LookupError, TypeError, ValueError) as error:
            raise StoreDamagedError(f"'{path}' is damaged ({error}): {remedy}") from error
        if values["provenance"] != self._facts(producer):
            raise StoreDamagedError(f"'{path}' is of another network, or of other blocks: {remedy}")
        tensors: dict[int, torch.Tensor] = {}
        return {way: _value(plain, arrays, tensors) for way, plain in wanted.items()}

    def _facts(self, number: int) -> dict[str, Any]:
        facts = {**self.made_from, "pass": number}
        return {**facts, "compressed": self.compressed[number]} if self.compressed and self._is_own(number) else facts

    def _is_own(self, number: int) -> bool:
        return self.name != STREAM and number >= self.since

    def _folder(self, number: int) -> Place:
        name = self.name if self._is_own(number) else STREAM
        return self.root / UNFINISHED / self.domain / f"{name}-{number}"

    def _path(self, number: int, key: int) -> Place:
        return self._folder(number) / f"{key:012d}"


def _way(plain: Any) -> Call:
    return tuple((str(name), int(number)) for name, number in plain)


def _spec(number: int) -> ArraySpec:
    return dataclasses.replace(schema.STATE, name=str(number))


def _plain(value: Any, tensors: dict[int, tuple[int, torch.Tensor]]) -> Any:
    """Return a value as JSON has it; its tensors go to `tensors`, numbered, each once."""
    if isinstance(value, torch.Tensor | Form):
        form = form_of(value)
        dtype = str(form.dtype).removeprefix("torch.")
        described = {"shape": list(form.shape), "strides": list(form.strides), "dtype": dtype, "at": str(form.device)}
        if isinstance(value, Form):
            return {"form": described}
        return {"tensor": tensors.setdefault(id(value), (len(tensors), value))[0], "form": described}
    if type(value) is dict:
        return {"mapping": [[_plain(key, tensors), _plain(member, tensors)] for key, member in value.items()]}
    if type(value) in (tuple, list):
        return {type(value).__name__: [_plain(member, tensors) for member in value]}
    return value


def _value(plain: Any, arrays: Arrays, tensors: dict[int, torch.Tensor]) -> Any:
    """Return what `_plain` was given; of a tensor whose bytes were not read, the form."""
    if not isinstance(plain, dict):
        return plain
    if "mapping" in plain:
        return {_value(key, arrays, tensors): _value(member, arrays, tensors) for key, member in plain["mapping"]}
    for kind in (tuple, list):
        if kind.__name__ in plain:
            return kind(_value(member, arrays, tensors) for member in plain[kind.__name__])
    form, number = _form(plain["form"]), plain.get("tensor")
    if number is None or str(number) not in arrays:
        return form
    if number not in tensors:
        flat = of_bytes(arrays[str(number)], form.dtype)
        tensors[number] = flat.as_strided(form.shape, form.strides).to(form.device)
    return tensors[number]


def _form(described: Mapping[str, Any]) -> Form:
    dtype: torch.dtype = getattr(torch, described["dtype"])
    return Form(tuple(described["shape"]), tuple(described["strides"]), dtype, torch.device(described["at"]))


def _numbers(plain: Any) -> set[int]:
    """Return which arrays a value needs."""
    if isinstance(plain, list):
        return set[int]().union(*map(_numbers, plain))
    if not isinstance(plain, dict):
        return set()
    return {plain["tensor"]} if "tensor" in plain else _numbers(list(plain.values()))


def _bytes_of(tensor: torch.Tensor) -> NDArray[np.int8]:
    """Return the bytes of a tensor that fills its memory, in the order in which they lie there."""
    here = tensor.detach().cpu()
    return bytes_of(here.as_strided((here.numel(),), (1,), here.storage_offset()))
