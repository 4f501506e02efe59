"""Curves in nats: of factors and of selections one unit, which what is measured on rows and gradients confirms."""

import numpy as np
import pytest

import dalr_stream as ds
from dalr_stream.engine.sizes.choice import by_nats
from dalr_stream.engine.sizes.forms import SolvedLayer, forms_of
from dalr_stream.numerics.sizes.shape import LayerShape
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
    for k in (1, 4, M):
        part = one.selection.at_size(k)
        error = nodes - nodes[:, part.kept] @ part.restore.T
        by_hand = 0.5 * np.mean((seen @ error.T) ** 2)
        assert one.nats_of_nodes[k - 1] == pytest.approx(by_hand, rel=1e-8, abs=1e-12 * one.nats_of_nodes[0])


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
            assert (form.in_nats().losses == form.nats).all()
            curves[words] = form.nats
        assert curves["weighted"][1] < curves["plain"][1]


def test_sizesby_nats_need_them_of_every_layer_that_gets_smaller():
    layer, *_ = drawn()
    one = solved(layer)
    form = factor_layer("fc", one.factors, one.inputs, gradients=one.gradients)
    other = unchanged_layer("last", LayerShape(5, 5))
    assert set(by_nats([form, other], 100.0)) == {"fc", "last"}
    assert by_nats([factor_layer("fc", one.factors, one.inputs), other], 100.0) is None


def test_without_gradients_nothing_is_said_in_nats():
    layer, *_ = drawn()
    bare = SolvedLayer(LayerShape(M, D, READ), ds.dalr(layer), layer.inputs, ds.spectral(layer))
    (forms,) = forms_of({"fc": bare})
    assert forms.factored.nats is None
    assert bare.nats_of_nodes is None
    pruned = SolvedLayer(LayerShape(M, D), selection=ds.prune_by_mean(layer.nodes), readers=layer.readers)
    assert pruned.nats_of_nodes is None
