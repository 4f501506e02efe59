"""A network's weights read one tensor at a time, from one safetensors file or from several with their index.

Only headers are read when it is opened. What the index says is compared with what the files hold, so that an index that
lies is found before anything runs. safetensors maps a file into memory: each tensor is copied out and the map is given
up at once, so that no more than one tensor is there twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from dalr_stream.errors import FingerprintMismatchError, InvalidInputError, StoreDamagedError, StoreNotFoundError
from dalr_stream.network.saved.pickled import conversion, is_pickled, pickled_beside
from dalr_stream.network.saved.pretrained import INDEX, weights_file


@dataclass(frozen=True, slots=True)
class Shards:
    """Every tensor that weights on disk hold, by name."""

    head: Path
    """The file, or the index of several."""
    files: Mapping[str, Path]
    """Where each tensor lies."""
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def open(cls, path: Path) -> Shards:
        """Read the headers of the weights at `path`: a file, an index, or a folder that has one of them.

        Raises StoreNotFoundError, InvalidInputError for files of torch.save, StoreDamagedError for a file whose header
        is damaged or that was cut short, and FingerprintMismatchError for an index that does not say what is there.
        """
        head = weights_file(path)
        if not head.is_file():
            beside = pickled_beside(head if path.is_dir() else path)
            raise StoreNotFoundError(f"there are no weights at '{head}'{beside}")
        indexed = _index(head) if head.name.endswith(".json") else None
        files: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for file in [head] if indexed is None else sorted({head.parent / name for name in indexed.values()}):
            for name, shape in _header(file):
                if name in files:
                    raise FingerprintMismatchError(
                        f"'{head}': tensor '{name}' is in two files, '{files[name].name}' and '{file.name}': which one "
                        "counts is not said; save the weights again"
                    )
                files[name], shapes[name] = file, shape
        if indexed is not None:
            _require_as_indexed(head, indexed, files)
        return cls(head, files, shapes)

    def tensor(self, name: str) -> torch.Tensor:
        """Return one tensor, in memory of its own; raises StoreDamagedError where it cannot be read any more."""
        file = self.files[name]
        with _explained(file), safe_open(file, framework="pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(name).clone()
        return tensor


def _index(head: Path) -> dict[str, str]:
    """Return which file an index says each tensor is in."""
    try:
        named = json.loads(head.read_text(encoding="utf-8"))["weight_map"]
        indexed = {str(name): str(file) for name, file in named.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise StoreDamagedError(f"'{head}' is no index of safetensors files ({error}): save them again") from error
    strange = next((file for file in indexed.values() if Path(file).name != file), None)
    if strange is not None:
        raise StoreDamagedError(f"'{head}' names '{strange}', which is not a file beside it: save the weights again")
    return indexed


def _header(file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every tensor of a file."""
    if not file.is_file():
        raise StoreNotFoundError(f"there is no '{file}', which '{INDEX}' names: fetch it again, or save the weights")
    if is_pickled(file):
        raise InvalidInputError(f"'{file}' is a file of torch.save, which is not read: {conversion(file)}")
    with _explained(file), safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118  # it is a function, not a mapping
            yield name, tuple(opened.get_slice(name).get_shape())


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
