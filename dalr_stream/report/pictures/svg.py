"""A figure as inline SVG: no file, no fixed colour, no name that could clash with another figure on the page.

Matplotlib writes a document of its own: a prologue, metadata, `http` names of namespaces, colours as numbers, ids that
repeat from figure to figure. An HTML page needs none of these. Colours become CSS variables, so one drawing serves
light and dark paper; ids get the figure's own prefix.
"""

from __future__ import annotations

import html
import io
import re

from matplotlib.figure import Figure

from dalr_stream.report.style import inks

_ID = re.compile(r'\bid="([^"]+)"')
_REFERENCE = re.compile(r'xlink:href="#([^"]+)"|url\(#([^)]+)\)')
_COLOR = re.compile(r": (#[0-9a-f]{6})\b")
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_PATH = re.compile(r' d="[^"]*"')


def inline_svg(figure: Figure, *, prefix: str, label: str) -> str:
    """Return the figure as an `<svg>` element for an HTML page; `label` is what a screen reader says.

    Coordinates are rounded to 0.01 point. Must run inside `style.drawing()`.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = _PATH.sub(lambda path: _NUMBER.sub(_rounded, path.group()), text)
    text = _scoped(text, prefix)
    variables = {ink.light: f"var({name})" for name, ink in inks().items()}
    text = _COLOR.sub(lambda match: f": {variables.get(match.group(1), match.group(1))}", text)
    view = re.search(r'viewBox="[^"]+"', text)
    head = f'<svg {view.group() if view else ""} role="img" aria-label="{html.escape(label)}"'
    return re.sub(r"<svg[^>]*", lambda _: head, text, count=1).strip()


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number.group()):.2f}".rstrip("0").rstrip(".")


def _scoped(text: str, prefix: str) -> str:
    """Keep the ids that something refers to, under the figure's own prefix, and drop the others."""
    used = {first or second for first, second in _REFERENCE.findall(text)}
    text = _REFERENCE.sub(
        lambda match: f'href="#{prefix}-{match.group(1)}"' if match.group(1) else f"url(#{prefix}-{match.group(2)})",
        text,
    )
    return _ID.sub(lambda match: f'id="{prefix}-{match.group(1)}"' if match.group(1) in used else "", text)
