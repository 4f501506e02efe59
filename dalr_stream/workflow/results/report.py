"""The report step: everything the run found out, as a folder with one page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from dalr_stream.report.write import INVENTORY, write_report
from dalr_stream.storage.durable import explained
from dalr_stream.storage.json_record import RecordKind, digest_of
from dalr_stream.workflow.results.published_file import Published
from dalr_stream.workflow.results.results import results
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps import evaluate
from dalr_stream.workflow.steps.fingerprints import file_digest, file_print
from dalr_stream.workflow.steps.profile import profile_problem, read_profile
from dalr_stream.workflow.steps.session import Session
from dalr_stream.workflow.steps.step import Artefact, Step, file_with_digest, json_record, read_stamped, write_stamped

NAME = "report"
REPORT = RecordKind("report", 1, "run report")


def steps(session: Session) -> Iterator[Step]:
    """Yield the step."""
    project = session.project
    yield Step(
        NAME,
        NAME,
        (evaluate.NAME,),
        lambda: made_from(project),
        lambda: _artefacts(project),
        lambda stamp: _report(session, stamp),
        lambda: _check(project),
    )


def made_from(project: Project) -> str:
    """Return the fingerprint of the report: of the scores, the configuration it shows, and what stands beside them."""
    config, profile = project.config, read_profile(project)
    published = config.report.published
    beside = None if published is None else file_print(project.folder / published, "report.published")
    timed = profile_problem(project) != "" if profile is None else asdict(profile)
    shown = [config.plain(), beside, timed or None]
    return digest_of([evaluate.made_from(project), *shown])


def _artefacts(project: Project) -> Iterator[Artefact]:
    """Yield the record of the report's files, and each of them with its digest."""
    yield json_record(project.report_record, REPORT)
    for name, digest in read_stamped(project.report_record, REPORT).items():
        yield file_with_digest(project.report_folder / name, digest)


def _check(project: Project) -> None:
    if project.config.report.published is not None:
        Published.read(project.folder / project.config.report.published)


def _report(session: Session, fingerprint: str) -> None:
    project = session.project
    if problem := profile_problem(project):
        session.progress.note(f"report: no timings are shown: {problem}")
    shown, folder = results(project), project.report_folder
    with explained(folder):
        write_report(shown, folder)
    names = (folder / INVENTORY).read_text(encoding="utf-8").splitlines()
    digests = {name: file_digest(folder / name) for name in (*names, INVENTORY)}
    write_stamped(project.report_record, REPORT, fingerprint, digests)
