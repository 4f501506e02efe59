"""A disk that forgets: a journal of what a program does to a folder, and what a crash may leave of it.

`Disk.recording` notes every creation, write, sync, rename, link, removal and new folder below one folder, whoever does
it (zarr writes from threads of its own, through the same functions of `os` and `io`). `faults` makes them fail instead.

`images` replays the journal and yields, after every operation, the folders a machine may find when it comes back. The
model is POSIX at its worst, a little worse than any journalling file system:

- a file's bytes are safe once the file was synced; before that they may be there, be torn in half, be zeros, or be
  those of the last sync (nothing, for a new file);
- a folder's names are safe once the *folder* was synced; before that a creation, a rename or a removal in it may have
  happened or not, independently of every other folder and of the files' bytes;
- within one folder, names come and go together: since its last sync, all of them happened or none.

A process that is killed leaves "stopped": all that it did, and nothing else.
"""

import builtins
import errno
import io
import itertools
import os
import random
import shutil
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import safetensors.torch

LOCKS = {"writer.lock", "run.lock"}
"""Not part of what a store or a run holds."""
CREATE, WRITE, SYNC, RENAME = "create", "write", "sync", "rename"
LINK, UNLINK, MKDIR, RMDIR = "link", "unlink", "mkdir", "rmdir"


@dataclass(frozen=True, slots=True)
class Operation:
    """One change: of `path`, with the bytes written or the new name."""

    kind: str
    path: str
    to: str = ""
    data: bytes = b""


class Disk:
    """What was done below `root`, in order; `before` is called with each operation and may raise."""

    def __init__(self, root, before=lambda _: None):
        self.root = Path(root)
        self.journal = []
        self._before = before
        self._turn = threading.RLock()
        self._descriptors = {}
        self._real = {name: getattr(os, name) for name in (*self._SIMPLE, *self._TWO, "open", "fsync", "close")}
        self._real["serialize_file"] = safetensors.torch.serialize_file
        self._open = io.open

    _SIMPLE = {"mkdir": MKDIR, "rmdir": RMDIR, "unlink": UNLINK, "remove": UNLINK}  # noqa: RUF012  # a table
    _TWO = {"rename": RENAME, "replace": RENAME, "link": LINK}  # noqa: RUF012

    @contextmanager
    def recording(self):
        """Note what happens inside the block. Nothing is really synced: the model says what that means.

        safetensors writes by itself, in Rust: here its bytes go through Python, one write a file.
        """
        with pytest.MonkeyPatch.context() as patch:
            for name, kind in self._SIMPLE.items():
                patch.setattr(os, name, self._one(name, kind))
            for name, kind in self._TWO.items():
                patch.setattr(os, name, self._two(name, kind))
            for name in ("open", "fsync", "close"):
                patch.setattr(os, name, getattr(self, f"_os_{name}"))
            patch.setattr(io, "open", self._io_open)
            patch.setattr(builtins, "open", self._io_open)
            patch.setattr(safetensors.torch, "serialize_file", self._serialize_file)
            patch.setattr(shutil, "_use_fd_functions", False)  # names, not descriptors, when a tree is removed
            yield self

    def done(self, operation, act):
        """Do one thing and note it, unless it fails or may not be."""
        with self._turn:
            self._before(operation)
            result = act()
            self.journal.append(operation)
            return result

    def _name(self, path):
        """Return the path below the root, or None for what is none of ours."""
        if isinstance(path, int):
            return None
        path = Path(os.fsdecode(path)).absolute()
        inside = path.is_relative_to(self.root) and path.name not in LOCKS
        return path.relative_to(self.root).as_posix() if inside else None

    def _one(self, name, kind):
        def call(path, *arguments, **options):
            below = self._name(path)
            act = lambda: self._real[name](path, *arguments, **options)  # noqa: E731
            return act() if below is None else self.done(Operation(kind, below), act)

        return call

    def _two(self, name, kind):
        def call(path, to, **options):
            below, new = self._name(path), self._name(to)
            act = lambda: self._real[name](path, to, **options)  # noqa: E731
            return act() if below is None else self.done(Operation(kind, below, new), act)

        return call

    def _os_open(self, path, flags, *arguments, **options):
        below = self._name(path)
        assert below is None or not flags & (os.O_WRONLY | os.O_RDWR), f"'{path}': writes through os.open go unseen"
        descriptor = self._real["open"](path, flags, *arguments, **options)
        if below is not None:
            self._descriptors[descriptor] = below
        return descriptor

    def _os_close(self, descriptor):
        self._descriptors.pop(descriptor, None)
        self._real["close"](descriptor)

    def _os_fsync(self, descriptor):
        below = self._descriptors.get(descriptor)
        if below is not None:
            self.done(Operation(SYNC, below), lambda: None)

    def _io_open(self, file, mode="r", *arguments, **options):
        below = self._name(file)
        if below is None or not set(mode) & set("wax+"):
            return self._open(file, mode, *arguments, **options)
        if "a" in mode and Path(file).exists():
            return _noted(self, file, below, mode, *arguments, **options)
        return self.done(Operation(CREATE, below), lambda: _noted(self, file, below, mode, *arguments, **options))

    def _serialize_file(self, tensors, filename, metadata=None):
        with tempfile.TemporaryDirectory() as folder:
            self._real["serialize_file"](tensors, Path(folder, "tensors"), metadata=metadata)
            data = Path(folder, "tensors").read_bytes()
        Path(filename).write_bytes(data)

    def opened(self, descriptor, below):
        self._descriptors[descriptor] = below

    def closed(self, descriptor):
        self._descriptors.pop(descriptor, None)


