"""What the steps of one command share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from dalr_stream.engine.ranks.ranks import Ranks
from dalr_stream.progress import Progress
from dalr_stream.streaming.cluster import Cluster
from dalr_stream.streaming.plan import MemoryPlan
from dalr_stream.streaming.ranks.link import tell
from dalr_stream.streaming.solving_plan import SolvingPlan
from dalr_stream.workflow.runfile.project import Project


class Session:
    """A project, where its steps report, and what is opened once for several of them."""

    def __init__(
        self, project: Project, progress: Progress, *, fresh: bool = False, ranks: Ranks | None = None
    ) -> None:
        """`fresh` does what is asked for again, and lets what was made from other weights or data be replaced.

        `ranks` take part in the steps that run the network over a domain; see `workflow.following`.
        """
        self.project = project
        self.progress = progress
        self.fresh = fresh
        self.ranks = ranks or Ranks()
        self.room_checked = False
        """Whether the cost was checked against memory and disk."""
        self.check_all_steps: Callable[[], None] = lambda: None
        """Refuses what would stop a later step; the run, which has the list of steps, puts it here."""
        self.check_memory: Callable[[MemoryPlan, SolvingPlan], None] = lambda _cost, _solving: None
        """Refuses a run of which a step does not fit in memory; from the run, too."""
        self._stack = ExitStack()
        self._cluster: Cluster | None = None

    def announce(self, verb: str, domain: str) -> None:
        """Tell the other ranks that a domain's step begins, in which they have a part."""
        if self.ranks.ranks > 1:
            tell(self.ranks, {"verb": verb, "domain": domain})

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Close on leaving what steps opened."""
        with self._stack:
            yield
        self._cluster = None

    def cluster(self) -> Cluster | None:
        """Return the cluster that the run file names, opened when it is first asked for; None where it names none."""
        if self._cluster is None:
            self._cluster = self._stack.enter_context(self.project.cluster())
            if self._cluster is not None and self._cluster.dashboard:
                self.progress.note(f"dashboard: {self._cluster.dashboard}")
        return self._cluster
