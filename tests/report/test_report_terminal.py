"""The terminal shows the page's rows, at any width, and takes no name for markup."""

import dataclasses
import io

import pytest
import synthetic_results as synthetic
from rich.console import Console

from dalr_stream.report.claims import claim
from dalr_stream.report.terminal import print_headline

RESULTS = synthetic.results()


def printed(results, width):
    console = Console(file=io.StringIO(), width=width)
    print_headline(results, console)
    return console.file.getvalue()


def test_wide_terminals_get_every_column():
    lines = printed(RESULTS, 120).splitlines()
    for row in RESULTS.layers[0].headline:
        if row.layer_parameters is None or row.method == "svd":
            continue
        found = [line.split() for line in lines if f"{row.layer_parameters:,}" in line]
        assert any(f"{row.pair_parameters:,}" in cells and f"{100 * row.score:.2f}" in cells for cells in found)
    assert any(line.split() == ["pruning", "(mean)", "not", "reached"] for line in lines)


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_no_cell_is_cut(width):
    text = printed(RESULTS, width)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert max(map(len, text.splitlines())) <= width
    for row in RESULTS.layers[1].headline:
        if row.svd_ratio is not None:
            assert f"{row.svd_ratio:.2f}\N{MULTIPLICATION SIGN}" in text


def test_the_best_ratio_is_starred_without_colours():
    best = max(
        row.svd_ratio for row in RESULTS.layers[0].headline[: len(synthetic.LOW_RANK)] if row.svd_ratio is not None
    )
    assert f"* {best:.2f}\N{MULTIPLICATION SIGN}" in printed(RESULTS, 120)


def test_sentences_and_sizes_follow():
    text = " ".join(printed(RESULTS, 120).split())
    for layer in RESULTS.layers:
        assert claim(layer, RESULTS.metric, RESULTS.scale).sentence in text
    assert "221.44 kB" in text


def test_names_with_brackets_are_not_markup():
    results = synthetic.results(synthetic.layer("blocks[bold]0[/bold]", 48, 64, "next", 8))
    assert "blocks[bold]0[/bold]: smallest size" in printed(results, 120)


def test_the_star_and_what_the_ratio_counts_are_said():
    text = " ".join(printed(RESULTS, 120).split())
    assert "* best ratio of its family. Low rank: the ratio counts this layer alone." in text
    assert "Selections: the ratio counts this layer and the next one together." in text


def test_what_is_not_reached_comes_with_what_to_try():
    assert "Not reached: no size tried loses that little. Try larger evaluate.ranks" in printed(RESULTS, 120)
    layer = dataclasses.replace(
        RESULTS.layers[0], headline=tuple(row for row in RESULTS.layers[0].headline if row.size is not None)
    )
    assert "Not reached" not in printed(synthetic.results(layer), 120)
