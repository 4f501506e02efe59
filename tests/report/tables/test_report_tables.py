"""Cells hold the record's numbers, and selections stand in the columns they match."""

import dataclasses

import numpy as np
import pytest
import synthetic_results as synthetic
from hypothesis import given
from hypothesis import strategies as st

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.report.cells import BLANK, RowKind, bytes_text, count_text, ratio_text, signed_points
from dalr_stream.report.records.results import NetworkSize, ScoreCurve, ScorePoint
from dalr_stream.report.tables.scores import NOT_REACHED, headline_table, matched_point, score_table
from dalr_stream.report.tables.series import cumulative_energy, layer_series
from dalr_stream.report.tables.sizes import size_table

RESULTS = synthetic.results()
FC6, FC7 = RESULTS.layers


def row_of(table, key):
    (row,) = [row for row in table.rows if row.key == key]
    return row


def naive_match(points, budget):
    """The best fit by the plainest scan: heaviest first, the first that is not too heavy."""
    for point in sorted(points, key=lambda point: point.pair_parameters, reverse=True):
        if point.pair_parameters <= budget:
            return point
    return None


@given(
    m=st.integers(1, 60),
    d=st.integers(1, 60),
    C=st.integers(0, 60),
    rank=st.integers(1, 40),
    sizes=st.sets(st.integers(1, 60), max_size=12),
)
def test_a_selection_is_matched_at_equal_parameters(m, d, C, rank, sizes):
    layer = dataclasses.replace(FC6, outputs=m, inputs=d, next_outputs=C)
    points = tuple(ScorePoint(size, None, size * (d + C), 0.5) for size in sorted(sizes))
    found = matched_point(ScoreCurve("spectral", points), layer, rank)
    assert found == naive_match(points, rank * (m + d) + m * C)


def test_a_selection_of_exactly_the_same_weight_matches():
    layer = dataclasses.replace(FC6, outputs=10, inputs=10, next_outputs=10)
    points = tuple(ScorePoint(size, None, 20 * size, 0.5) for size in (7, 8, 9))
    found = matched_point(ScoreCurve("spectral", points), layer, 3)
    assert (found.size, found.pair_parameters) == (8, 3 * (10 + 10) + 10 * 10)


@pytest.mark.parametrize("layer", RESULTS.layers, ids=lambda layer: layer.name)
def test_accuracy_table_holds_every_low_rank_point_in_its_column(layer):
    table = score_table(RESULTS, layer)
    ranks = [int(column.key) for column in table.columns]
    assert ranks == sorted({p.size for c in layer.score_curves[: len(synthetic.LOW_RANK)] for p in c.points})
    for curve in layer.score_curves[: len(synthetic.LOW_RANK)]:
        cells = row_of(table, curve.method).cells
        assert [cell.value for cell in cells] == [point.score for point in curve.points]
        assert [cell.text for cell in cells] == [f"{100 * point.score:.2f}" for point in curve.points]
        assert all(cell.note is None for cell in cells)


@pytest.mark.parametrize("layer", RESULTS.layers, ids=lambda layer: layer.name)
def test_accuracy_table_sets_selections_by_weight_and_says_how_many_nodes(layer):
    table = score_table(RESULTS, layer)
    m, d, C = layer.outputs, layer.inputs, layer.next_outputs
    for curve in layer.score_curves[len(synthetic.LOW_RANK) :]:
        for column, cell in zip(table.columns, row_of(table, curve.method).cells, strict=True):
            point = naive_match(curve.points, int(column.key) * (m + d) + m * C)
            assert (cell.value, cell.note) == (point.score, point.size)


def test_a_selection_that_is_always_heavier_leaves_its_cells_blank():
    heavy = ScoreCurve("spectral", (ScorePoint(512, None, FC6.pair_parameters, 0.97),))
    layer = dataclasses.replace(FC6, score_curves=(FC6.score_curves[0], heavy))
    cells = row_of(score_table(RESULTS, layer), "spectral").cells
    assert {cell.text for cell in cells} == {BLANK}
    assert {cell.value for cell in cells} == {None}


def test_scales_are_the_papers_shares():
    table = score_table(RESULTS, FC6)
    params, both = row_of(table, "params"), row_of(table, "params_both")
    assert [cell.value for cell in params.cells] == [k * (512 + 1024) / (512 * 1024) for k in synthetic.RANKS]
    assert params.cells[0].text == "0.29"
    assert both.cells[-1].value == (256 * 1536 + 512 * 512) / (512 * (1024 + 512))
    assert params.kind is both.kind is RowKind.SCALE


def test_vgg19_fc6_at_rank_32_has_the_share_of_dalrs_table_3():
    vgg = dataclasses.replace(
        synthetic.layer("fc6", 4096, 25088, None, 0),
        score_curves=(ScoreCurve("svd", (ScorePoint(32, 32 * 29184, 32 * 29184, 0.1683),)),),
    )
    table = score_table(RESULTS, vgg)
    assert row_of(table, "params").cells[0].text == "0.91"
    assert row_of(table, "svd").cells[0].text == "16.83"