def _noted(disk, path, below, mode, buffering=-1, *text, **named_text):
    """Return what `open` would, over a file that notes each write; one that is written as it is has no buffer."""
    raw = _Noted(disk, path, below, mode.replace("b", "").replace("t", ""))
    if mode in ("wb", "xb") or buffering == 0:
        return raw
    buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
    return buffered if "b" in mode else io.TextIOWrapper(buffered, *text, **named_text)


class _Noted(io.FileIO):
    def __init__(self, disk, path, below, mode):
        super().__init__(path, mode)
        self._disk, self._below = disk, below
        disk.opened(self.fileno(), below)

    def write(self, data):
        assert self.tell() == os.fstat(self.fileno()).st_size, f"'{self._below}': only writes at the end are modelled"
        note = Operation(WRITE, self._below, data=bytes(data))
        return self._disk.done(note, lambda: super(_Noted, self).write(data))

    def close(self):
        if not self.closed:
            self._disk.closed(self.fileno())
        super().close()


# --- what may be left ---------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _File:
    data: bytes = b""
    safe: bytes = b""


@dataclass(eq=False)
class _Folder:
    names: dict = field(default_factory=dict)
    safe: dict = field(default_factory=dict)


class Model:
    """The replayed disk: for each file and folder, what is there and what is safe."""

    def __init__(self, root):
        self.root = _read(Path(root)) if Path(root).exists() else _Folder()

    def apply(self, operation):
        folder, name = self._parent(operation.path)
        if operation.kind == CREATE:
            if name in folder.names:
                folder.names[name].data = b""
            else:
                folder.names[name] = _File()
        elif operation.kind == WRITE:
            folder.names[name].data += operation.data
        elif operation.kind == SYNC:
            node = self._node(operation.path)
            node.safe = dict(node.names) if isinstance(node, _Folder) else node.data
        elif operation.kind in (RENAME, LINK):
            target, new = self._parent(operation.to)
            target.names[new] = folder.names[name] if operation.kind == LINK else folder.names.pop(name)
        elif operation.kind == MKDIR:
            if operation.path != ".":
                folder.names[name] = _Folder()
        else:
            del folder.names[name]

    def image(self, names, data):
        """Return {path: bytes, or None for a folder}; `names(path, folder)` and `data(path, file)` choose."""
        found = {}

        def walk(folder, prefix):
            for name, node in names(prefix, folder).items():
                path = f"{prefix}{name}"
                found[path] = None if isinstance(node, _Folder) else data(path, node)
                if isinstance(node, _Folder):
                    walk(node, f"{path}/")

        walk(self.root, "")
        return found

    def unsafe_folders(self):
        """Return the folders, by path, whose names are not all safe."""
        found = []

        def walk(folder, prefix):
            if folder.names != folder.safe:
                found.append(prefix)
            for name, node in {**folder.safe, **folder.names}.items():
                if isinstance(node, _Folder):
                    walk(node, f"{prefix}{name}/")

        walk(self.root, "")
        return found

    def _parent(self, path):
        head, _, name = path.rpartition("/")
        return self._node(head), name

    def _node(self, path):
        node = self.root
        for name in path.split("/"):
            node = node.names[name] if name not in ("", ".") else node
        return node


