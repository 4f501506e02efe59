"""Folds on the workers of a dask.distributed cluster: one that is running, or one made here for the purpose.

Workers read tiles from the store themselves, so it must lie on a disk that all of them see, or in a bucket. A worker
that dies loses its task, which dask gives to another; tasks are pure, so the result is the same. Which workers may take
part is asked of each of them (`workers`), and again where those are all gone and others came in their place.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from dalr_stream.errors import DalrStreamError, DalrStreamWarning, InvalidInputError, ResourceError, StoreError
from dalr_stream.storage.places.place import Place
from dalr_stream.streaming.workers import in_words, look, named, why_left_out

Result = TypeVar("Result")

PATIENCE_SECONDS = 30.0
"""How long the work waits for a worker: one that is restarted has come back by then."""
_POLL_SECONDS = 1.0
RETRIES = 3
"""Times a task is given to another worker after its own died or failed to read."""


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Workers that take part in a job."""

    only: list[str] | None
    """None for all there are."""
    asked: Collection[str]
    """Those that were asked, whether they take part or not."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A dask.distributed client, as `distributed.Client` or `open_cluster` gives it."""

    client: Any

    @property
    def workers(self) -> int:
        """Threads of all workers together."""
        return sum(self.client.nthreads().values())

    @property
    def dashboard(self) -> str | None:
        """Address of the dashboard, where the scheduler serves one."""
        services = self.client.scheduler_info(n_workers=0).get("services", {})
        return str(self.client.dashboard_link) if "dashboard" in services else None

    def map(
        self,
        function: Callable[..., Result],
        tasks: Mapping[str, tuple[Any, ...]],
        done: Callable[[int], None],
        *,
        reads: Sequence[Place],
        libraries: Sequence[str] = (),
    ) -> list[Result]:
        """Run `function(*arguments)` for each named task; `done` hears how many are finished. Results keep the order.

        Only workers take part on which the files `reads` are as they are here, and the `libraries` of the same
        versions. Raises what a task raised, its other tasks are then cancelled; ResourceError where no worker can take
        part, where none is left for `PATIENCE_SECONDS`, where each that tried a task died, and where the scheduler is
        gone.
        """
        results: dict[str, Result] = {}
        with self._explained():
            for attempt in count():
                chosen = self._choose(reads, libraries)
                left = {name: arguments for name, arguments in tasks.items() if name not in results}
                self._round(function, left, f"-{attempt}" if attempt else "", chosen, results, done)
                if len(results) == len(tasks):
                    break
        return [results[name] for name in tasks]

    def _round(  # what is done, by whom, and where it goes
        self,
        function: Callable[..., Result],
        tasks: Mapping[str, tuple[Any, ...]],
        suffix: str,
        chosen: _Chosen,
        results: dict[str, Result],
        done: Callable[[int], None],
    ) -> None:
        """Put what becomes of the tasks among the results; those are left over whose workers are all gone."""
        futures = {
            self.client.submit(
                named, function, *arguments, key=f"{name}{suffix}", retries=RETRIES, pure=True, workers=chosen.only
            ): name
            for name, arguments in tasks.items()
        }
        try:
            with self.client.as_current():
                self._wait(futures, chosen, results, done)
        finally:
            self.client.cancel(list(futures), force=True)

    def _wait(
        self,
        futures: Mapping[Any, str],
        chosen: _Chosen,
        results: dict[str, Result],
        done: Callable[[int], None],
    ) -> None:
        """Wait until all are finished, and no longer than `PATIENCE_SECONDS` while there is nobody to do them."""
        from distributed import wait

        pending, last_seen = set(futures), time.monotonic()
        while pending:
            try:
                finished = wait(pending, timeout=_POLL_SECONDS, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                finished = set()
            brought = {future for future in finished if self._bring(future, futures[future], results)}
            pending -= brought
            if brought:
                done(len(results))
            workers = self.client.nthreads().keys()
            if brought or (workers if chosen.only is None else workers & chosen.only):
                last_seen = time.monotonic()
            elif workers - set(chosen.asked):
                return  # others came in their place: they are asked
            elif time.monotonic() - last_seen > PATIENCE_SECONDS:
                raise ResourceError(self._no_worker())

    def _bring(self, future: Any, name: str, results: dict[str, Result]) -> bool:
        """Fetch what a task gave; False where the worker that has it died meanwhile, so that it is done again."""
        from distributed import KilledWorker

        patience = PATIENCE_SECONDS
        while future.status in ("finished", "error"):
            try:
                results[name] = future.result(timeout=patience)
            except KilledWorker as error:
                raise ResourceError(
                    f"cluster: each worker that did '{name}' died, the last of them '{error.last_worker.address}': "
                    "give workers more memory (dalr-stream estimate says how much), and run the same command again"
                ) from None
            except TimeoutError:
                if future.status == "error":  # the task's own
                    raise
                patience *= 2  # it may be large
            else:
                return True
        return False

    def _choose(self, files: Sequence[Place], libraries: Sequence[str]) -> _Chosen:
        """Ask all workers, and return which of them may take part."""
        here = look(files, libraries)
        if here.refusal:
            raise StoreError(here.refusal)
        there = self._answers(files, libraries)
        reasons = {worker: why_left_out(here, answer, files) for worker, answer in there.items()}
        left_out = {worker: reason for worker, reason in reasons.items() if reason}
        if len(left_out) == len(there):
            raise ResourceError(f"cluster: none of the {len(there)} workers can take part: {in_words(left_out)}")
        if not left_out:
            return _Chosen(None, there.keys())
        warnings.warn(f"cluster: left out: {in_words(left_out)}", DalrStreamWarning, stacklevel=2)
        return _Chosen([worker for worker in there if worker not in left_out], there.keys())

    def _answers(self, files: Sequence[Place], libraries: Sequence[str]) -> dict[str, object]:
        """Return what each worker answers; of those that died while they were asked, only where that goes on."""
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self.client.wait_for_workers(1, timeout=PATIENCE_SECONDS)
            except TimeoutError:
                raise ResourceError(self._no_worker()) from None
            there: dict[str, object] = self.client.run(look, files, libraries, on_error="return")
            answered = {worker: answer for worker, answer in there.items() if not isinstance(answer, OSError)}
            if answered or time.monotonic() > end:
                return answered or there
            time.sleep(_POLL_SECONDS)

    def _no_worker(self) -> str:
        return (
            f"cluster: the scheduler at '{self.client.scheduler.address}' has had no worker for the job for "
            f"{PATIENCE_SECONDS:.0f} s: start some there, and run the same command again"
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the loss of the scheduler into one line."""
        address = self.client.scheduler.address
        try:
            yield
        except (CancelledError, OSError, AttributeError, RuntimeError) as error:
            if isinstance(error, DalrStreamError) or self.client.status == "running":
                raise
            raise ResourceError(
                f"cluster: the scheduler at '{address}' is gone: start it, and run the same command again"
            ) from None


@contextmanager
def open_cluster(
    *, scheduler: str | None = None, workers: int | None = None, timeout_seconds: float = 10.0
) -> Iterator[Cluster]:
    """Connect to a dask scheduler, or start `workers` processes on this machine; give exactly one of the two.

    Parameters
    ----------
    scheduler
        The address of a scheduler, such as `tcp://host:8786`.
    workers
        The number of worker processes to start here, of one thread each.
    timeout_seconds
        How long to wait for the scheduler.

    Yields
    ------
    Cluster
        For `Folding(workers=cluster)`. It is closed at the end of the `with` block.

    Raises
    ------
    InvalidInputError
        Unless exactly one of the two is given, and where `distributed` is not installed.
    ResourceError
        Where no scheduler answers.

    See Also
    --------
    Threads : this process's threads, the default.

    Examples
    --------
    >>> import dalr_stream as ds
    >>> with ds.open_cluster(workers=2) as cluster:  # doctest: +SKIP
    ...     ds.accumulate("birds.zarr", folding=ds.Folding(workers=cluster))
    """
    if (scheduler is None) == (workers is None):
        raise InvalidInputError("cluster: needs exactly one of a scheduler's address and a number of workers")
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise InvalidInputError(
            "cluster: dask.distributed is not installed: pip install 'dalr_stream[distributed]'"
        ) from None
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=timeout_seconds, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise ResourceError(f"cluster: no scheduler answers at '{scheduler}' ({error}): start one there") from None
        with client:
            yield Cluster(client)
        return
    local = LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=True, memory_limit=0, dashboard_address=":0"
    )
    with local, Client(local, set_as_default=False) as client:
        yield Cluster(client)
