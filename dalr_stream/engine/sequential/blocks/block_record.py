"""A block that is compressed, kept: its weights, how it came about, and what became of each layer.

    block-<number>/passes/     moments, while its layers are solved
    block-<number>/network/    a record of its tensors, on a disk or in a bucket

It is there whole or not at all. What it was made from is kept with it: a block whose layers, choices or inputs are
others by now is solved again.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from dalr_stream.engine.sequential.layer_choice import LayerChoice
from dalr_stream.engine.sequential.sequential_pass import LayerOutcome
from dalr_stream.engine.sequential.targets import Target
from dalr_stream.errors import StoreDamagedError, StoreNotFoundError
from dalr_stream.network.saved.tensor_record import TensorRecord
from dalr_stream.network.saved.weights import require_tensors_alone
from dalr_stream.network.surgery.compress import PLAN_ATTRIBUTE
from dalr_stream.network.surgery.plan import SurgeryPlan
from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.storage.json_record import digest_of
from dalr_stream.storage.places.place import Place, remove_folder


@dataclass(frozen=True, slots=True)
class BlockRecord:
    """One block's folder."""

    root: Place
    number: int

    @property
    def passes(self) -> Place:
        """Where the moments of its passes lie."""
        return self._folder / "passes"

    @property
    def tensors(self) -> TensorRecord:
        """Its tensors, opened; raises StoreNotFoundError and StoreDamagedError."""
        return TensorRecord.open(self._folder / "network")

    @property
    def identity(self) -> str:
        """Of what it computes."""
        kept = self.tensors
        return digest_of([kept.values["steps"], kept.digest])

    def keep(self, small: nn.Module, outcomes: Mapping[str, LayerOutcome], made_from: str) -> None:
        """Write a compressed block, and remove what it was solved from."""
        layers = {name: (one.inherited, one.error, one.target) for name, one in outcomes.items()}
        steps = getattr(small, PLAN_ATTRIBUTE).to_plain()
        facts = {"made_from": made_from, "layers": layers, "steps": steps}
        require_tensors_alone(small)
        TensorRecord.write(self._folder / "network", small.state_dict(), facts)
        self.drop_passes()

    def drop_passes(self) -> None:
        """Remove the moments."""
        remove_folder(self.passes)

    def outcomes(self, choices: Mapping[str, LayerChoice], made_from: str) -> dict[str, LayerOutcome] | None:
        """Return what became of each layer; None where there is no such record, or of something else."""
        try:
            tensors = self.tensors
            if tensors.values.get("made_from") != made_from:
                return None
            tensors.require_whole()
        except (StoreNotFoundError, StoreDamagedError):
            return None
        kept = tensors.values["layers"].items()
        return {
            name: LayerOutcome(choices[name], inherited, error, Target(target))
            for name, (inherited, error, target) in kept
        }

    def load_into(self, block: nn.Module) -> None:
        """Give the block, as it is in the original, the shape and the tensors of the compressed one."""
        kept = self.tensors
        plan_of(kept).apply(block)
        kept.fill(block)

    @property
    def _folder(self) -> Place:
        return self.root / f"block-{self.number:04d}"


def plan_of(block: TensorRecord) -> SurgeryPlan:
    """Return how a compressed block came about."""
    return SurgeryPlan.from_plain(block.values["steps"])


def facts_of(choice: LayerChoice, heads: HeadLayout | None = None) -> dict[str, Any]:
    """Return what of a choice decides the solution; `heads` are those of its attention, where these get narrower."""
    felt = None
    if heads is not None and choice.by.weighted:
        felt = [_digest(one) for one in choice.gradients_of(heads).values()]
    elif choice.by.weighted and choice.layer is not None:
        felt = [_digest(choice.layer.gradients), _digest(choice.layer.readers)]
    return {
        "method": choice.by.value,
        "size": choice.size,
        "ridge": repr(choice.ridge),
        "strength": choice.strength,
        "restore_ridge": choice.restore_ridge,
        "gradient_ridge": repr(choice.gradient_ridge),
        "felt": felt,
    }


def _digest(value: Any) -> str:
    """SHA-256 of a record of numbers and arrays."""
    if isinstance(value, np.ndarray):
        said = f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes()
    elif dataclasses.is_dataclass(value):
        said = "".join(_digest(getattr(value, field.name)) for field in dataclasses.fields(value)).encode()
    elif isinstance(value, tuple | list):
        said = "".join(map(_digest, value)).encode()
    else:
        said = repr(value).encode()
    return hashlib.sha256(said).hexdigest()
