"""A whole run as its file describes it: a verb for each step, and what a run is about.

    train -> capture -> accumulate -> solve -> compress -> finetune -> evaluate -> report

`schedule` says which of them are done for what is asked.
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
from dalr_stream.workflow.results import report
from dalr_stream.workflow.results.results import results
from dalr_stream.workflow.run_folder import one_command
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.schedule import Schedule
from dalr_stream.workflow.size_curve import size_curve
from dalr_stream.workflow.step_memory import require_steps
from dalr_stream.workflow.steps import accumulate, capture, compress, evaluate, finetune, solve, train
from dalr_stream.workflow.steps.evaluate import Evaluation
from dalr_stream.workflow.steps.profile import BATCH_SIZES, profile_run
from dalr_stream.workflow.steps.scores.scoring import Scoring, score_on
from dalr_stream.workflow.steps.session import Session


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
        self._session.check_memory = partial(require_steps, self.project)
        self._schedule = Schedule(self._session)

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
        self._schedule.bring_all()
        return self._page

    def train(self) -> None:
        """Train the network and keep its weights, where the run file says how."""
        self._bring(train.NAME)

    def capture(self) -> None:
        """Stream each domain's activations into the store, training first where there are no weights.

        Raises ConfigError where the run file says to keep no activations.
        """
        if not self.project.config.capture.keep_activations:
            raise ConfigError(
                "capture.keep_activations: is false, so rows are folded as they come and none are kept: run "
                "accumulate, or pass --set capture.keep_activations=true"
            )
        self._bring(capture.VERB)

    def accumulate(self) -> None:
        """Turn each domain's activations into moments, capturing them first where they are wanted and not there."""
        self._bring(accumulate.VERB)

    def solve(self) -> None:
        """Solve every layer by every method, for every rank, from the moments in the store alone."""
        self._bring(solve.NAME)

    def compress(self) -> None:
        """Save the network that the run file's [compress] section describes."""
        self._bring(self._compressing)

    def size_curve(self, shares: Sequence[str] = (), *, rule: str = "params", evaluate: bool = True) -> SizeCurve:
        """Compress to several budgets, show the whole network's quality against its size, and return it.

        Shares read like "30%"; without them it is about the one network that [compress] describes. Table, picture and
        networks go to `sizes` in the run's output; a killed call resumes. `evaluate` scores on [evaluate] too.
        """
        if self.project.config.sweeps:
            raise ConfigError(
                "accumulate.keep_moments: is false, so each size is a sweep of its own: run compress for one size, or "
                "keep the moments for several, --set accumulate.keep_moments=true"
            )
        if evaluate:
            _ = self.project.evaluate_section
        self._bring(solve.NAME if shares else self._compressing)
        with one_command(self.project):
            return size_curve(self._session, rule, shares, evaluate=evaluate)

    def finetune(self) -> None:
        """Fine-tune the compressed network as [finetune] says, and save it; if killed, it resumes after the last epoch.

        Raises ConfigError where the run file has no such section; `evaluate` and `score` likewise with [evaluate].
        """
        _ = self.project.finetune_section
        self._bring(finetune.NAME)

    def evaluate(self) -> Evaluation:
        """Score every method at every size, and the saved networks, on the test split; return the scores."""
        _ = self.project.evaluate_section
        self._bring(evaluate.NAME)
        return Evaluation.read(self.project.evaluation, evaluate.made_from(self.project))

    def report(self) -> Path:
        """Write the report and return its page."""
        self._bring(report.NAME)
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
        return self._schedule.checks

    def outlook(self) -> Iterator[tuple[str, bool]]:
        """Yield each step's name, in order, and whether `all` would do it.

        What a step would be made from is not known where moments that it starts from will be made again.
        """
        return self._schedule.outlook()

    @property
    def _compressing(self) -> str:
        """The verb that leaves a compressed network; where the run file asks for none, what it would start from."""
        return compress.NAME if self._schedule.of(compress.NAME) else solve.NAME

    def _bring(self, verb: str) -> None:
        if verb in (accumulate.VERB, solve.NAME) and self.project.config.sweeps:
            raise ConfigError(
                "accumulate.keep_moments: is false, so blocks are accumulated, solved and written in one sweep: run "
                f"compress, or run; for {verb} alone, keep the moments, --set accumulate.keep_moments=true"
            )
        self._schedule.bring(self._schedule.of(verb))

    @property
    def _page(self) -> Path:
        return self.project.report_folder / PAGE
