"""A step of a run: its name, what it needs, what it is made from, what it leaves, and how it is done.

A step is fresh when the log says that it was made from what it would be made from now, and everything it left is in
place, undamaged, and says the same of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalr_stream.errors import FingerprintMismatchError, StoreDamagedError, StoreNotFoundError
from dalr_stream.network.saved import checkpoint
from dalr_stream.storage.json_record import RecordKind, digest_of, read_record, write_record
from dalr_stream.storage.layout import MANIFEST
from dalr_stream.storage.manifest import Manifest
from dalr_stream.storage.places.place import Place
from dalr_stream.storage.records.record import provenance_of
from dalr_stream.workflow.steps.fingerprints import file_digest
from dalr_stream.workflow.steps.step_log import StepLog

NOT_DONE, CHANGED, AGAIN = "not done yet", "settings changed", "asked for again"
_WRONG = (StoreNotFoundError, StoreDamagedError, FingerprintMismatchError)


@dataclass(frozen=True, slots=True)
class Artefact:
    """Something that a step leaves."""

    path: Place
    made_from: Callable[[], str | None] | None = None
    """Reads what it says it was made from, None where it says nothing; raises StoreError for a damaged one."""

    def problem(self, fingerprint: str) -> str | None:
        """Return what is wrong with it in a step made from `fingerprint`, in words; None where nothing is."""
        if not self.path.exists():
            return f"there is no '{self.path}'"
        try:
            made_from = fingerprint if self.made_from is None else self.made_from()
        except _WRONG as error:
            return str(error)
        if made_from in (fingerprint, None):
            return None
        return f"'{self.path}' was made from other settings"


def store_record(path: Place, expected: Mapping[str, Any] | None = None) -> Artefact:
    """Return a record of the store, such as moments or a solution; `expected` is its whole provenance, where known."""

    def made_from() -> str | None:
        facts = provenance_of(path)
        if facts is None:
            raise StoreNotFoundError(f"there is no record at '{path}'")
        if expected is not None and digest_of(facts) != digest_of(expected):
            raise FingerprintMismatchError(f"'{path}' was made from other rows or settings")
        stamp: str | None = facts.get("made_from")
        return stamp

    return Artefact(path, made_from)


def json_record(path: Path, kind: RecordKind) -> Artefact:
    """Return a record that `write_stamped` wrote."""
    return Artefact(path, lambda: str(read_record(path, kind)["made_from"]))


def file_with_digest(path: Path, digest: str) -> Artefact:
    """Return a file whose SHA-256 is known."""

    def made_from() -> None:
        if file_digest(path) != digest:
            raise StoreDamagedError(f"'{path}' is damaged: it does not match its digest")

    return Artefact(path, made_from)


def saved_network(folder: Path) -> Artefact:
    """Return a network that `checkpoint.save` wrote, with what it was made from among its provenance."""

    def made_from() -> str | None:
        stamp: str | None = checkpoint.provenance(folder).get("made_from")
        checkpoint.require_unchanged(folder)
        return stamp

    return Artefact(folder, made_from)


def write_stamped(path: Path, kind: RecordKind, fingerprint: str, content: Any) -> None:
    """Write a record that says what it was made from."""
    write_record(path, kind, {"made_from": fingerprint, "content": content})


def read_stamped(path: Path, kind: RecordKind, fingerprint: str | None = None) -> Any:
    """Return what `write_stamped` wrote, and raise FingerprintMismatchError where it was made from something else."""
    record = read_record(path, kind)
    if fingerprint is not None and record["made_from"] != fingerprint:
        raise FingerprintMismatchError(f"'{path}' was made from other settings: {kind.remedy} again")
    return record["content"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of one run."""

    name: str
    """Of this step alone, e.g. `capture target`."""
    verb: str
    """The command that does it, and others of its kind."""
    needs: tuple[str, ...]
    """Names of the steps whose results it reads; they stand before it on the list."""
    made_from: Callable[[], str]
    """Returns the fingerprint of all that decides its result."""
    artefacts: Callable[[], Iterable[Artefact]]
    do: Callable[[str], None]
    """Does it, and stamps what it leaves with the fingerprint that it is given."""
    check: Callable[[], None] = lambda: None
    """Refuses what would stop it, as far as that can be told before anything is recorded; needs no data on disk."""
    on_demand: bool = False
    """Done only where a step that needs it is stale: activations may be deleted once their moments are there."""
    again: bool = True
    """Whether `--fresh` does it again; training is not repeated for the sake of a store."""
    from_store: bool = False
    """By itself it starts from what the store holds, whatever made it, and brings nothing that it needs up to date."""

    def stale(self, log: StepLog) -> str | None:
        """Return why the step has to be done, in words; None where it is fresh."""
        fingerprint = self.made_from()
        made_from = log.made_from(self.name)
        if made_from != fingerprint:
            return NOT_DONE if made_from is None else CHANGED
        return next(self.problems(fingerprint), None)

    def problems(self, fingerprint: str) -> Iterator[str]:
        """Yield what is wrong with what the step left, made from `fingerprint`, in words."""
        try:
            for artefact in self.artefacts():
                problem = artefact.problem(fingerprint)
                if problem is not None:
                    yield problem
        except _WRONG as error:  # what would say what to look for is not there itself
            yield str(error)


def require_moments(store: Place, steps: Sequence[Step], log: StepLog, needed: set[str]) -> None:
    """Refuse to start from moments that are not there, or were being replaced when a command was stopped.

    Those that are in `needed` will be done anyway. Raises StoreNotFoundError, FingerprintMismatchError.
    """
    for step in steps:
        starts = [later.name for later in steps if later.from_store and step.name in later.needs]
        if step.name in needed or needed.isdisjoint(starts):
            continue
        if not (store / MANIFEST).exists() or not Manifest.read(store).domains:
            raise StoreNotFoundError(
                f"there are no moments at '{store}' yet: run {step.verb} first, or run, which does every step"
            )
        if log.unfinished(step.name):
            raise FingerprintMismatchError(
                f"'{step.name}' was interrupted, so its moments mix two settings: run {step.verb} first"
            )