def test_the_uncompressed_line_and_the_best_of_each_column():
    table = score_table(RESULTS, FC6)
    assert {cell.value for cell in row_of(table, "uncompressed").cells} == {RESULTS.baseline_score}
    bodies = [row for row in table.rows if row.kind is RowKind.BODY]
    assert len(bodies) == len(Method)
    for index in range(len(table.columns)):
        column = [row.cells[index] for row in bodies]
        assert [cell.value for cell in column if cell.best] == [
            cell.value for cell in column if cell.value == max(cell.value for cell in column)
        ]


def better(curve):
    """The same networks, each a point better."""
    points = tuple(dataclasses.replace(point, score=point.score + 0.01) for point in curve.points)
    return dataclasses.replace(curve, points=points)


def test_fine_tuned_networks_stand_under_their_own_as_they_were():
    tuned = (better(FC6.score_curves[0]), better(FC6.score_curves[-1 - len(synthetic.HEADS)]))
    layer = dataclasses.replace(FC6, finetuned_curves=tuned)
    table, plain = score_table(RESULTS, layer), score_table(RESULTS, FC6)
    labels = [row.label for row in table.rows]
    assert [label for label in labels if "fine-tuned" in label] == ["SVD, fine-tuned", "MoMaSP (subset), fine-tuned"]
    for name, key in (("SVD", "svd"), ("MoMaSP (subset)", "momasp_subset")):
        assert labels.index(f"{name}, fine-tuned") == labels.index(name) + 1
        values = [(cell.value, cell.note) for cell in row_of(plain, key).cells]
        found = row_of(table, f"{key}_finetuned")
        assert [(cell.value, cell.note) for cell in found.cells] == [(value + 0.01, note) for value, note in values]
    assert "Fine-tuned: each network by itself" in table.footnote
    assert "Fine-tuned" not in plain.footnote


def test_without_low_rank_methods_the_columns_are_numbers_of_nodes():
    layer = dataclasses.replace(FC6, score_curves=FC6.score_curves[len(synthetic.LOW_RANK) :])
    table = score_table(RESULTS, layer)
    curve = layer.score_curves[2]
    assert table.corner.title == "nodes kept"
    assert [column.key for column in table.columns] == [str(point.size) for point in curve.points]
    assert [cell.value for cell in row_of(table, curve.method).cells] == [point.score for point in curve.points]
    assert row_of(table, "params_both").cells[0].value == curve.points[0].pair_parameters / layer.pair_parameters


def test_headline_table_holds_the_records_rows():
    table = headline_table(RESULTS, FC6)
    for row in FC6.headline:
        cells = row_of(table, row.method).cells
        if row.size is None:
            assert [(cell.text, cell.value, cell.span) for cell in cells] == [(NOT_REACHED, None, len(table.columns))]
            continue
        own = None if row.layer_parameters is None else row.layer_parameters / FC6.layer_parameters
        assert [cell.value for cell in cells] == [
            row.size,
            row.layer_parameters,
            own,
            row.pair_parameters,
            row.pair_parameters / FC6.pair_parameters,
            row.score,
            row.svd_ratio,
        ]
    assert {row.size is None for row in FC6.headline} == {True, False}, "the builder must give both kinds"


def test_headline_table_marks_the_best_ratio_of_each_family_and_never_svd():
    table = headline_table(RESULTS, FC6)
    for family in (Family.LOW_RANK, Family.SELECTION):
        rows = [row for row in FC6.headline if Method(row.method).family is family and row.method != "svd"]
        best = max(row.svd_ratio for row in rows if row.svd_ratio is not None)
        marked = {row.key for row in table.rows if row.method and row.method.family is family and row.cells[-1].best}
        assert marked == {row.method for row in rows if row.svd_ratio == best}
    assert not row_of(table, "svd").cells[-1].best
    heads = [row for row in table.rows if row.method and row.method.family is Family.HEADS]
    assert [row.cells[-1].text for row in heads] == [BLANK, BLANK]  # SVD of one layer is not the same
    assert heads[0].cells[0].text.startswith("heads of ")


def test_svd_is_never_marked_even_where_nothing_beats_it():
    rows = tuple(dataclasses.replace(row, svd_ratio=1.0) for row in FC6.headline[:3])
    table = headline_table(RESULTS, dataclasses.replace(FC6, headline=rows))
    assert [row.cells[-1].best for row in table.rows] == [False, True, True]


def test_headline_without_svd_has_no_ratios():
    rows = tuple(
        dataclasses.replace(row, svd_ratio=None)
        if row.method != "svd"
        else dataclasses.replace(
            row, size=None, layer_parameters=None, pair_parameters=None, score=None, svd_ratio=None
        )
        for row in FC6.headline
    )
    table = headline_table(RESULTS, dataclasses.replace(FC6, headline=rows))
    assert row_of(table, "svd").cells[0].text == NOT_REACHED
    assert row_of(table, "dalr_anchored").cells[-1].text == BLANK


