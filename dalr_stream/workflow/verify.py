"""Everything that a run left, compared with what is known of it: the store, and what each step left beside it."""

from __future__ import annotations

from pathlib import Path

from dalr_stream.engine.verify import Finding, Verification, verify_store
from dalr_stream.progress import Progress, Silent
from dalr_stream.workflow.order import steps_of
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.session import Session
from dalr_stream.workflow.steps.step_log import FILE, StepLog


def verify_run(project: Project, *, progress: Progress | None = None) -> Verification:
    """Read a run's stores, and the records and networks of its steps, and return what is whole and what is not.

    A step is compared with what it was made from, whatever the run file says by now. Changes nothing. Raises as
    `engine.verify.verify_store`.
    """
    whole: list[str] = []
    findings: list[Finding] = []
    for root in project.stores:
        of_store, where = verify_store(root, progress=progress), _prefix(project, root)
        whole += [f"{where}{line}" for line in of_store.whole]
        findings += [Finding(f"{where}{finding.part}", finding.problem) for finding in of_store.findings]
    log = StepLog(project.output, {})
    if log.damage:
        findings.append(Finding(FILE, log.damage))
    for step in steps_of(Session(project, Silent())):
        made_from = log.made_from(step.name)
        if log.unfinished(step.name):
            findings.append(Finding(step.name, f"was stopped midway: run {step.verb} again"))
        elif made_from is not None:
            problems = [Finding(step.name, f"{problem}: run {step.verb} again") for problem in step.problems(made_from)]
            findings += problems
            whole += [] if problems else [f"{step.name}: all that it left is there"]
    return Verification(project.output, tuple(whole), tuple(findings))


def _prefix(project: Project, root: Path) -> str:
    """Return what names a store beside the run's own in front of its parts."""
    return "" if root == project.store else f"{root.relative_to(project.output)}/"
