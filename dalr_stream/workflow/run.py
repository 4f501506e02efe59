"""A whole run as its file describes it, step by step; what has not changed is skipped.

    train -> capture -> accumulate -> solve -> compress -> finetune -> evaluate -> report

A step is done where it is stale (see `steps.step`) and something that is asked for needs it: when the activations were
deleted and their moments are there, nothing is captured again, and solving at other ridges or by other methods starts
from the moments. A verb brings the steps after the moments up to date before it starts, so nothing is ever evaluated or
reported from another setting's solutions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import nn

from dalr_stream.engine.ranks.ranks import Ranks
from dalr_stream.engine.stores.store import Store, open_store
from dalr_stream.errors import ConfigError
from dalr_stream.network.measure.profile import Stopwatch
from dalr_stream.network.structure.graph import Structure
from dalr_stream.numerics.latency import NetworkProfile
from dalr_stream.progress import Progress, Silent
from dalr_stream.report.records.results import Results
from dalr_stream.report.size_curve import SizeCurve
from dalr_stream.report.write import PAGE
from dalr_stream.workflow.journal import FILE as JOURNAL
from dalr_stream.workflow.journal import Journal
from dalr_stream.workflow.order import steps_of
from dalr_stream.workflow.results import report
from dalr_stream.workflow.results.results import results
from dalr_stream.workflow.run_folder import one_command
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.size_curve import size_curve
from dalr_stream.workflow.step_memory import require_step, require_steps
from dalr_stream.workflow.steps import accumulate, capture, compress, evaluate, finetune, solve, train
from dalr_stream.workflow.steps.evaluate import Evaluation
from dalr_stream.workflow.steps.profile import BATCH_SIZES, profile_run
from dalr_stream.workflow.steps.scores.scoring import Scoring, score_on
from dalr_stream.workflow.steps.session import Session
from dalr_stream.workflow.steps.step import AGAIN, CHANGED, NOT_DONE, Step, require_moments
from dalr_stream.workflow.steps.step_log import StepLog


class Run:
    """The steps of one run file.

    Parameters
    ----------
    project
        The run file with the Python it names; `Run.open` makes it.
    progress
        Receives progress, for example from `show_progress()`; silent by default.
    fresh
        Do what is asked for again, and let a store made from other weights or data be replaced.
    ranks
        The processes of this job, of which this is rank 0; the others follow it (`workflow.following`).

    Examples
    --------
    >>> import dalr_stream as ds
    >>> run = ds.Run.open("birds.toml", set=["solve.ridge=1e-2"])  # doctest: +SKIP
    >>> page = run.all()  # doctest: +SKIP
    >>> run.results.baseline_score  # doctest: +SKIP
    0.934
    """

    def __init__(
        self,
        project: Project,
        *,
        progress: Progress | None = None,
        fresh: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.project = project
        self._progress: Progress = Journal(progress or Silent(), project.output / JOURNAL)
        self._session = Session(project, self._progress, fresh=fresh, ranks=ranks)
        self._session.check_all_steps = self._check
        self._session.check_memory = partial(require_steps, self.project)
        self._steps = steps_of(self._session)

    @classmethod
    def open(
        cls,
        file: str | Path,
        *,
        set: Iterable[str] = (),  # noqa: A002  # the command line's word
        progress: Progress | None = None,
        fresh: bool = False,
    ) -> Run:
        """Return the run that a file describes; nothing is done yet.

        Parameters
        ----------
        file
            The run file, TOML.
        set
            `section.key=value`, each in place of what the file says, as `--set` on the command line.
        progress
            Where the steps report; by default nowhere.
        fresh
            Does what is asked for again, all but training; a store made from other weights or data is replaced.

        Raises
        ------
        ConfigError
            Where the file cannot be read, or one of its keys breaks a rule; names the key, the rule and the value.
        """
        path = Path(file)
        return cls(Project(load_config(path, list(set)), path.resolve().parent), progress=progress, fresh=fresh)

    # --- verbs ---------------------------------------------------------------------------------------------------

    def all(self) -> Path:
        """Do every step whose inputs have changed; return the report's page."""
        self._bring(self._steps, whole=True)
        return self._page

    def train(self) -> None:
        """Train the network and keep its weights, where the run file says how."""
        self._bring(self._of(train.NAME))

    def capture(self) -> None:
        """Stream each domain's activations into the store, training first where there are no weights.

        Raises ConfigError where the run file says to keep no activations.
        """
        if not self.project.config.capture.keep_activations:
            raise ConfigError(
                "capture.keep_activations: is false, so rows are folded as they come and none are kept: run "
                "accumulate, or pass --set capture.keep_activations=true"
            )
        self._bring(self._of(capture.VERB))

    def accumulate(self) -> None:
        """Turn each domain's activations into moments, capturing them first where they are wanted and not there."""
        self._bring(self._of(accumulate.VERB))

    def solve(self) -> None:
        """Solve every layer by every method, for every rank, from the moments in the store alone."""
        self._bring(self._of(solve.NAME))

    def compress(self) -> None:
        """Save the network that the run file's [compress] section describes."""
        self._bring(self._of(compress.NAME) or self._of(solve.NAME))

    def size_curve(self, shares: Sequence[str] = (), *, rule: str = "params", evaluate: bool = True) -> SizeCurve:
        """Compress to several budgets, show the whole network's quality against its size, and return it.

        Shares read like "30%"; without them it is about the one network that [compress] describes. Table, picture and
        networks go to `sizes` in the run's output; a killed call resumes. `evaluate` scores on [evaluate] too.
        """
        if evaluate:
            _ = self.project.evaluate_section
        self._bring(self._of(solve.NAME) if shares else self._of(compress.NAME) or self._of(solve.NAME))
        with one_command(self.project):
            return size_curve(self._session, rule, shares, evaluate=evaluate)

    def finetune(self) -> None:
        """Fine-tune the compressed network as [finetune] says, and save it; if killed, it resumes after the last epoch.

        Raises ConfigError where the run file has no such section; `evaluate` and `score` likewise with [evaluate].
        """
        _ = self.project.finetune_section
        self._bring(self._of(finetune.NAME))

    def evaluate(self) -> Evaluation:
        """Score every method at every size, and the saved networks, on the test split; return the scores."""
        _ = self.project.evaluate_section
        self._bring(self._of(evaluate.NAME))
        return Evaluation.read(self.project.evaluation, evaluate.made_from(self.project))

    def report(self) -> Path:
        """Write the report and return its page."""
        self._bring(self._of(report.NAME))
        return self._page

    def profile(
        self, batch_sizes: Sequence[int] = BATCH_SIZES, *, stopwatch: Stopwatch | None = None
    ) -> NetworkProfile:
        """Time the saved network and the original on the target's first batch, keep the record and return it."""
        with one_command(self.project):
            return profile_run(self.project, batch_sizes, stopwatch=stopwatch)

    # --- what it is about ----------------------------------------------------------------------------------------

    @property
    def network(self) -> nn.Module:
        """The network to compress, with its weights, in eval mode; raises StoreNotFoundError before it is trained."""
        return self.project.network

    @property
    def structure(self) -> Structure | None:
        """Which of its channels are coupled, for `compress(..., example=...)`; None where no selection is solved."""
        return self.project.structure

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers to compress, once they were captured or accumulated."""
        return self.project.layers

    @property
    def store(self) -> Store:
        """The store with moments, solutions and rows; raises StoreNotFoundError before there is one."""
        return open_store(self.project.store)

    def batches(self, domain: str) -> Iterable[Any]:
        """Return what the loader of a domain gives, as the run file names it."""
        with self.project.code.importing():
            return self.project.code.batches(domain)

    def score(self, network: nn.Module) -> float:
        """Return the score of a network as [evaluate] measures it: by its metric, on its batches."""
        with self.project.code.importing():
            return self._scoring(network)

    @cached_property
    def _scoring(self) -> Scoring:
        return score_on(self.project, "evaluate", self.project.evaluate_section)

    @property
    def results(self) -> Results:
        """Everything the run found out, as the report shows it."""
        return results(self.project)

    @property
    def checks(self) -> tuple[Callable[[], None], ...]:
        """What refuses the run before anything is recorded, one for each step."""
        return tuple(step.check for step in self._steps)

    def outlook(self) -> Iterator[tuple[str, bool]]:
        """Yield each step's name, in order, and whether `all` would do it.

        What a step would be made from is not known where moments that it starts from will be made again.
        """
        log, would, unknown = StepLog(self.project.output, self.project.config.plain()), set[str](), set[str]()
        for step in self._steps:
            if not unknown.isdisjoint(step.needs) or (step.from_store and not would.isdisjoint(step.needs)):
                unknown.add(step.name)
            demanded = not step.on_demand or self._wanted(step, log)
            if step.name in unknown or (demanded and self._reason(step, log) is not None):
                would.add(step.name)
            yield step.name, step.name in would

    # --- how a step is done --------------------------------------------------------------------------------------

    def _bring(self, asked: Iterable[Step], *, whole: bool = False) -> None:
        """Bring steps up to date, and before each what it needs, in the order of the list.

        `whole` goes on to what lies before the moments, where a verb that starts from the store does not.
        """
        names = {step.name for step in asked}
        needed = self._needed(names, whole=whole)
        with one_command(self.project), self._session.opened():
            log = StepLog(self.project.output, self.project.config.plain())
            if log.damage:
                self._progress.note(f"{log.damage}: every step is done again")
            require_moments(self.project.store, self._steps, log, needed)
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
            require_step(self.project, step.verb)
        fingerprint = step.made_from()
        log.begin(step.name)
        step.do(fingerprint)
        log.done(step.name, fingerprint)

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

    def _of(self, verb: str) -> tuple[Step, ...]:
        return tuple(step for step in self._steps if step.verb == verb)

    def _check(self) -> None:
        for check in self.checks:
            check()

    @property
    def _page(self) -> Path:
        return self.project.report_folder / PAGE
