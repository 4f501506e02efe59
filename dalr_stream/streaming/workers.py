"""Which workers of a cluster may take part in a job: those that see the store as it is here, and round as is done here.

Each is asked before it is sent any work. Those that must stay out are named with the reason and the remedy; where
nobody is left, that is an error of one line. A task that fails to read later on names its worker, too.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

from dalr_stream._version import __version__
from dalr_stream.errors import DalrStreamError, InvalidInputError, StoreError
from dalr_stream.numerics.linalg.rank_k import blas_build
from dalr_stream.numerics.statistics.fold_rule import ANY_BLAS, NUMPY, FoldRule
from dalr_stream.storage.places.place import Place

Result = TypeVar("Result")
_NAMED = 3
"""Workers that a message names; of more it says how many."""


@dataclass(frozen=True, slots=True)
class Here:
    """What a process sees and is; sent back by every worker."""

    digests: Sequence[str]
    """SHA-256 of the files asked for."""
    refusal: str
    """Why they cannot be read."""
    build: Mapping[str, str]
    """What decides the bits of its sums."""


def look(files: Sequence[Place], libraries: Sequence[str]) -> Here:
    """Return what this process sees of some files, and the versions of what folds."""
    build = {name: _version(name) for name in libraries}
    try:
        return Here([hashlib.sha256(file.read_bytes()).hexdigest() for file in files], "", build)
    except (OSError, DalrStreamError) as error:
        return Here([], _in_one_line(error), build)


def libraries_of(rule: FoldRule) -> tuple[str, ...]:
    """Return whose versions decide the bits that a rule gives; of any BLAS, the package's alone."""
    if rule.blas == ANY_BLAS:
        return ("dalr_stream",)
    library = rule.engine.partition(":")[0]
    return ("dalr_stream", "machine", "numpy", *(("scipy", "BLAS") if rule.engine == NUMPY else (library,)))


def _version(name: str) -> str:
    known: dict[str, Callable[[], str]] = {
        "dalr_stream": lambda: __version__,
        "machine": platform.machine,
        "BLAS": blas_build,
    }
    if name in known:
        return known[name]()
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def why_left_out(here: Here, there: object, files: Sequence[Place]) -> str:
    """Return why a worker that answered so cannot take part, with the remedy; empty where it can."""
    names = " and ".join(f"'{file}'" for file in files)
    if isinstance(there, OSError):
        return f"does not answer ({_in_one_line(there)}): see what it logs"
    if not isinstance(there, Here):
        return (
            f"cannot run dalr_stream {__version__} ({_in_one_line(there)}): install the same version there as here, "
            "with the same extras"
        )
    if there.refusal or list(there.digests) != list(here.digests):
        what = there.refusal or "it is another one there"
        return (
            f"does not see {names} as it is here ({what}): put the store on a disk that all workers see, or in a "
            "bucket for which they have the credentials"
        )
    other = [
        f"{name} {there.build.get(name)} and not {own}"
        for name, own in here.build.items()
        if there.build.get(name) != own
    ]
    if other:
        return (
            f"folds with {', '.join(other)}, so bits would depend on who folds what: use workers of one installation "
            "and kind of CPU, give all the same OPENBLAS_CORETYPE, or accept it with any_blas=True (--any-blas, "
            "accumulate.any_blas), which is recorded"
        )
    return ""


def in_words(left_out: Mapping[str, str]) -> str:
    """Return workers and why they are left out, those of one reason together."""
    reasons: dict[str, list[str]] = {}
    for worker, reason in sorted(left_out.items()):
        reasons.setdefault(reason, []).append(f"'{worker}'")
    parts = []
    for reason, workers in reasons.items():
        more = f" and {len(workers) - _NAMED} more" if len(workers) > _NAMED else ""
        parts.append(f"worker{'s' if len(workers) > 1 else ''} {', '.join(workers[:_NAMED])}{more}: {reason}")
    return "; ".join(parts)


def named(function: Callable[..., Result], *arguments: Any) -> Result:
    """Do a task on a worker, and name it where it cannot read the store."""
    try:
        return function(*arguments)
    except (StoreError, InvalidInputError) as error:
        if type(error) not in (StoreError, InvalidInputError):
            raise
        from distributed import get_worker

        raise type(error)(f"cluster: worker '{get_worker().address}': {error}") from None


def _in_one_line(error: object) -> str:
    words = str(error).partition("\n")[0]
    return words if isinstance(error, DalrStreamError) else f"{type(error).__name__}: {words}"
