"""The headline in words says what the rows say, in each way a run can come out."""

import dataclasses

import pytest
import synthetic_results as synthetic

from dalr_stream.report.claims import claim, compared, times_text
from dalr_stream.report.records.results import HeadlineRow
from dalr_stream.report.records.scale import ACCURACY

FC6 = synthetic.results().layers[0]


def layer_with(*rows):
    return dataclasses.replace(FC6, headline=tuple(rows))


def factors(method, rank, ratio):
    return HeadlineRow(method, rank, rank * 1536, rank * 1536 + 512 * 512, 0.97, ratio)


def unreached(method):
    return HeadlineRow(method, None, None, None, None, None)


SVD = factors("svd", 64, 1.0)


def test_the_default_dalr_speaks_even_where_another_one_does_better():
    said = claim(layer_with(SVD, factors("dalr_anchored_affine", 16, 4.0), factors("dalr_optimal", 8, 8.0)))
    assert said.sentence == (
        "At a loss of at most 1 point of accuracy, DALR anchored, affine needs 4.0 times fewer parameters than SVD in "
        "fc6: rank 16 instead of 64, 4.7 % of the layer instead of 18.8 %."
    )
    assert (said.figure, said.unit) == ("4.0\N{MULTIPLICATION SIGN}", "fewer parameters than SVD")


def test_the_rank_of_svd_is_not_said_twice():
    said = claim(layer_with(SVD, factors("dalr_anchored_affine", 64, 1.0))).sentence
    assert said.endswith("needs as many parameters as SVD in fc6: rank 64 too, 18.8 % of the layer.")


def test_published_is_quoted_beside_it():
    said = claim(layer_with(SVD, factors("dalr_anchored_affine", 16, 4.0), factors("dalr_published", 32, 2.0)))
    assert said.support == ("DALR as published needs 2.0 times fewer parameters than SVD: rank 32.",)


def test_published_alone_speaks_for_itself():
    said = claim(layer_with(SVD, factors("dalr_published", 32, 2.0)))
    assert "DALR published needs 2.0 times fewer" in said.sentence
    assert said.support == ()


def test_where_dalr_needs_more_the_sentence_says_so():
    said = claim(layer_with(SVD, factors("dalr_anchored_affine", 128, 0.5)))
    assert "needs 2.0 times more parameters than SVD" in said.sentence
    assert (said.figure, said.unit) == ("2.0\N{MULTIPLICATION SIGN}", "more parameters than SVD")


@pytest.mark.parametrize(
    ("svd", "dalr", "words"),
    [
        (
            unreached("svd"),
            factors("dalr_anchored_affine", 16, None),
            "affine needs rank 16 in fc6, 4.7 % of the layer; SVD has no rank among those tried for fc6.",
        ),
        (
            SVD,
            unreached("dalr_anchored_affine"),
            "affine has no rank among those tried for fc6; SVD needs rank 64 in fc6, 18.8 % of the layer.",
        ),
        (
            unreached("svd"),
            unreached("dalr_anchored_affine"),
            "DALR anchored, affine has no rank among those tried for fc6; SVD has no rank among those tried for fc6.",
        ),
    ],
)
def test_what_was_not_reached_is_not_compared(svd, dalr, words):
    layer = layer_with(svd, dalr)
    said = claim(layer)
    assert compared(layer) is None
    assert said.sentence.endswith(words)
    assert said.unit == "no comparison"


def test_svd_alone():
    assert claim(layer_with(SVD)).sentence.endswith("SVD needs rank 64 in fc6, 18.8 % of the layer.")


def test_selections_alone_and_nothing_at_all():
    spectral = HeadlineRow("spectral", 40, None, 40 * 1536, 0.97, None)
    assert claim(layer_with(spectral)).sentence.endswith("fc6 needs 40 of its 512 nodes with spectral pruning.")
    too_large = HeadlineRow("spectral", None, None, None, None, None)
    assert claim(layer_with(too_large)).sentence.endswith("no method that was tried compresses fc6.")
    assert claim(layer_with()).sentence == "fc6 was not evaluated by itself."


def test_the_best_selections_are_named_together_when_they_tie():
    rows = [HeadlineRow(name, 40, None, 40 * 1536, 0.97, 2.5) for name in ("spectral", "momasp_node")]
    more = HeadlineRow("momasp_subset", 48, None, 48 * 1536, 0.97, 2.1)
    said = claim(layer_with(SVD, factors("dalr_anchored_affine", 16, 4.0), *rows, more))
    (support,) = said.support
    assert support == (
        "Of the selections spectral pruning and MoMaSP (node) do best: counting fc6 and fc7 together that needs 2.5 "
        "times fewer parameters than SVD, and keeps 40 of 512 nodes."
    )


def test_words_for_numbers():
    drops = [ACCURACY.drop_text(drop) for drop in (0.01, 0.005, 0.02, 0.0)]
    assert drops == ["1 point", "0.5 points", "2 points", "0 points"]
    assert times_text(1.02) == "as many parameters as"
