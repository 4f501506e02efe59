"""A layer as one record: every solver takes it in place of its parts, to the bit, and says what it lacks."""

import dataclasses

import numpy as np
import pytest
from strategies import PLAIN_VARIANTS

from dalr_stream.errors import FewSamplesWarning, InvalidInputError, RankError
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.lowrank.from_rows import dalr_from_rows
from dalr_stream.numerics.lowrank.grouped import GroupedFactors, factors_of
from dalr_stream.numerics.lowrank.ridge import Ridge
from dalr_stream.numerics.lowrank.solvers import dalr, dalr_sweep
from dalr_stream.numerics.lowrank.truncated import truncated_svd
from dalr_stream.numerics.methods import Form, Variant
from dalr_stream.numerics.resampling.jackknife import jackknife_low_rank
from dalr_stream.numerics.resampling.ridge_choice import choose_ridge
from dalr_stream.numerics.selection.greedy import momasp, spectral
from dalr_stream.numerics.selection.ranking import prune_by_max, prune_by_mean
from dalr_stream.numerics.statistics.grouped import GroupedMoments
from dalr_stream.numerics.statistics.merging import merge_all
from dalr_stream.numerics.statistics.moments import Moments

M, D, N, SHARDS = 5, 7, 80, 4
GROUPS = 3
LOW_RANK_FIELDS = ("weight", "basis", "down", "center", "offset", "objective")
SELECTION_FIELDS = ("order", "factor", "retention", "center", "not_live")


def rows(seed, features, n=N):
    rng = np.random.default_rng(seed)
    return np.maximum(rng.normal(size=(n, features)) @ rng.normal(size=(features, features)) + 0.5, 0.0)


def layer(**changes):
    """A dense layer with all there is to know of it."""
    rng = np.random.default_rng(0)
    weight, bias, x = rng.normal(size=(M, D)), rng.normal(size=M), rows(1, D)
    shards = [Moments.of(part) for part in np.split(x, SHARDS)]
    known = {
        "inputs": merge_all(iter(shards)),
        "outputs": Moments.of(x @ weight.T + bias),
        "nodes": Moments.of(rows(2, M)),
        "source_nodes": Moments.of(rows(3, M)),
        "heldout": Moments.of(rows(4, D, 30)),
        "shards": shards,
    }
    return Layer("fc6", weight, bias, **{**known, **changes})


def grouped_layer():
    """A convolution of several groups."""
    rng = np.random.default_rng(5)
    inputs = GroupedMoments(tuple(Moments.of(rows(10 + number, D)) for number in range(GROUPS)))
    return Layer("conv", rng.normal(size=(GROUPS * M, D)), rng.normal(size=GROUPS * M), inputs)


def assert_same_factors(left, right):
    for one, other in zip(left.parts, right.parts, strict=True):
        for name in LOW_RANK_FIELDS:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        assert (one.method, one.diagnostics) == (other.method, other.diagnostics)


def assert_same_selection(left, right):
    for name in SELECTION_FIELDS:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
    assert (left.method, left.diagnostics) == (right.method, right.diagnostics)


@pytest.mark.parametrize("variant", PLAIN_VARIANTS)
@pytest.mark.parametrize("affine", [False, True])
def test_dalr_of_a_layer_is_dalr_of_its_parts(variant, affine):
    given = layer()
    options = {"ridge": 1e-2, "variant": variant, "affine": affine, "max_rank": 3}
    assert_same_factors(dalr(given, **options), dalr(given.weight, given.bias, given.inputs, **options))


def test_a_sweep_over_a_layer_is_a_sweep_over_its_parts():
    given, ridges = layer(), [1e-4, Ridge.absolute(3.0)]
    expected = dalr_sweep(given.weight, given.bias, given.inputs, ridges, variant="optimal")
    for left, right in zip(dalr_sweep(given, ridges=ridges, variant="optimal"), expected, strict=True):
        assert_same_factors(left, right)


@pytest.mark.parametrize("compensate_bias", [False, True])
def test_truncated_svd_of_a_layer_is_that_of_its_parts(compensate_bias):
    given = layer()
    expected = truncated_svd(given.weight, given.bias, given.inputs, compensate_bias=compensate_bias)
    assert_same_factors(truncated_svd(given, compensate_bias=compensate_bias), expected)


def test_the_weight_alone_is_enough_for_truncated_svd():
    given = layer()
    bare = Layer("fc6", given.weight, None)
    assert_same_factors(truncated_svd(bare), truncated_svd(given.weight, None))


