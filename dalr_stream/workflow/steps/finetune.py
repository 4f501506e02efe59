"""The compressed network fine-tuned as the run file says; what is kept of it: the setting, and each epoch's loss."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dalr_stream.errors import StoreNotFoundError
from dalr_stream.network.saved import checkpoint
from dalr_stream.network.training.finetune import FineTuning, Loss, cross_entropy, finetune
from dalr_stream.network.training.trainable import trained_parameters
from dalr_stream.progress import Progress
from dalr_stream.storage.durable import make_folder, write_file
from dalr_stream.workflow.runfile.factories import importing_from, require_takes
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.runfile.sections import FinetuneSection


@dataclass(frozen=True, slots=True)
class FineTuned:
    """How the saved network was fine-tuned."""

    setting: str
    """In words."""
    losses: tuple[float, ...]
    """Mean training loss of each epoch."""

    def __str__(self) -> str:
        return (
            f"{self.setting}; training loss {self.losses[0]:.4g} in the first epoch, {self.losses[-1]:.4g} in the last"
        )

    @property
    def plain(self) -> Mapping[str, Any]:
        """The record as JSON-like values."""
        return asdict(self)

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        make_folder(path.parent)
        write_file(path, (json.dumps(self.plain, indent=1) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> FineTuned:
        """Read what `write` wrote."""
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StoreNotFoundError(f"there is no '{path}': run finetune first") from None
        return cls(plain["setting"], tuple(plain["losses"]))


def options_of(project: Project, section: FinetuneSection) -> FineTuning:
    """Return what a [finetune] section says of the training."""
    loss: Loss = cross_entropy
    if section.loss != "cross_entropy":
        loss = project.resolve(section.loss, "finetune.loss")
        require_takes(loss, section.loss, "finetune.loss", "outputs", "labels")
    return FineTuning(
        epochs=section.epochs,
        rate=section.rate,
        weight_decay=section.weight_decay,
        layers=section.layers,
        dropout=section.dropout,
        loss=loss,
        seed=project.config.run.seed,
    )


def fine_tune(
    project: Project, section: FinetuneSection, unfinished: Path, progress: Progress
) -> tuple[nn.Module, FineTuned]:
    """Return the compressed network fine-tuned, and the record of it; `unfinished` is the checkpoint's file."""
    small = checkpoint.load(project.compressed, project.placed)
    options = options_of(project, section)
    losses: list[float] = []
    batches = project.loader("finetune", section)
    with importing_from(project.folder), progress.track("finetune", section.epochs, "epochs") as advance:

        def epoch_done(_: int, loss: float) -> None:
            losses.append(loss)
            advance(1)

        tuned = finetune(small, batches, options, checkpoint=unfinished, epoch_done=epoch_done)
    return tuned, FineTuned(_in_words(section, small), tuple(losses))


def _in_words(section: FinetuneSection, small: nn.Module) -> str:
    trained = sum(parameter.numel() for parameter in trained_parameters(small, section.layers).values())
    layers = f"layers {', '.join(section.layers)}" if section.layers else "fully connected layers"
    return (
        f"fine-tuned after compression on '{section.batches}': Adam, {section.epochs} epochs at rate "
        f"{section.rate:g}, weight decay {section.weight_decay:g} (in the gradient), {layers} only "
        f"({trained:,} parameters), dropout {'on' if section.dropout else 'off'}, loss {section.loss}"
    )
