"""Everything that a run left, compared with what is known of it: the store, and what each step left beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dalr_stream.engine.stores.verify import Finding, Verification, verify_store
from dalr_stream.errors import StoreError
from dalr_stream.progress import Progress, Silent
from dalr_stream.storage.manifest import Manifest
from dalr_stream.storage.places.place import Place, below
from dalr_stream.workflow.order import steps_of
from dalr_stream.workflow.runfile.compress_section import Order
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps import accumulate, compress
from dalr_stream.workflow.steps.profile import FILE as PROFILE
from dalr_stream.workflow.steps.profile import profile_problem
from dalr_stream.workflow.steps.session import Session
from dalr_stream.workflow.steps.step import Step
from dalr_stream.workflow.steps.step_log import FILE, StepLog


def verify_run(project: Project, *, progress: Progress | None = None) -> Verification:
    """Read a run's stores, and the records and networks of its steps, and return what is whole and what is not.

    A step is compared with what it was made from, whatever the run file says by now. Rows that are not there, or whose
    capture was stopped, are no finding where the moments made of them are whole: they may be deleted. Changes nothing.
    Raises as `engine.stores.verify.verify_store`.
    """
    found = _Found()
    for root in project.stores:
        found.store(project, root, progress)
    log = StepLog(project.output, {})
    for name, problem in {FILE: log.damage, PROFILE: profile_problem(project)}.items():
        if problem:
            found.findings.append(Finding(name, problem))
    found.steps(steps_of(Session(project, Silent())), log)
    return Verification(project.output, tuple(found.whole), tuple(found.findings))


class _Found:
    """Gathers what was found so far."""

    def __init__(self) -> None:
        self.whole: list[str] = []
        self.findings: list[Finding] = []

    def store(self, project: Project, root: Place, progress: Progress | None) -> None:
        """Look at one store; those that a step made for itself are made again whole."""
        if root == project.store:
            of_run = verify_store(root, progress=progress)
            self.whole += of_run.whole
            self.findings += of_run.findings
            return
        name = str(below(project.output, root))
        if not _used(project, root):
            self.whole.append(f"{name}: of other settings, not read; no step needs it now")
            return
        if _only_begun(project, root):
            self.whole.append(f"{name}: an interrupted pass, which does not count")
            return
        of_step = verify_store(root, progress=progress)
        self.whole += [f"{name}/{line}" for line in of_step.whole]
        verb = accumulate.VERB if root == project.cross else compress.NAME
        self.findings += [
            Finding(f"{name}/{finding.part}", f"{finding.problem}; delete '{root}', which {verb} makes again")
            for finding in of_step.findings
        ]

    def steps(self, steps: Sequence[Step], log: StepLog) -> None:
        """Look at what each step left."""
        of_steps = {step.name: list(_problems(step, log)) for step in steps}
        for step in steps:
            problems = of_steps[step.name]
            needing = [other.name for other in steps if step.name in other.needs]
            if problems and step.on_demand and not any(of_steps[name] for name in needing):
                self.whole.append(f"{step.name}: {problems[0]}; no step needs it now")
            elif problems:
                self.findings += [Finding(step.name, f"{problem}: run {step.verb} again") for problem in problems]
            elif log.made_from(step.name) is not None:
                self.whole.append(f"{step.name}: everything it left is in place")


def _problems(step: Step, log: StepLog) -> Iterator[str]:
    """Yield what is wrong with what a step left, by what the log says that it was made from, in words."""
    made_from = log.made_from(step.name)
    if log.unfinished(step.name):
        yield "was interrupted"
    elif made_from is not None:
        yield from step.problems(made_from)


def _used(project: Project, root: Place) -> bool:
    """Tell whether the run file has the step that made a store for itself: under other settings it is left there."""
    if root == project.cross:
        return project.config.accumulate.cross is not None
    return project.config.compress.order is Order.SEQUENTIAL


def _only_begun(project: Project, root: Place) -> bool:
    """Tell whether a store is of a pass of `sequential` that has no domain yet: a step reads none of its moments."""
    try:
        return root.parent == project.pass_moments and not Manifest.read(root).domains
    except StoreError:
        return False
