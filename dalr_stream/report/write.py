"""A report as a folder: the page, its pictures, every number as CSV, and the record itself.

    report.html     one self-contained page
    figures/        <layer>-<figure>.png, 150 dpi
    tables/         sizes.csv, layers.csv, macs.csv, latency.csv, published-<n>.csv and <layer>-<table>.csv: exact
                    values, shares in 0..1
    results.json    the record, from which all this can be made again
    files.txt       what belongs to this report

The whole report is written into a folder of its own beside the old one, then moved into place file by file, the page
last. Killed before the move, the old report stands as it was; killed during it, each file is whole, old or new, and the
page, which needs no other file, is either the old or the new one. Files of an earlier report that this one lacks are
removed at the end; files this package did not write are never touched.
"""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dalr_stream.report.cells import Table
from dalr_stream.report.naming import slugs
from dalr_stream.report.page import render_sections, sections
from dalr_stream.report.pictures.figures import Drawn, LeftOut, layer_figures
from dalr_stream.report.records.results import Results
from dalr_stream.report.style import drawing
from dalr_stream.report.tables.overview import overview_table
from dalr_stream.report.tables.published import published_tables
from dalr_stream.report.tables.scores import headline_table, score_table
from dalr_stream.report.tables.series import layer_series
from dalr_stream.report.tables.sizes import size_table
from dalr_stream.report.tables.speed import speed_tables
from dalr_stream.storage.durable import sync

PAGE = "report.html"
INVENTORY = "files.txt"
DPI = 150
_STAGING = ".report-unfinished"
_OWN = re.compile(r"report\.html|results\.json|figures/[^/\0]+\.png|tables/[^/\0]+\.csv")


def write_report(results: Results, folder: Path) -> Path:
    """Write the report of a run into `folder`, made if need be, and return the path of its page.

    The same record gives the same bytes. Two processes must not write into one folder at once.
    """
    staging = folder / _STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    _write_tables(results, staging / "tables")
    results.write(staging / "results.json")
    with drawing():
        page = render_sections(results, sections(results, _written_figures(results, staging / "figures")))
    (staging / PAGE).write_text(page, encoding="utf-8", newline="\n")
    _publish(staging, folder)
    return folder / PAGE


def _write_tables(results: Results, folder: Path) -> None:
    folder.mkdir()
    for stem, table in _named_tables(results):
        with (folder / f"{stem}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(table.records())


def _named_tables(results: Results) -> Iterator[tuple[str, Table]]:
    yield "sizes", size_table(results)
    for table in speed_tables(results):
        yield table.name, table
    yield from ((table.name, table) for table in published_tables(results))
    yield "layers", overview_table(results)
    names = slugs([layer.name for layer in results.layers])
    for slug, layer in zip(names, results.layers, strict=True):
        for table in (
            headline_table(results, layer),
            score_table(results, layer),
            *layer_series(layer, results.metric),
        ):
            yield f"{slug}-{table.name}", table


def _written_figures(results: Results, folder: Path) -> Iterator[Sequence[Drawn | LeftOut]]:
    """Write the figures of each layer and yield them: those of one layer are in memory at a time."""
    folder.mkdir()
    names = slugs([layer.name for layer in results.layers])
    for slug, layer in zip(names, results.layers, strict=True):
        figures = tuple(layer_figures(results, layer))
        for entry in figures:
            if isinstance(entry, Drawn):
                entry.figure.savefig(folder / f"{slug}-{entry.name}.png", dpi=DPI, metadata={"Software": None})
        yield figures


def _publish(staging: Path, folder: Path) -> None:
    """Move a report into place; until all is done, the inventory names the files of the earlier one as well."""
    files = {path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file()}
    earlier = _inventory(folder)
    _keep_inventory(files | earlier, staging, folder)
    for name in sorted(files, key=lambda name: (name == PAGE, name)):
        (folder / name).parent.mkdir(exist_ok=True)
        (staging / name).replace(folder / name)
    for name in earlier - files:
        (folder / name).unlink(missing_ok=True)
    _keep_inventory(files, staging, folder)
    shutil.rmtree(staging)
    sync(folder)  # else a power cut could bring the staging back beside a report that is done


def _keep_inventory(files: Iterable[str], staging: Path, folder: Path) -> None:
    """Write the inventory so that it outlives a power cut: what it lost, no later report would remove."""
    text = "".join(f"{name}\n" for name in sorted(files))
    (staging / INVENTORY).write_text(text, encoding="utf-8", newline="\n")
    sync(staging / INVENTORY)
    (staging / INVENTORY).replace(folder / INVENTORY)
    sync(folder)


def _inventory(folder: Path) -> set[str]:
    """Return the files of the report that stands in `folder`; names that no report has are not believed."""
    listing = folder / INVENTORY
    names = listing.read_text(encoding="utf-8", errors="replace").splitlines() if listing.is_file() else []
    return {name for name in names if _OWN.fullmatch(name)}
