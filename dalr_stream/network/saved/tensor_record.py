"""Tensors by name as one record of a store, in a folder or in a bucket: each is read by itself.

Their bytes lie there as in memory, whatever the type. The record is there whole or not at all. One that was replaced
since it was opened is refused: half a network of each would be neither.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dalr_stream.errors import FingerprintMismatchError, StoreNotFoundError
from dalr_stream.network.layers.identity import tensor_digest
from dalr_stream.network.layers.tensor_bytes import bytes_of, of_bytes
from dalr_stream.storage import schema
from dalr_stream.storage.json_record import digest_of
from dalr_stream.storage.places.place import Place, identity
from dalr_stream.storage.records.record import attributes, holding, load_record, save_record
from dalr_stream.storage.schema import ArraySpec


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A record of tensors, of which the head was read."""

    path: Place
    values: Mapping[str, Any]
    """What else it says, and what travelled along."""
    _told: Mapping[str, Mapping[str, Any]]
    """Of each tensor its number among the arrays, type, shape and digest."""
    _identity: object

    @classmethod
    def write(cls, path: Place, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Write tensors, and plain values beside them; what was there before is replaced."""
        told = {
            name: {
                "array": number,
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "shape": list(tensor.shape),
                "sha256": tensor_digest(tensor),
            }
            for number, (name, tensor) in enumerate(tensors.items())
        }
        arrays = {str(number): bytes_of(one.contiguous().reshape(-1)) for number, one in enumerate(tensors.values())}
        save_record(path, [_spec(name) for name in arrays], arrays, {"tensors": told}, values, names=2)

    @classmethod
    def open(cls, path: Place) -> TensorRecord:
        """Read what a record says of its tensors; raises StoreNotFoundError and StoreDamagedError."""
        found = identity(path)
        plain = attributes(path)
        with holding(path, "tensors"):
            return cls(path, plain["provenance"], dict(plain["tensors"]), found)

    @property
    def names(self) -> Collection[str]:
        """The names of the tensors."""
        return self._told.keys()

    @property
    def digest(self) -> str:
        """What identifies all of them."""
        return digest_of([[name, told["sha256"]] for name, told in sorted(self._told.items())])

    @property
    def stamp(self) -> list[list[Any]]:
        """What tells the record at no cost from others: as it was when it was opened."""
        return [[str(self.path), str(self._identity)]]

    def tensor(self, name: str) -> torch.Tensor:
        """Return one tensor, in memory of its own.

        Raises StoreDamagedError where it is not what was written, and, where the record is gone or another one by now,
        StoreNotFoundError and FingerprintMismatchError.
        """
        self._require_unchanged()
        told = self._told[name]
        number = str(told["array"])
        arrays, _ = load_record(self.path, [_spec(number)])
        with holding(self.path, f"tensor '{name}'"):
            dtype: torch.dtype = getattr(torch, told["dtype"])
            return of_bytes(arrays[number], dtype).reshape(told["shape"])

    def require_whole(self) -> None:
        """Read every tensor, one after the other; raises as `tensor` does."""
        for name in self.names:
            self.tensor(name)

    def fill(self, network: torch.nn.Module) -> None:
        """Write the tensors into a network that has them, of these shapes, by name."""
        state = network.state_dict()
        with torch.no_grad():
            for name in self.names:
                state[name].copy_(self.tensor(name))

    def _require_unchanged(self) -> None:
        found = identity(self.path)
        if found is None:
            raise StoreNotFoundError(
                f"'{self.path}' was removed since the network was opened: make it anew, and open the network again"
            )
        if found != self._identity:
            raise FingerprintMismatchError(
                f"'{self.path}' was replaced since the network was opened: open it again, and make anew what was made "
                "of it"
            )


def _spec(number: str) -> ArraySpec:
    return dataclasses.replace(schema.TENSOR, name=number)
