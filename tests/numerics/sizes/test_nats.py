"""Curves in nats: of factors and of selections one unit, which what is measured on rows and gradients confirms."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dalr_stream as ds
from dalr_stream.engine.sizes.forms import SolvedLayer, forms_of
from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.methods import Family
from dalr_stream.numerics.sizes.nats import by_nats, in_nats
from dalr_stream.numerics.sizes.shape import LayerShape
from dalr_stream.numerics.sizes.sized_layer import SizedLayer, cost
from dalr_stream.numerics.sizes.solved_layers import factor_layer, selection_layer, unchanged_layer
from dalr_stream.numerics.statistics.channels import NodeReader

pytestmark = pytest.mark.filterwarnings("ignore::dalr_stream.errors.ParameterIncreaseWarning")
M, D, READ, N = 12, 6, 4, 80


def drawn(draws=1):
    """A layer whose nodes one other reads; gradients of `draws` rows for each of theirs."""
    rng = np.random.default_rng(0)
    rows, nodes = rng.normal(size=(N, D)), np.maximum(rng.normal(size=(N, M)) @ rng.normal(size=(M, M)), 0.0)
    by_outputs, by_reader = rng.normal(size=(draws * N, M)) * 0.1, rng.normal(size=(draws * N, READ))
    reader = NodeReader("next", rng.normal(size=(READ, M, 1)), ds.Moments.of(by_reader, samples=N))
    layer = ds.Layer(
        "fc", rng.normal(size=(M, D)), None, ds.Moments.of(rows), nodes=ds.Moments.of(nodes),
        gradients=ds.Moments.of(by_outputs, samples=N), readers=(reader,),
    )  # fmt: skip
    return layer, rows, nodes, by_outputs, by_reader


def solved(layer, factors="dalr_weighted_affine", selection="spectral_weighted"):
    return SolvedLayer(
        LayerShape(M, D, READ), ds.solve(layer, factors), layer.inputs, ds.solve(layer, selection),
        gradients=layer.gradients, readers=layer.readers,
    )  # fmt: skip


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("selection", ["spectral", "spectral_weighted", "spectral_readers"])
def test_a_selections_nats_are_those_of_the_errors_at_its_readers(selection, draws):
    """1/2 E[(g'W e)^2] with e what the kept nodes leave of the others, g and e taken as independent."""
    layer, _, nodes, _, by_reader = drawn(draws)
    one = solved(layer, selection=selection)
    seen = by_reader @ layer.readers[0].weight[:, :, 0]
    assert one.nats_of_nodes[0] == pytest.approx(0.5 * np.mean((seen @ nodes.T) ** 2))
    for k in (1, 4, M):
        part = one.selection.at_size(k)
        error = nodes - nodes[:, part.kept] @ part.restore.T
        by_hand = 0.5 * np.mean((seen @ error.T) ** 2)
        assert one.nats_of_nodes[k] == pytest.approx(by_hand, rel=1e-8, abs=1e-12 * one.nats_of_nodes[0])


def test_both_families_have_curves_in_nats_and_the_weighted_ones_are_below():
    layer, *_ = drawn()
    shape = LayerShape(M, D, READ)
    for family in ("factored", "selected"):
        curves = {}
        for words, names in (("plain", ("dalr_anchored_affine", "spectral")), ("weighted", ())):
            one = solved(layer, *names)
            form = {
                "factored": lambda one=one: factor_layer("fc", one.factors, one.inputs, gradients=one.gradients),
                "selected": lambda one=one: selection_layer("fc", one.selection, shape, nats=one.nats_of_nodes),
            }[family]()
            assert (np.diff(form.nats) <= 0).all()
            assert form.nats[-1] == 0.0
            assert form.multiples_of(2).nats.shape == form.multiples_of(2).sizes.shape
            assert form.at_stake > form.nats[0]
            curves[words] = form.nats
        assert curves["weighted"][1] < curves["plain"][1]


def test_sizes_by_nats_need_them_of_every_layer_that_gets_smaller():
    layer, *_ = drawn()
    one = solved(layer)
    form = factor_layer("fc", one.factors, one.inputs, gradients=one.gradients)
    other = unchanged_layer("last", LayerShape(5, 5))
    assert [of.name for of in in_nats([form, other])] == ["fc", "last"]
    bare = factor_layer("fc", one.factors, one.inputs)
    assert in_nats([bare, other]) is None
    with pytest.raises(
        InvalidInputError, match="layer 'fc': what the loss feels of it is not known: give the gradient"
    ):
        by_nats([bare, other], 0.9)
    with pytest.raises(InvalidInputError, match=r"share that is kept must lie in \(0, 1\], got 1.5"):
        by_nats([form], 1.5)


curves = st.lists(
    st.tuples(st.lists(st.floats(0.0, 10.0), min_size=2, max_size=6), st.floats(1e-8, 1e4)), min_size=1, max_size=4
)


def layers_of(drawn_curves):
    """Layers of which what the loss feels falls from `nats`, over many magnitudes."""
    found = []
    for number, (nats, scale) in enumerate(drawn_curves):
        falling = scale * np.sort(np.array(nats))[::-1]
        shape = LayerShape(4 * len(nats) + number, 4 * len(nats))
        ranks = np.append(np.arange(1, len(nats)), shape.max_rank)
        losses = np.append(np.linspace(0.9, 0.1, ranks.size - 1), 0.0)
        felt = {"nats": np.append(falling[1:], 0.0), "at_stake": float(falling[0])}
        found.append(SizedLayer(f"{number}", shape, Family.LOW_RANK, ranks, losses, **felt))
    return found


@given(curves, st.floats(0.05, 1.0))
def test_enough_is_kept_and_no_layer_could_be_smaller_by_its_last_step_alone(drawn_curves, share):
    layers = layers_of(drawn_curves)
    sizes = by_nats(layers, share)
    felt = in_nats(layers)
    lost = sum(layer.loss(sizes[layer.name]) for layer in felt)
    assert lost <= 1.0 - share + 1e-11 * len(layers)
    smaller = [
        lost + layer.loss(layer.sizes[place - 1]) - layer.loss(layer.sizes[place])
        for layer in felt
        if (place := int(np.searchsorted(layer.sizes, sizes[layer.name])))
    ]
    assert not smaller or max(smaller) > 1.0 - share - 1e-11


@given(curves, st.floats(0.05, 1.0))
def test_no_other_sizes_that_keep_as_much_cost_less_by_more_than_one_layer(drawn_curves, share):
    """Against all combinations of sizes."""
    layers = layers_of(drawn_curves)
    felt = in_nats(layers)
    found = float(cost(felt, by_nats(layers, share)))
    least = np.inf
    for combination in itertools.product(*(layer.sizes for layer in felt)):
        if sum(layer.loss(size) for layer, size in zip(felt, combination, strict=True)) <= 1.0 - share:
            least = min(least, float(cost(felt, dict(zip((one.name for one in felt), combination, strict=True)))))
    assert found <= least + max(layer.shape.parameters for layer in felt)


@given(curves, st.floats(0.05, 1.0), st.floats(1e-6, 1e6))
def test_the_unit_of_the_loss_changes_nothing(drawn_curves, share, unit):
    layers = layers_of(drawn_curves)
    others = [replace(layer, nats=unit * layer.nats, at_stake=unit * layer.at_stake) for layer in layers]
    costs = [float(cost(of, by_nats(of, share))) for of in (layers, others)]
    assert costs[0] == pytest.approx(costs[1], rel=0.05)


def test_without_gradients_nothing_is_said_in_nats():
    layer, *_ = drawn()
    bare = SolvedLayer(LayerShape(M, D, READ), ds.dalr(layer), layer.inputs, ds.spectral(layer))
    (forms,) = forms_of({"fc": bare})
    assert forms.factored.nats is None
    assert bare.nats_of_nodes is None
    pruned = SolvedLayer(LayerShape(M, D), selection=ds.prune_by_mean(layer.nodes), readers=layer.readers)
    assert pruned.nats_of_nodes is None