def test_outputs_decide_where_they_are_all_that_is_known_and_where_they_are_asked_for():
    given = layer()
    expected = dalr(given.weight, given.bias, given.outputs, side="outputs")
    assert_same_factors(dalr(layer(inputs=None, heldout=None)), expected)
    assert_same_factors(dalr(given, side="outputs"), expected)
    assert expected.diagnostics.source == "outputs" != dalr(given).diagnostics.source


def test_each_group_of_a_layer_is_solved_by_itself():
    given = grouped_layer()
    groups = zip(np.split(given.weight, GROUPS), np.split(given.bias, GROUPS), given.inputs.parts, strict=True)
    factors = dalr(given, ridge=1e-2)
    assert isinstance(factors, GroupedFactors)
    assert_same_factors(factors, factors_of([dalr(*group, ridge=1e-2) for group in groups]))
    assert [part.name for part in given.parts] == ["conv@group0", "conv@group1", "conv@group2"]


@pytest.mark.parametrize("select", [spectral, prune_by_mean, prune_by_max])
def test_a_selection_of_a_layer_is_one_of_its_nodes(select):
    assert_same_selection(select(layer()), select(layer().nodes))


@pytest.mark.parametrize("form", list(Form))
def test_momasp_takes_the_source_as_a_layer_as_moments_or_from_the_layer_itself(form):
    given = layer()
    source = Layer("fc6", given.weight, None, nodes=given.source_nodes)
    expected = momasp(given.nodes, given.source_nodes, form=form)
    for selection in (
        momasp(given, source, form=form),
        momasp(given, source.nodes, form=form),
        momasp(given, form=form),
    ):
        assert_same_selection(selection, expected)


def test_a_ridge_is_chosen_by_the_layers_heldout_rows_and_by_its_shards_where_there_are_none():
    given = layer()

    def solve(moments, ridge):
        return dalr(given.weight, given.bias, moments, ridge=ridge, variant="optimal", affine=False)

    options = {"variant": "optimal", "affine": False, "grid": [1e-4, 1e-2, 1.0], "rank": 2}
    common = {key: options[key] for key in ("grid", "rank")}
    assert choose_ridge(given, **options) == choose_ridge(solve, given.inputs, heldout=given.heldout, **common)
    alone = dataclasses.replace(given, heldout=None)
    assert choose_ridge(alone, **options) == choose_ridge(solve, shards=given.shards, **common)


def test_choosing_a_ridge_for_a_layer_does_not_warn_of_few_rows_at_every_ridge(recwarn):
    few = Moments.of(rows(1, D, 4))
    choose_ridge(layer(inputs=few, shards=()), variant="optimal")
    assert not [warning for warning in recwarn if warning.category is FewSamplesWarning]


def test_the_jackknife_of_a_layer_is_that_of_its_shards_and_heldout_rows():
    given = layer()
    expected = jackknife_low_rank(given.shards, lambda moments: dalr(given.weight, given.bias, moments), given.heldout)
    found = jackknife_low_rank(given, dalr)
    for field in dataclasses.fields(expected):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name), err_msg=field.name)


def test_a_number_is_a_relative_ridge_wherever_one_is_asked_for():
    given, x = layer(), [rows(1, D)]
    parts = given.weight, given.bias
    for number in (1e-2, 0, np.float32(0.5)):
        ridge = Ridge.relative(number)
        assert_same_factors(dalr(given, ridge=number), dalr(given, ridge=ridge))
        assert_same_factors(dalr(*parts, given.inputs, ridge=number), dalr(*parts, given.inputs, ridge=ridge))
        assert_same_factors(dalr_from_rows(*parts, x, ridge=number), dalr_from_rows(*parts, x, ridge=ridge))
        assert_same_factors(
            dalr_sweep(given, ridges=[number, 1.0])[0], dalr_sweep(given, ridges=[ridge, Ridge.relative(1.0)])[0]
        )


def test_enums_are_taken_by_their_values_and_others_are_refused_with_a_list():
    given = layer()
    assert_same_factors(dalr(given, variant="published"), dalr(given, variant=Variant.PUBLISHED))
    assert_same_selection(momasp(given, form="subset"), momasp(given, form=Form.SUBSET))
    cases = [
        (lambda: dalr(given, variant="anchor"), "'published', 'optimal', 'anchored', 'weighted', got 'anchor'"),
        (
            lambda: dalr_sweep(given, ridges=[1.0], variant="anchor"),
            "'published', 'optimal', 'anchored', 'weighted', got 'anchor'",
        ),
        (lambda: choose_ridge(given, variant="anchor"), "'published', 'optimal', 'anchored', 'weighted', got 'anchor'"),
        (lambda: momasp(given, form="edge"), "form must be one of 'node', 'subset', got 'edge'"),
        (lambda: dalr(given, side="input"), "side must be one of 'inputs', 'outputs', .* got 'input'"),
    ]
    for call, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            call()


