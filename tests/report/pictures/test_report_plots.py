"""Figures draw the record's numbers, each method always in its own colour and marker."""

import dataclasses
import itertools

import matplotlib as mpl
import numpy as np
import pytest
import synthetic_results as synthetic
from matplotlib.colors import to_hex, to_rgb

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.methods import Method
from dalr_stream.report.pictures import plots
from dalr_stream.report.pictures.figures import Drawn, LeftOut, layer_figures
from dalr_stream.report.style import LOOKS, PAPER, drawing, inks

RESULTS = synthetic.results()
FC6, FC7 = RESULTS.layers
ALONE = dataclasses.replace(
    synthetic.layer("alone", 48, 64, None, 0, heldout=False),
    activity=synthetic.layer("alone", 48, 64, None, 0).activity[1:],
)


@pytest.fixture(autouse=True)
def settings():
    with drawing():
        yield


def lines_of(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def data_of(axes, label):
    line = lines_of(axes)[label]
    return list(line.get_xdata()), list(line.get_ydata())


def texts_of(figure):
    return [text.get_text() for text in figure.texts]


def test_activation_rates_and_where_half_of_them_ends():
    figure = plots.activation_rates(FC6)
    (axes,) = figure.axes
    for domain in FC6.activity:
        x, y = data_of(axes, f"{domain.domain} ({domain.rows:,} samples)")
        assert x == list(range(1, 1025))
        assert y == [100 * rate for rate in domain.active_rate]
        half = lines_of(axes)[f"{domain.domain} half"]
        assert half.get_xdata()[0] == domain.half_share * 1024
        assert any(f"{100 * domain.half_share:.1f} % of inputs" in text for text in texts_of(figure))


def test_reconstruction_errors_dashed_on_training_rows_solid_on_held_out_ones():
    (axes,) = plots.reconstruction_errors(FC6).axes
    assert axes.get_yscale() == axes.get_xscale() == "log"
    for curve in FC6.error_curves:
        label = Method(curve.method).label
        assert data_of(axes, f"{label} training") == (list(range(1, 513)), list(curve.training[1:]))
        assert data_of(axes, f"{label} held-out") == (list(range(1, 513)), list(curve.heldout[1:]))
        assert lines_of(axes)[f"{label} training"].get_linestyle() == "--"
        assert lines_of(axes)[f"{label} held-out"].get_linestyle() == "-"


def test_reconstruction_errors_without_held_out_rows():
    figure = plots.reconstruction_errors(ALONE)
    assert set(lines_of(figure.axes[0])) == {f"{Method(c.method).label} training" for c in ALONE.error_curves}
    assert "held out" not in texts_of(figure)


def test_errors_of_one_magnitude_stay_on_a_linear_axis_from_zero():
    flat = dataclasses.replace(FC6.error_curves[0], training=(1.0, 0.8, 0.5), heldout=(1.0, 0.9, 0.7))
    layer = dataclasses.replace(FC6, error_curves=(flat,))
    (axes,) = plots.reconstruction_errors(layer).axes
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim()[0] == 0
    assert plots.errors_below_axis(layer) is None


def test_the_axis_of_errors_says_where_it_cuts():
    (axes,) = plots.reconstruction_errors(FC6).axes
    assert axes.get_ylim()[0] == plots.errors_below_axis(FC6)
    assert min(FC6.error_curves[0].training) < plots.errors_below_axis(FC6)


@pytest.mark.parametrize("layer", RESULTS.layers, ids=lambda layer: layer.name)
def test_accuracy_against_both_layers(layer):
    upper, lower = sorted(
        plots.score_against_pair(RESULTS, layer).axes, key=lambda axes: axes.get_position().y0, reverse=True
    )
    for axes in (upper, lower):
        assert len(layer.score_curves) == len(Method)
        for curve in layer.score_curves:
            x, y = data_of(axes, Method(curve.method).label)
            assert x == [100 * point.pair_parameters / layer.pair_parameters for point in curve.points]
            assert y == [100 * point.score for point in curve.points]
        assert set(data_of(axes, "uncompressed")[1]) == {100 * RESULTS.baseline_score}
        assert axes.get_xscale() == "log"
        (band,) = axes.patches
        assert band.get_y() == pytest.approx(100 * (RESULTS.baseline_score - layer.drop))
        assert band.get_height() == pytest.approx(100 * layer.drop)
    accuracies = [100 * point.score for curve in layer.score_curves for point in curve.points]
    assert lower.get_ylim()[0] < min(accuracies) < upper.get_ylim()[0]
    assert max(accuracies) < upper.get_ylim()[1]


def test_accuracy_against_the_layer_has_low_rank_methods_only_and_brackets_the_headline():
    figure = plots.score_against_layer(RESULTS, FC6)
    rows = {row.method: row for row in FC6.headline}
    ends = [100 * rows[name].layer_parameters / FC6.layer_parameters for name in ("dalr_anchored_affine", "svd")]
    drawn = {line.get_xdata()[0] for axes in figure.axes for line in axes.get_lines() if line.get_label() == "headline"}
    assert drawn == set(ends)
    labels = {label for axes in figure.axes for label in lines_of(axes)}
    assert labels == {method.label for method in synthetic.LOW_RANK} | {"uncompressed", "headline"}
    for curve in FC6.score_curves[: len(synthetic.LOW_RANK)]:
        x, _ = data_of(figure.axes[0], Method(curve.method).label)
        assert x == [100 * point.layer_parameters / FC6.layer_parameters for point in curve.points]


def test_no_bracket_where_svd_is_not_reached():
    rows = tuple(dataclasses.replace(row, size=None) if row.method == "svd" else row for row in FC6.headline)
    layer = dataclasses.replace(FC6, headline=rows)
    figure = plots.score_against_layer(RESULTS, layer)
    assert not plots.bracketed(layer)
    assert "headline" not in lines_of(figure.axes[0])


def test_spectra_relative_to_the_largest_and_their_energy():
    left, right = plots.spectra(FC6).axes
    for name, values in (("weight W", FC6.spectra.weight), ("outputs Z", FC6.spectra.outputs)):
        squares = np.square(values)
        assert data_of(left, name)[1] == pytest.approx(list(np.array(values) / values[0]))
        assert data_of(right, name)[1] == pytest.approx(list(100 * np.cumsum(squares) / squares.sum()))


def test_spectra_say_how_many_components_carry_the_energy():
    squares = np.square(FC6.spectra.outputs)
    needed = int(np.searchsorted(np.cumsum(squares), 0.99 * squares.sum())) + 1
    assert f"99 % of energy in the first {needed}" in texts_of(plots.spectra(FC6))


def test_retention_against_nodes_kept():
    (axes,) = plots.retention(FC7).axes
    for curve in FC7.retention_curves:
        x, y = data_of(axes, Method(curve.method).label)
        assert x == list(range(1, 513))
        assert y == [100 * value for value in curve.retention]
    heights = axes.transData.transform([(1, level) for level in (0, 90, 99, 99.9)])[:, 1]
    assert np.diff(heights) == pytest.approx([heights[1] - heights[0]] * 3)


def test_a_method_looks_the_same_in_every_figure():
    seen: dict[str, set[tuple[str, str]]] = {}
    figures = [
        plots.reconstruction_errors(FC7),
        plots.score_against_pair(RESULTS, FC7),
        plots.score_against_layer(RESULTS, FC7),
        plots.retention(FC7),
    ]
    for axes in itertools.chain.from_iterable(figure.axes for figure in figures):
        for label, line in lines_of(axes).items():
            for method in Method:
                if label in (method.label, f"{method.label} held-out"):
                    seen.setdefault(method, set()).add((line.get_color(), line.get_marker()))
    assert seen == {method: {(LOOKS[method].ink.light, LOOKS[method].marker)} for method in Method}


def test_legends_name_every_method_drawn():
    texts = texts_of(plots.score_against_pair(RESULTS, FC6))
    assert [text for text in texts if text in {m.label for m in Method}] == [method.label for method in Method]


def test_legend_keys_are_not_clipped_away_by_the_axes_they_were_copied_from():
    figure = plots.activation_rates(FC6)
    keys = [artist for artist in figure.artists + figure.lines if artist.get_label() in lines_of(figure.axes[0])]
    assert len(keys) == len(FC6.activity)
    assert all(key.get_clip_box() is None for key in keys)


def test_missing_pieces_are_left_out_with_a_reason():
    entries = {entry.name: entry for entry in layer_figures(RESULTS, ALONE)}
    assert {name for name, entry in entries.items() if isinstance(entry, LeftOut)} == {"score_both", "retention"}
    assert "no next layer" in entries["score_both"].reason
    assert "No rows were held out" in entries["errors"].caption
    assert "Only one domain" in entries["activity"].caption


def test_a_layer_of_which_nothing_was_measured_has_no_figure():
    bare = dataclasses.replace(
        FC6,
        activity=(),
        error_curves=(),
        score_curves=(),
        retention_curves=(),
        spectra=dataclasses.replace(FC6.spectra, weight=(0.0,), outputs=()),
        headline=(),
    )
    entries = list(layer_figures(RESULTS, bare))
    assert all(isinstance(entry, LeftOut) and entry.reason.endswith(".") for entry in entries)
    assert len(entries) == 6
    for draw in (plots.activation_rates, plots.reconstruction_errors, plots.spectra, plots.retention):
        with pytest.raises(InvalidInputError, match="layer 'fc6'"):
            draw(bare)
    for draw in (plots.score_against_layer, plots.score_against_pair):
        with pytest.raises(InvalidInputError, match="layer 'fc6'"):
            draw(RESULTS, bare)


def test_a_factor_pair_without_its_own_parameters_is_an_error():
    point = dataclasses.replace(FC6.score_curves[0].points[0], layer_parameters=None)
    curve = dataclasses.replace(FC6.score_curves[0], points=(point,))
    with pytest.raises(InvalidInputError, match="layer_parameters"):
        plots.score_against_layer(RESULTS, dataclasses.replace(FC6, score_curves=(curve,)))


def test_captions_name_the_papers_and_every_figure_is_drawn():
    entries = list(layer_figures(RESULTS, FC6))
    assert all(isinstance(entry, Drawn) for entry in entries)
    assert [entry.name for entry in entries] == [
        "score",
        "score_both",
        "errors",
        "activity",
        "spectra",
        "retention",
    ]
    assert all("DALR" in entry.caption or "MoMaSP" in entry.caption for entry in entries)


def test_drawing_ignores_the_users_settings_and_gives_them_back():
    with mpl.rc_context({"font.size": 23.0}):
        with drawing():
            assert mpl.rcParams["font.size"] == 9.0
        assert mpl.rcParams["font.size"] == 23.0


def test_no_two_entries_of_the_palette_share_a_colour():
    for scheme in ("light", "dark"):
        colors = [getattr(ink, scheme) for ink in inks().values()]
        assert len(set(colors)) == len(colors)
        assert all(color == to_hex(color) for color in colors)


# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(color):
    channel = np.array(to_rgb(color))
    return np.where(channel <= 0.04045, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    relative = XYZ @ np.clip(rgb, 0, 1) / [0.9505, 1.0, 1.089]
    root = np.where(relative > 0.008856, np.cbrt(relative), 7.787 * relative + 16 / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_emphasised_methods_differ_for_colour_blind_readers(scheme, deficiency):
    seen = [
        lab(np.array(DEFICIENCIES[deficiency]) @ linear(getattr(look.ink, scheme)))
        for look in LOOKS.values()
        if look.emphasised
    ]
    assert len(seen) == 6
    nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))
    assert nearest > 11, "a CIE76 difference above 10 is seen at a glance"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_curve_stands_out_from_the_paper(scheme):
    def luminance(ink):
        return float(XYZ[1] @ linear(getattr(ink, scheme)))

    for method, look in LOOKS.items():
        dim, bright = sorted([luminance(look.ink), luminance(PAPER)])
        assert (bright + 0.05) / (dim + 0.05) > (3.0 if look.emphasised else 2.2), method
