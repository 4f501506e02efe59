"""A report of many layers opens with one table of them all, and folds each layer's own evidence away."""

import dataclasses
import io
import re

import pytest
import synthetic_results as synthetic
from rich.console import Console

from dalr_stream.report.page import render_page
from dalr_stream.report.records.results import HeadlineRow
from dalr_stream.report.tables.overview import FEW, many_layers, overview_table
from dalr_stream.report.terminal import print_headline

TIMES = "\N{MULTIPLICATION SIGN}"


def bare(name, *, readers=True):
    """Leave out what takes long to draw."""
    whole = synthetic.layer(name, 48, 64, "next", 32) if readers else synthetic.layer(name, 48, 64, None, 0)
    spectra = dataclasses.replace(whole.spectra, weight=(), outputs=())
    return dataclasses.replace(
        whole, activity=(), error_curves=(), score_curves=(), retention_curves=(), spectra=spectra
    )


def results(count):
    return synthetic.results(*(bare(f"blocks.{number}", readers=number % 2 == 0) for number in range(count)))


@pytest.fixture(scope="module")
def page():
    return render_page(results(FEW + 2))


def test_few_layers_are_told_one_after_the_other():
    few = render_page(results(FEW))
    assert not many_layers(results(FEW))
    assert "<details" not in few
    assert few.count('<table class="headline"') == FEW
    assert 'class="overview"' not in few


def test_many_layers_open_with_one_table_and_fold_the_rest_away(page):
    first = page.index('<table class="overview"')
    assert page.index('<section id="headline">') < first < page.index('<section id="sizes">')
    assert '<table class="headline"' not in page[: page.index('<section id="sizes">')]
    folded = re.findall(r'<section id="layer-[^"]+" class="layer">\n<details>(.*?)</details>', page, flags=re.DOTALL)
    assert len(folded) == FEW + 2
    for number, section in enumerate(folded):
        assert f"Layer blocks.{number}</h2>" in section
        assert section.count('<table class="headline"') == 1
        assert section.count('class="claim"') == 1
    assert f"{FEW + 2} layers were compressed." in page


def test_the_overview_says_what_the_headline_says_of_each_layer():
    layer = bare("fc")
    rows = (
        HeadlineRow("svd", 16, 16 * 112, 16 * 112 + 48 * 32, 0.97, 1.0),
        HeadlineRow("dalr_optimal", 2, 2 * 112, 2 * 112 + 48 * 32, 0.97, 8.0),
        HeadlineRow("dalr_anchored_affine", 4, 4 * 112, 4 * 112 + 48 * 32, 0.97, 4.0),
        HeadlineRow("spectral", 12, None, 12 * 96, 0.97, 2.9),
        HeadlineRow("momasp_node", 9, None, 9 * 96, 0.97, 3.9),
    )
    lost = (HeadlineRow("svd", None, None, None, None, None), HeadlineRow("spectral", None, None, None, None, None))
    without = dataclasses.replace(bare("last", readers=False), headline=rows[:1])
    table = overview_table(
        synthetic.results(
            dataclasses.replace(layer, headline=rows), dataclasses.replace(layer, name="hard", headline=lost), without
        )
    )
    shown = {row.label: [cell.text for cell in row.cells] for row in table.rows}
    assert shown["fc"] == [
        *(f"48 {TIMES} 64", "rank 16", "58.3", "rank 4", "14.6", f"4.00{TIMES}"),
        *("MoMaSP (node)", "9 of 48"),
    ]
    blank = "\N{EN DASH}"
    assert shown["hard"] == [f"48 {TIMES} 64", "not reached", *[blank] * 4, "not reached", blank]
    assert shown["last"][1:3] == ["rank 16", "58.3"]
    assert shown["last"][3:] == [blank] * 5
    assert [column.title for column in table.columns][1:4:2] == ["SVD", "DALR anchored, affine"]


def test_every_row_fills_every_column():
    table = overview_table(results(5))
    assert {len(row.cells) for row in table.rows} == {len(table.columns)}
    alone = overview_table(synthetic.results(dataclasses.replace(bare("a"), headline=())))
    assert [column.key for column in alone.columns] == ["parameters"]


def test_the_terminal_prints_one_table_of_many_layers():
    console = Console(file=io.StringIO(), width=80)
    print_headline(results(FEW + 1), console)
    lines = console.file.getvalue().splitlines()
    for number in range(FEW + 1):
        assert sum(line.strip().startswith(f"blocks.{number} ") for line in lines) == 1
    assert len(lines) < 25
    assert max(map(len, lines)) <= 80


def test_layers_that_were_not_evaluated_alone_make_no_table_of_dashes():
    whole = results(FEW + 1)
    none = dataclasses.replace(whole, layers=tuple(dataclasses.replace(one, headline=()) for one in whole.layers))
    table = overview_table(none)
    assert table.caption == f"All {FEW + 1} layers"
    assert table.footnote == "No layer was evaluated alone: evaluate.ranks is empty."
    console = Console(file=io.StringIO(), width=120)
    print_headline(none, console)
    assert "blocks.0" not in console.file.getvalue()
