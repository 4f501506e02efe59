"""The finetune step: the compressed network fine-tuned as the run file says, and a record of each epoch's loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import StoreDamagedError
from dalr_stream.network.saved import checkpoint
from dalr_stream.network.training.finetune import finetune
from dalr_stream.network.training.output_loss import OutputLoss
from dalr_stream.network.training.setting import FineTuning, Loss
from dalr_stream.network.training.trainable import Train, trained_parameters
from dalr_stream.storage.durable import remove_folder
from dalr_stream.storage.json_record import RecordKind, digest_of
from dalr_stream.workflow.runfile.finetune_section import FinetuneSection
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps import compress, solve
from dalr_stream.workflow.steps.fingerprints import code_print
from dalr_stream.workflow.steps.provenance import saved_provenance
from dalr_stream.workflow.steps.session import Session
from dalr_stream.workflow.steps.sizes.compression import Compression
from dalr_stream.workflow.steps.step import Step, json_record, read_stamped, saved_network, write_stamped

NAME = "finetune"
FINETUNING = RecordKind("fine-tuning", 1, "run finetune")


def steps(session: Session) -> Iterator[Step]:
    """Yield the step; nothing where the run file has no [finetune] section."""
    project, section = session.project, session.project.config.finetune
    if section is not None:
        yield Step(
            NAME,
            NAME,
            (solve.NAME, compress.NAME),
            lambda: made_from(project),
            lambda: [saved_network(project.finetuned), json_record(project.finetuning, FINETUNING)],
            lambda stamp: _finetune(session, stamp),
            lambda: _check(project, section),
        )


def made_from(project: Project) -> str:
    """Return the fingerprint of the fine-tuned network; of the compressed one where none is asked for."""
    section, compressed = project.config.finetune, compress.made_from(project)
    if section is None:
        return compressed
    code = code_print(project, project.config.network.build, section.batches, section.loss)
    return digest_of([compressed, section.model_dump(mode="json"), code, project.config.run.seed])


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

    def write(self, path: Path, fingerprint: str) -> None:
        """Write the record."""
        write_stamped(path, FINETUNING, fingerprint, self.plain)

    @classmethod
    def read(cls, path: Path, fingerprint: str | None = None) -> FineTuned:
        """Read what `write` wrote; raises FingerprintMismatchError where it was made from something else."""
        plain = read_stamped(path, FINETUNING, fingerprint)
        return cls(plain["setting"], tuple(plain["losses"]))


def options_of(project: Project, section: FinetuneSection) -> FineTuning:
    """Return what a [finetune] section says of the training."""
    return FineTuning(
        epochs=section.epochs,
        rate=section.rate,
        weight_decay=section.weight_decay,
        layers=section.layers,
        train=section.train,
        dropout=section.dropout,
        loss=_loss_of(project, section),
        seed=project.config.run.seed,
    )


def _loss_of(project: Project, section: FinetuneSection) -> Loss:
    if section.without_labels:
        return OutputLoss(project.network, distance=section.distance, rows=project.code.rows)
    return project.code.loss(section)


def _check(project: Project, section: FinetuneSection) -> None:
    if not section.without_labels:  # whose loss is the network's, which may have no weights yet
        project.code.loss(section)


def _finetune(session: Session, fingerprint: str) -> None:
    project = session.project
    section = project.finetune_section
    network, record = _fine_tuned(session, section, project.unfinished / f"finetune-{fingerprint[:16]}.safetensors")
    store = StoreView.open(project.store)
    compression = Compression.read(project.compression, compress.made_from(project))
    facts = {"fine-tuning": record.plain, **saved_provenance(project.config, store, compression, fingerprint)}
    checkpoint.remove_remnant(project.finetuned)
    checkpoint.save(network, project.finetuned, provenance=facts)
    record.write(project.finetuning, fingerprint)
    session.progress.note(f"finetune: {record}, in '{project.finetuned}'")
    remove_folder(project.unfinished)


def _fine_tuned(session: Session, section: FinetuneSection, unfinished: Path) -> tuple[nn.Module, FineTuned]:
    """Return the compressed network fine-tuned, and the record of it; `unfinished` is the checkpoint's file."""
    project = session.project
    small = checkpoint.load(project.compressed, project.code.placed)
    options = options_of(project, section)
    losses: list[float] = []
    batches = project.code.loader("finetune", section)
    with project.code.importing(), session.progress.track(NAME, section.epochs, "epochs") as advance:

        def epoch_done(_: int, loss: float) -> None:
            losses.append(loss)
            advance(1)

        try:
            network = finetune(small, batches, options, checkpoint=unfinished, epoch_done=epoch_done)
        except StoreDamagedError as error:
            if losses or not unfinished.is_file():
                raise
            session.progress.note(f"finetune: {error}; this is done")
            unfinished.unlink()
            network = finetune(small, batches, options, checkpoint=unfinished, epoch_done=epoch_done)
    return network, FineTuned(_in_words(section, options, small), tuple(losses))


def _in_words(section: FinetuneSection, options: FineTuning, small: nn.Module) -> str:
    trained = trained_parameters(small, section.layers, section.train).values()
    labels = f"without labels, towards the original's outputs by {section.distance}"
    return (
        f"fine-tuned after compression on '{section.batches}'{f' {labels}' if section.without_labels else ''}: Adam, "
        f"{section.epochs} epochs at rate {section.rate:g}, weight decay {options.decay:g} (in the gradient), "
        f"{_trained_in_words(section)} only ({sum(parameter.numel() for parameter in trained):,} parameters), dropout "
        f"{'on' if section.dropout else 'off'}, loss {section.loss}"
    )


def _trained_in_words(section: FinetuneSection) -> str:
    named = f"layers {', '.join(section.layers)}"
    if section.train is Train.FACTORS:
        return f"factors and biases of {named}" if section.layers else "factors and biases"
    return named if section.layers else {Train.ALL: "all layers"}.get(section.train, "fully connected layers")
