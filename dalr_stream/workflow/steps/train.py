"""The train step: the network's weights, where the run file says how to train it."""

from __future__ import annotations

from collections.abc import Iterator

from dalr_stream.network.layers.identity import fingerprint
from dalr_stream.network.saved.files import weights_files
from dalr_stream.network.saved.weights import save_weights, weights_made_from
from dalr_stream.storage.json_record import RecordKind, digest_of
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.fingerprints import code_print, file_digest, file_print
from dalr_stream.workflow.steps.session import Session
from dalr_stream.workflow.steps.step import Artefact, Step, file_with_digest, json_record, read_stamped, write_stamped

NAME = "train"
WEIGHTS = RecordKind("weights", 1, "run train")


def steps(session: Session) -> Iterator[Step]:
    """Yield the step; nothing where the network has its weights already."""
    project = session.project
    if project.config.network.train is not None:
        yield Step(
            NAME,
            NAME,
            (),
            lambda: made_from(project),
            lambda: _artefacts(project),
            lambda stamp: _train(session, stamp),
            lambda: _check(project),
            again=False,
        )


def made_from(project: Project) -> str:
    """Return the fingerprint of the network's weights, trained or given."""
    section, seed = project.config.network, project.config.run.seed
    files = {"weights": section.weights, "start": section.start}
    weights = [
        [file_print(part, f"network.{key}") for part in weights_files(project.folder / file)] if file else None
        for key, file in files.items()
    ]
    if section.has_own_weights:
        weights.append([fingerprint(project.network)])
    settings = section.model_dump(mode="json", exclude={"layers", "outputs", "device", "blocks"})
    code = code_print(project, section.build, section.train)
    return digest_of({"network": settings, "weights": weights, "seed": seed, "code": code})


def _artefacts(project: Project) -> Iterator[Artefact]:
    """Yield the weights and the record of their digest; those of 0.1 have none."""
    if weights_made_from(project.weights) is not None:
        yield json_record(project.weights_record, WEIGHTS)
        yield file_with_digest(project.weights, read_stamped(project.weights_record, WEIGHTS)["sha256"])


def _train(session: Session, stamp: str) -> None:
    project, code = session.project, session.project.code
    with code.importing():
        model = code.build()
        train = code.trainer(str(project.config.network.train))
        train(model, seed=project.config.run.seed, report=session.progress.note, **code.train_options)
    save_weights(model.eval(), project.weights, made_from=stamp)
    write_stamped(project.weights_record, WEIGHTS, stamp, {"sha256": file_digest(project.weights)})


def _check(project: Project) -> None:
    project.code.trainer(str(project.config.network.train))
