"""Folds on the workers of a dask.distributed cluster: one that is running, or one made here for the purpose.

Workers read tiles from the store themselves, so it must lie on a disk that all of them see. A worker that dies loses
its task, which dask gives to another; tasks are pure, so the result is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from dalr_stream.errors import InvalidInputError, ResourceError

Result = TypeVar("Result")

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
        self, function: Callable[..., Result], tasks: Mapping[str, tuple[Any, ...]], done: Callable[[int], None]
    ) -> list[Result]:
        """Run `function(*arguments)` for each named task; `done` hears how many are finished. Results keep the order.

        Raises what a task raised; its other tasks are then cancelled.
        """
        from distributed import as_completed

        futures = [
            self.client.submit(function, *arguments, key=name, retries=RETRIES, pure=True)
            for name, arguments in tasks.items()
        ]
        try:
            with self.client.as_current():
                for finished, future in enumerate(as_completed(futures), start=1):
                    if future.status == "error":
                        future.result()
                    done(finished)
            results: list[Result] = self.client.gather(futures)
        finally:
            self.client.cancel(futures, force=True)
        return results


@contextmanager
def open_cluster(
    *, scheduler: str | None = None, workers: int | None = None, timeout_seconds: float = 10.0
) -> Iterator[Cluster]:
    """Connect to the scheduler at an address such as `tcp://host:8786`, or start `workers` processes on this machine.

    Raises InvalidInputError unless exactly one is given, and where `distributed` is not installed; ResourceError where
    no scheduler answers.
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
