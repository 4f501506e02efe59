"""One self-contained HTML page: words, tables and pictures in the order a reader wants them.

First what came out, then how large things are (the other way round where no layer was evaluated alone), then each
layer's evidence, then what the run decided, does not show, and was made from. Where layers are many, one table of them
all comes first, and what is said of each is folded away in its own section. The page refers to nothing outside itself
and needs no JavaScript; it follows the reader's light or dark scheme, and prints light. Everything that comes from the
record is escaped by the template.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from dalr_stream.report.cells import Table
from dalr_stream.report.claims import Claim, claim, outcome
from dalr_stream.report.naming import slugs
from dalr_stream.report.pictures.figures import Drawn, LeftOut, layer_figures
from dalr_stream.report.pictures.svg import inline_svg
from dalr_stream.report.records.results import LayerResults, Results
from dalr_stream.report.style import css_name, drawing, inks
from dalr_stream.report.tables.overview import evaluated_alone, many_layers, overview_table
from dalr_stream.report.tables.published import published_tables
from dalr_stream.report.tables.scores import headline_table, score_table
from dalr_stream.report.tables.sizes import size_table
from dalr_stream.report.tables.speed import speed_tables

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as the page shows it: drawn, or left out with a reason."""

    anchor: str
    title: str
    text: str
    """The caption, or the reason why there is no figure."""
    svg: str | None
    number: int = 0
    data: str = ""
    """File that holds the numbers."""


@dataclass(frozen=True, slots=True)
class Section:
    """All that the page says about one layer."""

    slug: str
    layer: LayerResults
    claim: Claim
    headline: Table
    scores: Table
    pictures: tuple[Picture, ...]


def sections(results: Results, drawn: Iterable[Sequence[Drawn | LeftOut]]) -> tuple[Section, ...]:
    """Return what the page says about each layer, given its figures; must run inside `style.drawing()`."""
    names = slugs([layer.name for layer in results.layers])
    number = 0
    made: list[Section] = []
    for slug, layer, figures in zip(names, results.layers, drawn, strict=True):
        pictures: list[Picture] = []
        for entry in figures:
            number += isinstance(entry, Drawn)
            pictures.append(_picture(entry, slug, layer, number))
        tables = headline_table(results, layer), score_table(results, layer)
        made.append(Section(slug, layer, claim(layer, results.metric, results.scale), *tables, tuple(pictures)))
    return tuple(made)


def _picture(entry: Drawn | LeftOut, slug: str, layer: LayerResults, number: int) -> Picture:
    anchor = f"figure-{slug}-{entry.name}"
    if isinstance(entry, LeftOut):
        return Picture(anchor, entry.title, entry.reason, None)
    svg = inline_svg(entry.figure, prefix=anchor, label=f"{layer.name}: {entry.title}")
    return Picture(anchor, entry.title, entry.caption, svg, number, f"tables/{slug}-{entry.table}.csv")


def render_page(results: Results) -> str:
    """Return the page as HTML. The same record gives the same text, byte for byte."""
    with drawing():
        drawn = [tuple(layer_figures(results, layer)) for layer in results.layers]
        return render_sections(results, sections(results, drawn))


def render_sections(results: Results, made: Sequence[Section]) -> str:
    """Set finished sections as the page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["css_name"] = css_name
    environment.filters["plain"] = _plain
    environment.filters["prose"] = _prose
    environment.tests["nested"] = lambda value: isinstance(value, Mapping)
    return environment.get_template("page.html").render(
        results=results,
        sections=made,
        sizes=size_table(results),
        speed=tuple(speed_tables(results)),
        published=published_tables(results),
        overview=overview_table(results) if many_layers(results) else None,
        whole_first=not evaluated_alone(results),
        baseline=results.scale.text(results.baseline_score),
        outcome=outcome(results),
        style=_stylesheet(),
    )


def _stylesheet() -> str:
    """Return the palette in both schemes and the rules of `page.css`; both are our own text, so neither is escaped."""
    light = "".join(f"{name}:{ink.light};" for name, ink in inks().items())
    dark = "".join(f"{name}:{ink.dark};" for name, ink in inks().items())
    rules = (_HERE / "page.css").read_text(encoding="utf-8")
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}\n{rules}"


_APART = re.compile(r"(?<=\d) (?=%)|(?<=Fig\.) |(?<=Figure) |(?<=Eq\.) |(?<=Eqs\.) |(?<=rank) (?=\d)")


def _prose(text: str) -> str:
    """Return text whose numbers stay on one line with their units and words."""
    return _APART.sub("\N{NO-BREAK SPACE}", text)


def _plain(value: Any) -> str:
    """Return a value of the provenance as text."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {_plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value) or "none"
    return str(value)
