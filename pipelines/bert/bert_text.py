"""Text that ships with Python, labelled by the topic of its module: statements (source) and docstrings (target).

Six topics of the standard library, told apart by what the text speaks of. A statement is one of a function's body as
`ast.unparse` writes it, so without comments; a sentence is one of a docstring. Each text is taken once.

The digest of a text and the seed is its place in the order, and decides on which side of the split it lies: the same
text always lies on one side, and the two sides share none.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dalr_stream.errors import ConfigError

TOPICS = {
    "concurrency": "asyncio multiprocessing concurrent threading subprocess queue selectors contextlib",
    "network": "email http urllib smtplib imaplib ftplib socket socketserver ssl ipaddress xmlrpc mailbox",
    "testing": "unittest doctest pdb logging traceback trace bdb warnings",
    "numbers": "_pydecimal fractions statistics datetime _pydatetime random calendar numbers colorsys heapq",
    "files": "tarfile zipfile pathlib shutil os tempfile glob posixpath ntpath gzip _pyio filecmp",
    "language": "ast inspect typing dis importlib tokenize pickle dataclasses enum functools pkgutil pydoc",
}
FEWEST_WORDS = 5
"""Shorter texts say too little to be told apart."""
TEST_SHARE = 0.4
"""Of the sentences."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n\s*\n")


@dataclass(frozen=True, slots=True)
class Text:
    """One text and the number of its topic."""

    words: str
    topic: int
    place: float
    """In 0..1, from its digest and the seed."""


def statements(seed: int) -> list[Text]:
    """Return every statement of the standard library's functions, in a random order."""
    return _ordered(seed, "code")


def sentences(seed: int, *, test: bool) -> list[Text]:
    """Return the sentences of its docstrings on one side of the split, in a random order."""
    return [text for text in _ordered(seed, "prose") if (text.place < TEST_SHARE) == test]


def _ordered(seed: int, kind: str) -> list[Text]:
    texts = (Text(words, topic, _place(words, seed)) for words, topic in _read()[kind].items())
    return sorted(texts, key=lambda text: text.place)


def _place(words: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}:{words}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


@cache
def _read() -> dict[str, dict[str, int]]:
    """Read the library once: kind of text -> text -> its topic, the first one's where it stands in several."""
    found: dict[str, dict[str, int]] = {"code": {}, "prose": {}}
    for topic, modules in enumerate(TOPICS.values()):
        for tree in _trees(modules.split()):
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    _keep(found["code"], topic, map(ast.unparse, node.body[ast.get_docstring(node) is not None :]))
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                    _keep(found["prose"], topic, _SENTENCE_END.split(ast.get_docstring(node) or ""))
    return found


def _keep(texts: dict[str, int], topic: int, found: Iterator[str] | list[str]) -> None:
    for text in found:
        words = text.split()
        if len(words) >= FEWEST_WORDS:
            texts.setdefault(" ".join(words), topic)


def _trees(modules: list[str]) -> Iterator[ast.Module]:
    """Yield the parsed files of some modules and packages; a Python that lacks one of them has the others."""
    library = Path(sysconfig.get_path("stdlib"))
    if not (library / "os.py").exists():
        raise ConfigError(f"bert_text: there is no source of the standard library at '{library}'")
    for module in modules:
        single = library / f"{module}.py"
        for path in [single] if single.exists() else sorted((library / module).rglob("*.py")):
            yield ast.parse(path.read_text(encoding="utf-8"))
