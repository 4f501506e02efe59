"""What the values of a metric mean, and a report of one of which less is better."""

import dataclasses
import math

import pytest
import synthetic_results as synthetic

from dalr_stream.report.claims import claim
from dalr_stream.report.page import render_page
from dalr_stream.report.pictures.plots import score_against_layer, score_against_pair
from dalr_stream.report.records.results import Results
from dalr_stream.report.records.scale import ACCURACY, Scale
from dalr_stream.report.tables.scores import headline_table, score_table
from dalr_stream.report.tables.sizes import size_table

PERPLEXITY = Scale(higher=False, lowest=1.0, highest=None)
BASELINE = 12.5


def worse(point):
    """A perplexity in place of an accuracy: the worse, the higher."""
    return dataclasses.replace(point, score=BASELINE + 40 * (synthetic.BASELINE - point.score))


def of_perplexity():
    whole = synthetic.results()
    layers = [
        dataclasses.replace(
            layer,
            score_curves=tuple(
                dataclasses.replace(curve, points=tuple(map(worse, curve.points))) for curve in layer.score_curves
            ),
        )
        for layer in whole.layers
    ]
    sizes = [
        dataclasses.replace(size, score=value) for size, value in zip(whole.sizes, (12.5, 13.0, None), strict=True)
    ]
    return dataclasses.replace(
        whole,
        layers=tuple(layers),
        sizes=tuple(sizes),
        metric="perplexity",
        baseline_score=BASELINE,
        scale=PERPLEXITY,
    )


@pytest.mark.parametrize(
    ("scale", "value", "holds"),
    [
        (ACCURACY, 1.0, True),
        (ACCURACY, 1.0000001, True),
        (ACCURACY, 1.75, False),
        (ACCURACY, -0.1, False),
        (ACCURACY, math.nan, False),
        (PERPLEXITY, 1e6, True),
        (PERPLEXITY, 0.9, False),
        (PERPLEXITY, math.inf, False),
        (Scale(lowest=None, highest=0.0), -1e9, True),
        (Scale(lowest=None, highest=0.0), 1.0, False),
        (Scale(lowest=None, highest=None), -3.0, True),
    ],
)
def test_values_outside_the_range_are_told(scale, value, holds):
    assert scale.holds(value) is holds


@pytest.mark.parametrize(
    ("scale", "baseline", "drop", "worst"),
    [
        (ACCURACY, 0.9, 0.01, 0.89),  # a point
        (Scale(higher=False), 0.1, 0.01, 0.11),  # a rate of errors
        (PERPLEXITY, 20.0, 0.01, 20.2),  # a hundredth of it
        (Scale(lowest=None, highest=None), -4.0, 0.5, -6.0),  # a log-likelihood
    ],
)
def test_the_loss_allowed_lies_on_the_worse_side(scale, baseline, drop, worst):
    assert scale.worst(baseline, drop) == pytest.approx(worst)
    assert scale.reaches(baseline, scale.worst(baseline, drop))
    assert not scale.reaches(scale.worst(baseline, 2 * drop), scale.worst(baseline, drop))
    assert scale.loss(baseline, worst) == pytest.approx(scale.allowed(baseline, drop))


def test_a_report_of_a_perplexity_says_nothing_of_accuracy_or_per_cent():
    results = of_perplexity()
    layer = results.layers[0]
    table = headline_table(results, layer)
    assert table.caption == "fc6: smallest size with perplexity of at most 12.62"
    assert "perplexity" in [column.title for column in table.columns]
    assert score_table(results, layer).caption == "fc6: perplexity"
    sizes = size_table(results)
    assert [column.key for column in sizes.columns][-2:] == ["perplexity", "perplexity_change"]
    assert [cell.text for cell in sizes.rows[1].cells][-2:] == ["13", "+0.5"]
    sentence = claim(layer, results.metric, results.scale).sentence
    assert sentence.startswith("With a perplexity at most 1 % above the uncompressed network's, ")
    page = render_page(results)
    assert "Uncompressed perplexity: 12.5." in page
    assert "Perplexity against the size of the layer" in page
    assert "further left and lower is better" in page


def test_the_best_of_a_column_is_the_lowest_where_less_is_better():
    results = of_perplexity()
    body = [row for row in score_table(results, results.layers[0]).rows if row.method]
    for number in range(len(body[0].cells)):
        cells = [row.cells[number] for row in body if isinstance(row.cells[number].value, float)]
        assert {cell.value for cell in cells if cell.best} == {min(cell.value for cell in cells)}


def test_the_band_of_a_figure_lies_above_the_uncompressed_network_where_less_is_better():
    results = of_perplexity()
    for draw in (score_against_pair, score_against_layer):
        figure = draw(results, results.layers[0])
        upper = figure.axes[-1] if figure.axes[0].get_xlabel() else figure.axes[0]
        low, high = upper.get_ylim()
        assert low < BASELINE < 1.01 * BASELINE < high
        assert {axes.get_ylabel() for axes in figure.axes} == {"perplexity"}


def test_the_record_keeps_the_scale_and_older_ones_are_of_shares(tmp_path):
    results = of_perplexity()
    results.write(tmp_path / "r.json")
    assert Results.read(tmp_path / "r.json").scale == PERPLEXITY
    assert Scale.of_plain(None) == ACCURACY
