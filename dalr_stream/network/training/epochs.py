"""Fine-tuning checkpoints, one per epoch: the trained weights and Adam's state, as safetensors.

A file belongs to one network and one set of options; one that was made from others is refused. It is replaced whole,
so a kill leaves the epoch before. Weights that are not trained are not in it: the network it starts from has them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from dalr_stream.errors import FingerprintMismatchError, StoreDamagedError
from dalr_stream.network.layers.identity import tensor_digest
from dalr_stream.network.saved.weights import as_os_error
from dalr_stream.storage.durable import make_folder, new_file

Trained = dict[str, nn.Parameter]
"""What is trained, by name."""


@dataclass(frozen=True, slots=True)
class Epochs:
    """The epochs that are done."""

    losses: tuple[float, ...] = ()
    """Mean loss of each."""
    batches: str = ""
    """Digest of the batches of the last one."""

    @property
    def count(self) -> int:
        """How many are done."""
        return len(self.losses)


@dataclass(frozen=True, slots=True)
class EpochsFile:
    """A checkpoint of what is made from a network and options, `made_from` being their digest."""

    path: Path
    made_from: str

    def save(self, done: Epochs, trained: Trained, descent: torch.optim.Optimizer) -> None:
        """Keep the state after the epochs that are done, replacing the one before."""
        tensors = {f"weight/{name}": parameter.detach() for name, parameter in trained.items()}
        names = list(trained)
        for number, values in descent.state_dict()["state"].items():
            tensors |= {f"{key}/{names[number]}": value for key, value in values.items()}
        tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
        facts = {"made_from": self.made_from, "losses": json.dumps(done.losses), "batches": done.batches}
        make_folder(self.path.parent)
        with new_file(self.path) as temporary, as_os_error():
            save_file(tensors, temporary, metadata={**facts, "digest": _digest(tensors, facts)})

    def restore(self, trained: Trained, descent: torch.optim.Optimizer) -> Epochs:
        """Put the states state in place and return the epochs that are done; none where there is no file.

        Raises StoreDamagedError, and FingerprintMismatchError where it was made from something else.
        """
        if not self.path.exists():
            return Epochs()
        tensors, facts = self._read()
        if facts["made_from"] != self.made_from:
            raise FingerprintMismatchError(
                f"'{self.path}' is a checkpoint of another network or other options: remove it, or name another file"
            )
        states: list[dict[str, torch.Tensor]] = [{} for _ in trained]
        numbers = {name: number for number, name in enumerate(trained)}
        for key, tensor in tensors.items():
            what, _, name = key.partition("/")
            states[numbers[name]][what] = tensor
        with torch.no_grad():
            for parameter, values in zip(trained.values(), states, strict=True):
                parameter.copy_(values.pop("weight"))
        state = {number: values for number, values in enumerate(states) if values}
        descent.load_state_dict({"state": state, "param_groups": descent.state_dict()["param_groups"]})
        return Epochs(tuple(json.loads(facts["losses"])), facts["batches"])

    def _read(self) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        try:
            with safe_open(self.path, framework="pt") as file:
                facts: dict[str, str] = dict(file.metadata() or {})
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is no mapping
        except SafetensorError as error:
            raise StoreDamagedError(f"'{self.path}' is not a readable safetensors file: {error}: remove it") from error
        if facts.pop("digest", None) != _digest(tensors, facts):
            raise StoreDamagedError(f"'{self.path}' is damaged: it does not match its digest; remove it and start over")
        return tensors, facts


def _digest(tensors: Mapping[str, torch.Tensor], facts: Mapping[str, str]) -> str:
    """SHA-256 of all that the file keeps."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key}:{tensor_digest(tensor)};".encode())
    return digest.hexdigest()
