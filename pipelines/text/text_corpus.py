"""Two kinds of text that every Python brings along: program code (source) and English prose (target).

Code is the standard library's own modules without their docstrings and comments, cut into runs of whole lines. Prose is
those docstrings, the language reference that `help()` prints, and the licence, cut into sentences. Neither holds the
other: a sentence of the test split is never a piece of the code.

Only ASCII is kept, so a character is a byte. What is read depends on the Python that runs, and on nothing else.
"""

from __future__ import annotations

import ast
import functools
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

CONTEXT = 96
"""Characters of a piece, at most."""
SHORTEST = 24
"""Characters of a piece, at least."""
PROSE_LETTERS = 0.95
"""Share of a sentence that must be letters, spaces, commas and full stops: tables, signatures and code have fewer."""
FOREIGN = ("test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo", "pydoc_data")
"""Folders whose docstrings are no documentation, or are read in another way."""

_SENTENCE = re.compile(r"(?<=[.!?:]) +(?=[A-Z])")
_MARKUP = re.compile(r":\w+:(?=`)|[`*]")
_PLAIN = re.compile(r"[A-Za-z ,.]")


def standard_library() -> Path:
    """Return the folder of the modules that came with this Python."""
    return Path(sysconfig.get_paths()["stdlib"])


@functools.cache
def code_pieces(library: Path, context: int = CONTEXT) -> tuple[str, ...]:
    """Return the code of the library's top-level modules, in pieces of whole lines, in the order of the files."""
    return tuple(
        piece
        for path in sorted(library.glob("[a-z]*.py"))
        for piece in pack_lines(code_lines(path.read_text(encoding="utf-8")), context)
    )


@functools.cache
def prose_paragraphs(library: Path, context: int = CONTEXT) -> tuple[tuple[str, ...], ...]:
    """Return the paragraphs of prose, each a tuple of pieces; no piece is there twice, and the order is fixed."""
    seen: set[str] = set()
    found = []
    for text in _prose_texts(library):
        for paragraph in paragraphs(text):
            pieces = tuple(piece for piece in pack_sentences(paragraph, context) if piece.casefold() not in seen)
            seen.update(piece.casefold() for piece in pieces)
            if pieces:
                found.append(pieces)
    return tuple(found)


def code_lines(code: str) -> Iterator[str]:
    """Yield the lines of a module that are neither empty, nor of a docstring, nor comments alone."""
    documentation = {number for _, lines in _docstrings(ast.parse(code)) for number in lines}
    for number, line in enumerate(code.splitlines(), start=1):
        if number not in documentation and line.strip() and not line.lstrip().startswith("#"):
            yield line.rstrip()


def pack_lines(lines: Iterable[str], context: int) -> Iterator[str]:
    """Yield runs of whole lines of at most `context` characters; lines that are longer, or not ASCII, are left out."""
    run = ""
    for line in lines:
        if len(line) >= context or not line.isascii():
            continue
        if len(run) + len(line) + 1 > context:
            yield run
            run = ""
        run += f"{line}\n"
    if run:
        yield run


def paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a documentation text on one line each, without code examples and without markup."""
    for block in re.split(r"\n\s*\n", text):
        if ">>>" not in block:
            yield " ".join(_MARKUP.sub("", block).split())


def pack_sentences(paragraph: str, context: int) -> Iterator[str]:
    """Yield runs of whole sentences of at most `context` characters; what is no prose, or is too long, ends a run."""
    run = ""
    for sentence in _SENTENCE.split(paragraph):
        fits = is_prose(sentence) and len(sentence) <= context
        if run and (not fits or len(run) + 1 + len(sentence) > context):
            yield run
            run = ""
        if fits:
            run = f"{run} {sentence}" if run else sentence
    if run:
        yield run


def is_prose(sentence: str) -> bool:
    """Tell whether a sentence begins with a capital, ends as one does, and is nearly all letters."""
    plain = len(_PLAIN.findall(sentence))
    whole = sentence[:1].isupper() and sentence.endswith((".", "!", "?", ":"))
    return whole and sentence.isascii() and len(sentence) >= SHORTEST and plain >= PROSE_LETTERS * len(sentence)


def _prose_texts(library: Path) -> Iterator[str]:
    """Yield the topics of `help()`, the licence where it lies beside the library, and every docstring."""
    topics = library / "pydoc_data" / "topics.py"
    for node in ast.walk(ast.parse(topics.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
    licence = library / "LICENSE.txt"
    if licence.exists():
        yield licence.read_text(encoding="utf-8")
    for path in sorted(library.rglob("*.py")):
        if not set(path.relative_to(library).parts[:-1]) & set(FOREIGN):
            for text, _ in _docstrings(ast.parse(path.read_bytes())):
                yield text


def _docstrings(tree: ast.AST) -> Iterator[tuple[str, range]]:
    """Yield the docstrings in a tree, each with the numbers of its lines."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                first = node.body[0]
                yield text, range(first.lineno, (first.end_lineno or first.lineno) + 1)
        pending += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.excepthandler)]
