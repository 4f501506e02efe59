"""Which steps of a run are done for what is asked, and in which order; what has not changed is skipped.

A step is done where it is stale (see `steps.step`) and something that is asked for needs it: when the activations were
deleted and their moments are there, nothing is captured again, and solving at other ridges or by other methods starts
from the moments. A verb brings the steps after the moments up to date before it starts, so nothing is ever evaluated or
reported from another setting's solutions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from dalr_stream.workflow.order import steps_of
from dalr_stream.workflow.run_folder import one_command
from dalr_stream.workflow.step_memory import require_step
from dalr_stream.workflow.steps.session import Session
from dalr_stream.workflow.steps.step import AGAIN, CHANGED, NOT_DONE, Step, require_moments
from dalr_stream.workflow.steps.step_log import StepLog


class Schedule:
    """The steps of one session, brought up to date as they are asked for."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._project = session.project
        self._progress = session.progress
        self._steps = steps_of(session)
        session.check_all_steps = self._check

    @property
    def checks(self) -> tuple[Callable[[], None], ...]:
        """What refuses the run before anything is recorded, one for each step."""
        return tuple(step.check for step in self._steps)

    def of(self, verb: str) -> tuple[Step, ...]:
        """Return the steps that one verb of the command line does; none where the run file asks for none."""
        return tuple(step for step in self._steps if step.verb == verb)

    def outlook(self) -> Iterator[tuple[str, bool]]:
        """Yield each step's name, in order, and whether `bring_all` would do it."""
        log, would, unknown = self._log(), set[str](), set[str]()
        for step in self._steps:
            if not unknown.isdisjoint(step.needs) or (step.from_store and not would.isdisjoint(step.needs)):
                unknown.add(step.name)
            demanded = not step.on_demand or self._wanted(step, log)
            if step.name in unknown or (demanded and self._reason(step, log) is not None):
                would.add(step.name)
            yield step.name, step.name in would

    def bring_all(self) -> None:
        """Bring every step up to date."""
        self.bring(self._steps, whole=True)

    def bring(self, asked: Iterable[Step], *, whole: bool = False) -> None:
        """Bring steps up to date, and before each what it needs, in the order of the list.

        `whole` goes on to what lies before the moments, where a verb that starts from the store does not.
        """
        names = {step.name for step in asked}
        needed = self._needed(names, whole=whole)
        with one_command(self._project), self._session.opened():
            log = self._log()
            if log.damage:
                self._progress.note(f"{log.damage}: every step is done again")
            require_moments(self._project.store, self._steps, log, needed)
            for step in self._steps:
                demanded = not step.on_demand or (step.name in names and not whole) or self._wanted(step, log)
                if step.name in needed and demanded:
                    self._bring_one(step, log, asked=step.name in names)

    def _bring_one(self, step: Step, log: StepLog, *, asked: bool) -> None:
        """Do a step where it is stale; what it was made from is forgotten, on disk, before its first byte changes."""
        reason = self._reason(step, log)
        if reason is None:
            if asked:
                self._progress.note(f"{step.name}: up to date, skipped")
            return
        if reason not in (NOT_DONE, CHANGED, AGAIN):
            self._progress.note(f"{step.name}: {reason}: done again")
        if not self._session.room_checked:
            require_step(self._project, step.verb)
        fingerprint = step.made_from()
        log.begin(step.name)
        step.do(fingerprint)
        log.done(step.name, fingerprint)

    def _log(self) -> StepLog:
        return StepLog(self._project.output, self._project.config.plain())

    def _reason(self, step: Step, log: StepLog) -> str | None:
        """Return why a step is to be done, in words; None where it is not."""
        return AGAIN if self._session.fresh and step.again else step.stale(log)

    def _wanted(self, step: Step, log: StepLog) -> bool:
        """Tell whether a step that is done on demand is demanded: one that needs it is stale."""
        return any(step.name in other.needs and self._reason(other, log) is not None for other in self._steps)

    def _needed(self, names: set[str], *, whole: bool) -> set[str]:
        """Return the names of the steps that are needed to bring these up to date, and their own."""
        needed = set(names)
        for step in reversed(self._steps):
            if step.name in needed and (whole or not step.from_store):
                needed.update(step.needs)
        return needed

    def _check(self) -> None:
        for check in self.checks:
            check()
