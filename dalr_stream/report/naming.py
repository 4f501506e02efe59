"""File names and anchors for layers, whatever their names hold.

`classifier.0` keeps its dot; what no file system or URL would take becomes a hyphen. Names that would then coincide
(also on file systems that do not tell capitals from small letters) are numbered, so no layer overwrites another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_UNSAFE = re.compile(r"[^A-Za-z0-9_.]+")
_LONGEST = 80


def slugs(names: Sequence[str]) -> tuple[str, ...]:
    """Return one name for files and anchors for each of `names`, all of them different."""
    taken: set[str] = set()
    slugs: list[str] = []
    for name in names:
        plain = _UNSAFE.sub("-", name).strip("-.")[:_LONGEST] or "layer"
        slug, number = plain, 1
        while slug.casefold() in taken:
            number += 1
            slug = f"{plain}-{number}"
        taken.add(slug.casefold())
        slugs.append(slug)
    return tuple(slugs)