def test_what_a_layer_lacks_is_named_with_the_layer():
    bare = Layer("fc6", np.eye(3), None)
    empty = Layer("fc6", np.eye(3), None, Moments.empty(3))
    cases = [
        (lambda: dalr(bare), "layer 'fc6': the moments of the layer's inputs are needed, got none"),
        (lambda: dalr(bare, side="outputs"), "layer 'fc6': the moments of the layer's outputs are needed, got none"),
        (lambda: dalr(empty), "layer 'fc6': moments must come from at least one row"),
        (lambda: truncated_svd(bare, compensate_bias=True), "layer 'fc6': the moments of the layer's inputs"),
        (lambda: spectral(bare), "layer 'fc6': the moments of its channels are needed but not known"),
        (lambda: momasp(layer(source_nodes=None)), "layer 'fc6': the moments of its channels on a source domain"),
        (lambda: momasp(layer().nodes), "momasp compares two domains"),
        (lambda: choose_ridge(bare), "layer 'fc6': a ridge is chosen on held-out rows, or on at least two shards"),
        (lambda: jackknife_low_rank(bare, dalr), "at least two shards, got 0"),
        (lambda: dalr(layer(), None, layer().inputs), "layer 'fc6': has a bias and moments of its own"),
        (lambda: dalr(Layer("fc6", np.full((3, 3), np.nan), None, empty.inputs)), "layer 'fc6': weight must be finite"),
    ]
    for call, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            call()
    with pytest.raises(RankError, match="layer 'fc6': max_rank must be a whole number >= 1, got 0"):
        dalr(layer(), max_rank=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": Moments.of(rows(0, D + 1))}, f"inputs must have {D} features .* got {D + 1}"),
        ({"heldout": Moments.of(rows(0, M))}, f"heldout must have {D} features .* got {M}"),
        ({"outputs": Moments.of(rows(0, D))}, f"outputs must have {M} features .* got {D}"),
        ({"nodes": Moments.of(rows(0, D))}, f"nodes must have {M} features .* got {D}"),
        ({"source_nodes": Moments.of(rows(0, D))}, f"source_nodes must have {M} features .* got {D}"),
        ({"gradients": Moments.of(rows(0, D))}, f"gradients must have {M} features .* got {D}"),
        ({"weight": np.ones(D)}, r"weight must be a matrix of outputs x inputs, got shape \(7,\)"),
        ({"bias": np.ones(D)}, r"bias must have 5 entries, one per output, got shape \(7,\)"),
    ],
)
def test_parts_that_do_not_fit_the_weight_are_refused_when_the_layer_is_made(changes, message):
    with pytest.raises(InvalidInputError, match=f"layer 'fc6': {message}"):
        dataclasses.replace(layer(), **changes)


def test_outputs_that_do_not_split_into_the_groups_of_the_inputs_are_refused():
    inputs = GroupedMoments((Moments.of(rows(0, D)), Moments.of(rows(1, D))))
    with pytest.raises(InvalidInputError, match="layer 'conv': 5 outputs cannot be split into 2 groups"):
        Layer("conv", np.ones((M, D)), None, inputs)


def test_gradients_are_given_for_each_group_and_go_with_it():
    by_outputs = [Moments.of(rows(20 + number, M)) for number in range(GROUPS)]
    given = dataclasses.replace(grouped_layer(), gradients=GroupedMoments(tuple(by_outputs)))
    assert [part.gradients for part in given.parts] == by_outputs
    assert given.with_inputs(given.inputs).gradients is given.gradients
    with pytest.raises(InvalidInputError, match=f"layer 'conv': gradients must be given for each of its {GROUPS} "):
        dataclasses.replace(given, gradients=Moments.of(rows(20, GROUPS * M)))


def test_a_layer_without_gradients_says_what_to_do_where_they_are_asked_for():
    with pytest.raises(InvalidInputError, match=r"layer 'fc6': .* gradients are needed .* watch\(..., gradients="):
        _ = layer().known_gradients


def test_other_inputs_leave_nothing_else_known_that_might_not_belong_to_them():
    given, other = layer(), Moments.of(rows(9, D))
    changed = given.with_inputs(other)
    assert changed.name == "fc6"
    assert changed.weight is given.weight
    assert changed.bias is given.bias
    assert changed.inputs is other
    assert (changed.outputs, changed.nodes, changed.source_nodes, changed.heldout) == (None,) * 4
    assert changed.shards == ()
