"""A network's weights read one tensor at a time, from one safetensors file or from several with their index.

Only headers are read when it is opened. What the index says is compared with what the files hold, so that an index that
lies is found before anything runs. A file that was replaced since then is refused: half a network of each would be
neither. safetensors maps a file into memory: each tensor is copied out and the map is given
up at once, so that no more than one tensor is there twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dalr_stream.errors import FingerprintMismatchError, InvalidInputError, StoreDamagedError, StoreNotFoundError
from dalr_stream.network.saved.files import INDEX, WEIGHTS, file_digest, weights_file
from dalr_stream.network.saved.pickled import conversion, is_pickled, pickled_beside

DIGESTS = "sha256"
"""Where an index of our own has the digest of each file, among its metadata."""


@dataclass(frozen=True, slots=True)
class Shards:
    """Every tensor that weights on disk hold, by name."""

    head: Path
    """The file, or the index of several."""
    files: Mapping[str, Path]
    """Where each tensor lies."""
    shapes: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, str]
    """The type of each, as safetensors names it: F32, I8."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of files, by name, where the index says it: compared before the first tensor of each is read."""
    facts: Mapping[Path, tuple[int, int]] = field(default_factory=dict)
    """Size and time of each file, as it was when its header was read."""
    _compared: set[Path] = field(default_factory=set, repr=False)

    @classmethod
    def open(cls, path: Path) -> Shards:
        """Read the headers of the weights at `path`: a file, an index, or a folder that has one of them.

        Raises StoreNotFoundError, InvalidInputError for files of torch.save and for a folder that has both,
        StoreDamagedError for a file whose header is damaged or that was cut short, and FingerprintMismatchError for an
        index that does not say what is there.
        """
        head = weights_file(path)
        if path.is_dir() and (path / INDEX).exists() and (path / WEIGHTS).exists():
            raise InvalidInputError(
                f"'{path}' has both '{WEIGHTS}' and '{INDEX}': which of them holds the weights is not said: name "
                "the one that is meant, or move the other away"
            )
        if not head.is_file():
            beside = pickled_beside(head if path.is_dir() else path)
            raise StoreNotFoundError(f"there are no weights at '{head}'{beside}")
        indexed, digests = read_index(head) if head.name.endswith(".json") else (None, {})
        files: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        kinds: dict[str, str] = {}
        facts: dict[Path, tuple[int, int]] = {}
        for file in [head] if indexed is None else sorted({head.parent / name for name in indexed.values()}):
            _require_readable(file)
            facts[file] = _facts(file)
            for name, shape, kind in _header(file):
                if name in files:
                    raise FingerprintMismatchError(
                        f"'{head}': tensor '{name}' is in two files, '{files[name].name}' and '{file.name}': which one "
                        "counts is not said; save the weights again"
                    )
                files[name], shapes[name], kinds[name] = file, shape, kind
        if indexed is not None:
            _require_as_indexed(head, indexed, files)
        return cls(head, files, shapes, kinds, digests, facts)

    def tensor(self, name: str) -> torch.Tensor:
        """Return one tensor, in memory of its own.

        Raises StoreDamagedError where it cannot be read any more, StoreNotFoundError where its file is gone, and
        FingerprintMismatchError where that is another one by now.
        """
        file = self.files[name]
        self._require_unchanged(file)
        with _explained(file), safe_open(file, framework="pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(name).clone()
        return tensor

    @property
    def stamp(self) -> list[list[Any]]:
        """Name, size and time of each file that was opened: what tells it at no cost from others."""
        return [[str(file), *self.facts[file]] for file in sorted(set(self.files.values()))]

    def types(self) -> dict[str, torch.dtype]:
        """Return the type of each tensor, as it is stored; raises StoreDamagedError."""
        found: dict[str, torch.dtype] = {}
        for file in dict.fromkeys(self.files.values()):
            with _explained(file), safe_open(file, framework="pt") as opened:
                found |= {name: _type_of(opened, name) for name in opened.keys()}  # noqa: SIM118
        return found

    def require_unchanged(self) -> None:
        """Raise as `tensor` for a file that was replaced, or has not the digest that the index says."""
        for file in dict.fromkeys(self.files.values()):
            self._require_unchanged(file)

    def _require_unchanged(self, file: Path) -> None:
        if _facts(file) != self.facts[file]:
            raise FingerprintMismatchError(
                f"'{file}' was replaced since the network was opened: open it again, and make anew what was made of it"
            )
        digest = self.digests.get(file.name)
        if digest is not None and file not in self._compared:
            with _explained(file):
                found = file_digest(file)
            if found != digest:
                raise StoreDamagedError(f"'{file}' is damaged: it does not match its digest; save it again")
            self._compared.add(file)


def read_index(head: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return which file an index says each tensor is in, and the digests of files that it has.

    Raises StoreDamagedError where it is none, or names files elsewhere: an index that came from somebody else must not
    say which files of this machine are read.
    """
    try:
        plain = json.loads(head.read_text(encoding="utf-8"))
        indexed = {str(name): str(file) for name, file in plain["weight_map"].items()}
        digests = {str(name): str(one) for name, one in (plain.get("metadata") or {}).get(DIGESTS, {}).items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise StoreDamagedError(f"'{head}' is no index of safetensors files ({error}): save them again") from error
    strange = next((file for file in indexed.values() if Path(file).name != file or file in ("", "..")), None)
    if strange is not None:
        raise StoreDamagedError(f"'{head}' names '{strange}', which is not a file beside it: save the weights again")
    return indexed, digests


def _facts(file: Path) -> tuple[int, int]:
    """Return size and time of a file; raises StoreNotFoundError."""
    try:
        stat = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise StoreNotFoundError(
            f"'{file}' was removed since the network was opened: put it back or make it anew, and open the network "
            "again"
        ) from None
    return stat.st_size, stat.st_mtime_ns


def _require_readable(file: Path) -> None:
    if not file.is_file():
        raise StoreNotFoundError(f"there is no '{file}', which '{INDEX}' names: fetch it again, or save the weights")
    if is_pickled(file):
        raise InvalidInputError(f"'{file}' is a file of torch.save, which is not read: {conversion(file)}")


def _header(file: Path) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Yield name, shape and type of every tensor of a file."""
    with _explained(file), safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118  # it is a function, not a mapping
            described = opened.get_slice(name)
            yield name, tuple(described.get_shape()), described.get_dtype()


def _type_of(opened: Any, name: str) -> torch.dtype:
    """Return a tensor's type; of one that has dimensions, no number is read."""
    described = opened.get_slice(name)
    dtype: torch.dtype = (described[:0] if described.get_shape() else opened.get_tensor(name)).dtype
    return dtype


def _require_as_indexed(head: Path, indexed: Mapping[str, str], files: Mapping[str, Path]) -> None:
    for name, file in indexed.items():
        if name not in files:
            raise FingerprintMismatchError(
                f"'{head}' says that '{name}' is in '{file}', and it is in none of the files: fetch them again, or "
                "save the weights again"
            )
        if files[name].name != file:
            raise FingerprintMismatchError(
                f"'{head}' says that '{name}' is in '{file}', and it is in '{files[name].name}': save the weights again"
            )
    left = sorted(set(files) - set(indexed))
    if left:
        raise FingerprintMismatchError(
            f"'{head}' does not name '{left[0]}', which '{files[left[0]].name}' holds: save the weights again"
        )


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise StoreDamagedError(
            f"'{file}' is not a readable safetensors file ({error}): fetch it again, or save the weights again"
        ) from error
