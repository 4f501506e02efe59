"""The page on what was proved of each architecture."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from zoo_case import Architecture
from zoo_proofs import Found

COLUMNS = ("moments", "full rank", "all nodes", "loaded", "compiled", "ONNX", "generate")
INTRODUCTION = """\
# Architectures

Written by `python tests/zoo`, some ten minutes of one core. Each line is a network with random weights in double
precision, built from a configuration class of transformers or written by hand in `tests/zoo`. Each column is a proof;
a number is the largest difference, relative to the largest entry of what is compared:

- *layers*: with weights / watched and compared / replaced; *groups*: of channels that can be selected.
- *moments*: X'X of every watched layer against a Gram made by hand of what it reads: exactly the rows that count.
- *full rank*: outputs of the network in which every layer is replaced by a factor pair of full rank, against the
  original's; *all nodes*: every group of channels selected whole.
- *loaded*: outputs after `ds.save` and `ds.load` in a fresh process, which must be the same to the bit.
- *compiled*: `torch.compile` (backend `aot_eager`) against the same network run eagerly; *ONNX*: exported by
  `torch.onnx.export`, computed by the reference evaluator of ONNX; *generate*: the same words greedily.

"nor the original" says that the original network cannot go that way either, "exported" that ONNX's evaluator cannot
compute the original's model, whose compressed one its checker finds sound. What is refused is listed below, with its
reason. ONNX, whose constants are in single precision, is held to 1e-5, all else to 1e-9.
"""


def page(architectures: Mapping[str, Architecture], found: Mapping[str, Found]) -> str:
    """Return the page as Markdown."""
    wrong = sum(bool(one.errors) for one in found.values())
    layers, watched, replaced = (sum(getattr(one, what) for one in found.values()) for what in
                                 ("layers", "watched", "replaced"))  # fmt: skip
    total = (
        f"{len(found)} architectures, {layers:,} layers: {watched:,} watched, {replaced:,} replaced; "
        f"{wrong} architectures with an error or a wrong number.\n"
    )
    return "\n".join([INTRODUCTION, total, *_table(architectures, found), "", *_refusals(found), ""])


def _table(architectures: Mapping[str, Architecture], found: Mapping[str, Found]) -> Iterator[str]:
    yield f"| architecture | family | layers | groups | {' | '.join(COLUMNS)} |"
    yield "|---|---|---:|---:|" + "---:|" * len(COLUMNS)
    for name, one in found.items():
        values = " | ".join(_cell(one.values.get(column)) for column in COLUMNS)
        counts = f"{one.layers} / {one.watched} / {one.replaced}"
        yield f"| {name} | {architectures[name].family} | {counts} | {one.groups or ''} | {values} |"


def _cell(value: float | str | None) -> str:
    if isinstance(value, float):
        return "0" if value == 0 else f"{value:.0e}"
    return value or ""


def _refusals(found: Mapping[str, Found]) -> Iterator[str]:
    """Yield what is refused, each reason once, with how many layers of which architectures it is true of."""
    for title, attribute in (("Layers that are refused", "refused"), ("Channels that are not selected", "unprunable")):
        reasons: dict[str, Counter[str]] = {}
        for name, one in found.items():
            for reason in getattr(one, attribute).values():
                reasons.setdefault(_kind(reason), Counter())[name] += 1
        yield f"## {title}"
        yield ""
        for reason, where in sorted(reasons.items(), key=lambda item: -sum(item[1].values())):
            shown = ", ".join(f"{name} {count}" for name, count in where.most_common(6))
            more = f", and {len(where) - 6} more" if len(where) > 6 else ""
            count = sum(where.values())
            yield f"- {count} layer{'s' if count > 1 else ''}: {reason} ({shown}{more})"
        yield ""


def _kind(reason: str) -> str:
    """Return a reason without the names and sizes of one network."""
    general = re.sub(r"^layer '[^']*': ", "", reason)
    general = re.sub(r"'[\w.@]+'", "'...'", general)
    return re.sub(r"\d+", "n", general)