def test_a_layer_without_consumer_has_no_columns_for_two_layers():
    layer = synthetic.layer("fc8", 48, 64, None, 0)
    keys = [column.key for column in headline_table(RESULTS, layer).columns]
    assert keys == ["size", "layer_parameters", "layer_share", "test_accuracy", "svd_ratio"]
    assert not [row for row in headline_table(RESULTS, layer).rows if row.kind is RowKind.GROUP]
    assert not [row for row in score_table(RESULTS, layer).rows if row.key == "params_both"]


def test_size_table_compares_with_the_first_network():
    table = size_table(RESULTS)
    before, after, last = RESULTS.sizes
    assert [cell.value for cell in row_of(table, after.label).cells] == [
        after.parameters,
        after.parameters / before.parameters,
        after.bytes,
        after.bytes / before.bytes,
        after.score,
        after.score - RESULTS.baseline_score,
    ]
    assert [cell.text for cell in row_of(table, last.label).cells][-2:] == [BLANK, BLANK]
    assert [row.kind for row in table.rows] == [RowKind.REFERENCE, RowKind.BODY, RowKind.BODY]


def test_networks_of_one_label_keep_their_own_rows():
    twins = (NetworkSize("net", 10, 100, 0.9), NetworkSize("net", 5, 60, 0.8))
    table = size_table(dataclasses.replace(RESULTS, sizes=twins))
    assert [row.kind for row in table.rows] == [RowKind.REFERENCE, RowKind.BODY]


def test_records_spread_cells_and_set_notes_below():
    records = score_table(RESULTS, FC7).records()
    assert len({len(line) for line in records}) == 1
    (kept,) = [line for line in records if line[0] == "spectral:nodes kept"]
    assert kept[1:] == [cell.note for cell in row_of(score_table(RESULTS, FC7), "spectral").cells]
    headline = headline_table(RESULTS, FC7).records()
    assert len({len(line) for line in headline}) == 1
    assert [line[0] for line in headline[1:]] == [method.value for method in Method]


def test_series_hold_every_number():
    tables = {table.name: table.records() for table in layer_series(FC6)}
    assert set(tables) == {"points", "domains", "errors", "activity", "spectra", "retention"}
    header, *lines = tables["errors"]
    for curve in FC6.error_curves:
        column = header.index(f"{curve.method}_heldout")
        assert [line[column] for line in lines] == list(curve.heldout)
    header, *lines = tables["spectra"]
    assert header == ["component", "weight", "weight_energy", "outputs", "outputs_energy"]
    for name in ("weight", "outputs"):
        values = getattr(FC6.spectra, name)
        assert [line[header.index(name)] for line in lines] == list(values)
        shares = np.cumsum(np.square(values)) / np.square(values).sum()
        assert [line[header.index(f"{name}_energy")] for line in lines] == pytest.approx(shares)
    assert [line[1] for line in tables["activity"][1:]] == list(FC6.activity[0].active_rate)
    assert tables["domains"][1:] == [[row.domain, row.rows, row.half_share] for row in FC6.activity]


def test_curves_of_different_length_are_padded_with_blanks():
    short = dataclasses.replace(FC7.error_curves[0], training=(1.0, 0.5), heldout=None)
    layer = dataclasses.replace(FC7, error_curves=(short, FC7.error_curves[1]))
    (errors,) = [table for table in layer_series(layer) if table.name == "errors"]
    _, *lines = errors.records()
    assert [line[1] for line in lines] == [1.0, 0.5] + [None] * (len(lines) - 2)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30))
def test_cumulative_energy_rises_to_one(values):
    energy = cumulative_energy(sorted(values, reverse=True))
    assert energy[-1] == 1.0
    assert list(energy) == sorted(energy)
    assert energy[0] == pytest.approx(max(values) ** 2 / sum(value**2 for value in values))


def test_cumulative_energy_of_nothing_is_empty():
    assert cumulative_energy([0.0, 0.0]) == ()


def test_an_unknown_method_is_named_with_the_layer_and_the_known_ones():
    layer = dataclasses.replace(FC6, score_curves=(ScoreCurve("svdd", FC6.score_curves[0].points),))
    with pytest.raises(InvalidInputError, match=r"layer 'fc6': method must be one of svd, .*; got 'svdd'"):
        score_table(RESULTS, layer)


def test_texts():
    assert count_text(1234567) == "1,234,567"
    assert ratio_text(3.999).startswith("4.00")
    assert [bytes_text(n) for n in (999, 1000, 3_268_120, 5 * 10**9, 7 * 10**12)] == [
        "999 bytes",
        "1.00 kB",
        "3.27 MB",
        "5.00 GB",
        "7.00 TB",
    ]
    assert [signed_points(x) for x in (0.0123, -0.008, 0.0, -0.000001)] == [
        "+1.23",
        "\N{MINUS SIGN}0.80",
        "0.00",
        "0.00",
    ]
