"""Measures the saved compressed network of a run beside its original, and keeps what was found for the report.

A profile belongs to the weights it was taken of, by their digest: after another compression it is not shown any more.
It decides nothing: only the report is made from it, and a run without one is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dalr_stream.errors import FingerprintMismatchError, InvalidInputError, StoreDamagedError, StoreNotFoundError
from dalr_stream.network.measure.profile import Stopwatch, profile
from dalr_stream.network.saved import checkpoint
from dalr_stream.numerics.latency import NetworkProfile
from dalr_stream.storage.json_record import RecordKind, read_record, write_record
from dalr_stream.workflow.runfile.project import Project

FILE = "profile.json"
PROFILE = RecordKind("profile", 1, "run profile")
BATCH_SIZES = (1, 8, 64)


def profile_run(
    project: Project, batch_sizes: Sequence[int] = BATCH_SIZES, *, stopwatch: Stopwatch | None = None
) -> NetworkProfile:
    """Time the saved network and the original on the target's first batch, keep the record and return it.

    The report is written anew when it is next asked for. Raises StoreNotFoundError where no network was saved.
    """
    weights = _weights(project)
    if weights is None:
        raise StoreNotFoundError(f"there is no compressed network at '{project.compressed}': run compress first")
    small = checkpoint.load(project.compressed, project.code.placed)
    with project.code.importing():
        batch = _first(project)
        measured = profile(project.network, small, batch, batch_sizes=batch_sizes, stopwatch=stopwatch)
    write_record(project.output / FILE, PROFILE, {"weights_sha256": weights, "profile": asdict(measured)})
    return measured


def read_profile(project: Project) -> NetworkProfile | None:
    """Return what `profile_run` kept; None where the saved network was never profiled, or another one was.

    And where the record is damaged: `profile_problem` says so.
    """
    try:
        plain = read_record(project.output / FILE, PROFILE)
    except (StoreNotFoundError, StoreDamagedError, FingerprintMismatchError):
        return None
    return NetworkProfile.of_plain(plain["profile"]) if plain["weights_sha256"] == _weights(project) else None


def profile_problem(project: Project) -> str:
    """Return what is wrong with the record of a profile, in words; empty where nothing is."""
    try:
        read_record(project.output / FILE, PROFILE)
    except (StoreDamagedError, FingerprintMismatchError) as error:
        return str(error)
    except StoreNotFoundError:
        pass
    return ""


def parse_batch_sizes(text: str) -> tuple[int, ...]:
    """Return the sizes in `1,8,64`."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InvalidInputError(f"--batch-sizes: must read like 1,8,64, got '{text}'") from None


def _first(project: Project) -> Any:
    target = project.config.solve.target
    batch = next(iter(project.code.batches(target)), None)
    if batch is None:
        raise InvalidInputError(f"profile: the loader of domain '{target}' gave no batch")
    return batch


def _weights(project: Project) -> str | None:
    """Return the digest of the saved network's weights."""
    try:
        return checkpoint.weights_digest(project.compressed)
    except StoreNotFoundError:
        return None
