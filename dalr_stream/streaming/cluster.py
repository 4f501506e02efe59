"""Folds on the workers of a dask.distributed cluster: one that is running, or one made here for the purpose.

Workers read tiles from the store themselves, so it must lie on a disk that all of them see, or in a bucket. A worker
that dies loses its task, which dask gives to another; tasks are pure, so the result is the same.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from dalr_stream.errors import DalrStreamError, DalrStreamWarning, InvalidInputError, ResourceError
from dalr_stream.storage.places.place import Place

Result = TypeVar("Result")

PATIENCE_SECONDS = 30.0
"""How long the work waits for a worker: one that is restarted has come back by then."""
_POLL_SECONDS = 1.0
RETRIES = 3
"""Times a task is given to another worker after its own died or failed to read."""


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
    ) -> list[Result]:
        """Run `function(*arguments)` for each named task; `done` hears how many are finished. Results keep the order.

        Only workers on which the files `reads` are as they are here take part. Raises what a task raised, its other
        tasks are then cancelled; ResourceError where no worker sees them, where none is left for `PATIENCE_SECONDS`,
        and where the scheduler is gone.
        """
        with self._explained():
            chosen = self._workers_that_see(reads)
            futures = [
                self.client.submit(function, *arguments, key=name, retries=RETRIES, pure=True, workers=chosen)
                for name, arguments in tasks.items()
            ]
            try:
                with self.client.as_current():
                    self._wait(futures, chosen, done)
                    results: list[Result] = self.client.gather(futures)
            finally:
                self.client.cancel(futures, force=True)
        return results

    def _wait(self, futures: Sequence[Any], chosen: list[str] | None, done: Callable[[int], None]) -> None:
        """Wait until all are finished, and no longer than `PATIENCE_SECONDS` while there is nobody to do them."""
        from distributed import wait

        pending, last_seen = set(futures), time.monotonic()
        while pending:
            try:
                finished, pending = wait(pending, timeout=_POLL_SECONDS, return_when="FIRST_COMPLETED")
            except TimeoutError:
                finished = set()
            for future in finished:
                if future.status != "finished":
                    future.result()
            if finished:
                done(len(futures) - len(pending))
            workers = self.client.nthreads()
            if finished or (workers.keys() & chosen if chosen is not None else workers):
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen > PATIENCE_SECONDS:
                raise ResourceError(self._no_worker())

    def _workers_that_see(self, files: Sequence[Place]) -> list[str] | None:
        """Return the workers on which files are as they are here; None for all of them."""
        try:
            self.client.wait_for_workers(1, timeout=PATIENCE_SECONDS)
        except TimeoutError:
            raise ResourceError(self._no_worker()) from None
        here, there = _digests(files), self.client.run(_digests, files)
        names = " and ".join(f"'{file}'" for file in files)
        seeing = [worker for worker, digest in there.items() if digest == here]
        if not seeing:
            raise ResourceError(
                f"cluster: none of the {len(there)} workers sees {names} as it is here: put the store on a disk that "
                "all of them see, or in a bucket for which they have the credentials"
            )
        if len(seeing) == len(there):
            return None
        blind = ", ".join(sorted(set(there) - set(seeing)))
        warnings.warn(
            f"cluster: workers that do not see {names} are left out: {blind}", DalrStreamWarning, stacklevel=2
        )
        return seeing

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


def _digests(files: Sequence[Place]) -> list[str] | None:
    """Return the SHA-256 of each file; None where one cannot be read."""
    try:
        return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    except (OSError, DalrStreamError):
        return None


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