def _read(folder):
    names = {path.name: _read(path) if path.is_dir() else None for path in folder.iterdir() if path.name not in LOCKS}
    for name, node in names.items():
        if node is None:
            data = (folder / name).read_bytes()
            names[name] = _File(data, data)
    return _Folder(names, dict(names))


def images(before, journal):
    """Yield (operations done, what kind, image), each image once, for a folder that was as in `before`."""
    model, seen, draw = Model(before), set(), random.Random(0)  # noqa: S311  # choices, not secrets
    for done, operation in enumerate([None, *journal]):
        if operation is not None:
            model.apply(operation)
        for kind, image in _images(model, draw):
            key = hash(frozenset(image.items()))
            if key not in seen:
                seen.add(key)
                yield done, kind, image


def _images(model, draw):
    def now(_, node):
        return node.names if isinstance(node, _Folder) else node.data

    def safe(_, node):
        return node.safe

    def torn(_, file):
        return file.data if file.data == file.safe else file.data[: len(file.data) // 2]

    def zeroed(_, file):
        return file.data if file.data == file.safe else bytes(len(file.data))

    yield "stopped", model.image(now, now)
    yield "only what was synced", model.image(safe, safe)
    yield "unsynced bytes lost", model.image(now, safe)
    yield "unsynced bytes torn", model.image(now, torn)
    yield "unsynced bytes zeroed", model.image(now, zeroed)
    yield "unsynced names undone", model.image(safe, now)
    for folder in model.unsafe_folders():
        yield f"names in '{folder}' undone", model.image(_in(folder, safe, now), now)
        yield f"names in '{folder}' alone kept", model.image(_in(folder, now, safe), torn)
    yield "a mixture", model.image(_drawn(draw, now, safe), _drawn(draw, now, safe, torn, zeroed))


def _drawn(draw, *choices):
    def drawn(path, node):
        return draw.choice(choices)(path, node)

    return drawn


def _in(folder, there, elsewhere):
    return lambda path, node: (there if path == folder else elsewhere)(path, node)


def lay_down(image, folder):
    """Write an image to an empty folder."""
    folder.mkdir()
    for path, data in image.items():
        if data is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(data)


# --- what may fail ------------------------------------------------------------------------------------------------


def failing_from(number, code):
    """Return a `before` for `Disk`: from operation `number` on the disk is full (what frees space works), or broken."""
    frees = (UNLINK, RMDIR, SYNC, RENAME) if code == errno.ENOSPC else ()
    count = itertools.count()

    def before(operation):
        if next(count) >= number and operation.kind not in frees:
            raise OSError(code, os.strerror(code), operation.path)

    return before


def failing_once(number, code):
    """Return a `before` for `Disk`: operation `number` fails, and the next ones work."""
    count = itertools.count()

    def before(operation):
        if next(count) == number:
            raise OSError(code, os.strerror(code), operation.path)

    return before
