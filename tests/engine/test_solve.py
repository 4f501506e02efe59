"""Methods by name: each is the verb that it stands for, with the options of its name, to the bit."""

import dataclasses

import numpy as np
import pytest
import torch

import dalr_stream as ds
from dalr_stream.engine.solve import factor_by, select_by, solve
from dalr_stream.errors import InvalidInputError, UnsupportedLayerError
from dalr_stream.numerics.methods import DalrOptions, Family, Form, Method, Variant
from dalr_stream.numerics.metric import Metric
from dalr_stream.numerics.statistics.channels import NodeReader

M, D = 6, 5
RIDGE, STRENGTH = 1e-2, 2.0


def rows(seed, features):
    rng = np.random.default_rng(seed)
    return np.maximum(rng.normal(size=(40, features)) @ rng.normal(size=(features, features)) + 0.5, 0.0)


def layer(seed=0):
    rng = np.random.default_rng(7)
    nodes, gradients = ds.Moments.of(rows(seed + 1, M)), ds.Moments.of(rows(seed + 2, M))
    weight, bias = rng.normal(size=(M, D)), rng.normal(size=M)
    reader = NodeReader("fc7", rng.normal(size=(4, M, 1)), ds.Moments.of(rows(seed + 3, 4)))
    inputs = ds.Moments.of(rows(seed, D))
    return ds.Layer("fc6", weight, bias, inputs, nodes=nodes, gradients=gradients, readers=(reader,))


def by_hand(method, given, source):
    """What the name stands for, written out."""
    if method is Method.SVD or method is Method.SVD_BC:
        return ds.truncated_svd(given, compensate_bias=method is Method.SVD_BC)
    if method.family is Family.LOW_RANK:
        _, variant, *rest = method.value.split("_")
        affine, compensate = rest == ["affine"], rest == ["bc"]
        return ds.dalr(given, ridge=RIDGE, variant=variant, affine=affine, compensate_bias=compensate)
    plain = {
        Method.SPECTRAL: lambda: ds.spectral(given),
        Method.PRUNE_MEAN: lambda: ds.prune_by_mean(given),
        Method.PRUNE_MAX: lambda: ds.prune_by_max(given),
        Method.MOMASP_NODE: lambda: ds.momasp(given, source, form="node", strength=STRENGTH),
        Method.MOMASP_SUBSET: lambda: ds.momasp(given, source, form="subset", strength=STRENGTH),
        Method.SPECTRAL_READERS: lambda: ds.spectral(given, metric="readers"),
        Method.SPECTRAL_WEIGHTED: lambda: ds.spectral(given, metric="loss"),
        Method.MOMASP_WEIGHTED: lambda: ds.momasp(given, source, strength=STRENGTH, metric="loss"),
    }
    return plain[method]()


@pytest.mark.parametrize("method", [method for method in Method if method.family is not Family.HEADS])
def test_a_method_by_name_is_the_verb_it_stands_for(method):
    given, source = layer(), layer(10)
    solution, expected = (
        solve(given, method.value, source=source, ridge=RIDGE, strength=STRENGTH),
        by_hand(method, given, source),
    )
    assert solution.method is expected.method is method
    for field in dataclasses.fields(expected):
        if field.name not in ("method", "diagnostics"):
            np.testing.assert_array_equal(getattr(solution, field.name), getattr(expected, field.name))
    assert solution.diagnostics == expected.diagnostics


def test_the_table_of_methods_is_its_own_inverse():
    named = {method: method.dalr_options for method in Method if method.dalr_options is not None}
    assert {options.method for options in named.values()} == set(named)
    both = len(set(Variant) - {Variant.WEIGHTED}) * 2  # affine or not
    assert len(set(named.values())) == len(named) == both + 2  # published with BC, and weighted
    assert all(options.method is method for method, options in named.items())
    assert {method.form for method in Method} == {None, *Form}
    assert all(form.method.form is form for form in Form)
    assert DalrOptions.of("published", affine=None).method is Method.DALR_PUBLISHED
    assert {method for method in Method if method.takes_ridge} == set(named)
    plain = {method for method in Method if method.metric is Metric.NODES}
    assert {method for method in plain if method.needs_source} == {form.method for form in Form}
    assert {method.value for method in Method if method.needs_gradients} == {
        "dalr_weighted_affine", "spectral_weighted", "momasp_weighted", "heads_weighted",
    }  # fmt: skip


def test_what_a_method_cannot_do_is_refused_in_words():
    given = layer()
    cases = [
        (lambda: solve(given, "pca"), r"method must be one of 'svd', .* got 'pca'"),
        (lambda: solve(given, "heads"), r"layer 'fc6': 'heads' is solved from .* numerics\.head_factors"),
        (lambda: solve(given, "momasp_node"), "layer 'fc6': the moments of its channels on a source domain"),
        (lambda: solve(dataclasses.replace(given, nodes=None), "spectral"), "layer 'fc6': the moments of its channels"),
        (lambda: solve(dataclasses.replace(given, inputs=None), "svd_bc"), "layer 'fc6': the moments of the layer's"),
        (lambda: factor_by(Method.SPECTRAL, given.weight, None, given.inputs), "spectral: keeps nodes of a layer"),
        (lambda: select_by(Method.SVD, given.nodes, given.nodes), "svd: makes factor pairs"),
        (lambda: select_by(Method.MOMASP_NODE, given.nodes), "momasp_node: needs the moments of a source domain"),
        (lambda: select_by(Method.SPECTRAL_READERS, given.nodes), "spectral_readers: needs the weights of the layers"),
        (lambda: solve(given, "momasp_weighted"), "layer 'fc6': the moments of its channels on a source domain"),
    ]
    for call, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            call()


def test_a_number_as_the_ridge_of_a_choice_is_relative():
    assert ds.LayerChoice("dalr_anchored", 4, 0.1) == ds.LayerChoice("dalr_anchored", 4, ds.Ridge.relative(0.1))
    with pytest.raises(InvalidInputError, match=r"ridge must be a finite number >= 0, got -1\.0"):
        ds.LayerChoice("dalr_anchored", 4, -1.0)


def test_a_layer_knows_the_weights_that_read_its_nodes_also_from_a_store(tmp_path):
    torch.manual_seed(0)
    body = [torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 5, 3), torch.nn.ReLU(), torch.nn.Flatten()]
    model = torch.nn.Sequential(*body, torch.nn.Linear(5 * 4 * 4, 3)).eval()
    batches = [torch.randn(6, 2, 8, 8) for _ in range(2)]
    layers = ds.watch(model, ["0", "2"], example=batches[0])
    ds.accumulate(model, batches, layers, store=tmp_path / "store.zarr")
    for known in (ds.accumulate(model, batches, layers), ds.open_store(tmp_path / "store.zarr")):
        first, second = map(known.__getitem__ if isinstance(known, ds.Statistics) else known.layer, ("0", "2"))
        (conv,), (linear,) = first.readers, second.readers
        np.testing.assert_array_equal(conv.weight, model[2].weight.detach().flatten(2).numpy())
        np.testing.assert_array_equal(linear.weight, model[5].weight.detach().reshape(3, 5, 16).numpy())
        selection = ds.solve(first, "spectral_readers")
        assert selection.method is Method.SPECTRAL_READERS
        with pytest.raises(
            InvalidInputError, match="layer '0': its nodes are read by '2', whose gradients are not known"
        ):
            ds.solve(first, "spectral_weighted")


def test_a_selection_that_cannot_be_says_what_was_found_when_the_layer_was_watched(tmp_path):
    body = [torch.nn.Linear(4, 6), torch.nn.Softmax(-1), torch.nn.Linear(6, 3)]
    model = torch.nn.Sequential(*body).eval()
    batches = [torch.randn(20, 4)]
    layers = ds.watch(model, ["0"], example=batches[0])
    ds.accumulate(model, batches, layers, store=tmp_path / "store.zarr")
    for layer in (ds.accumulate(model, batches, layers)["0"], ds.open_store(tmp_path / "store.zarr").layer("0")):
        for method in ("spectral", "spectral_readers", "prune_mean"):
            with pytest.raises(UnsupportedLayerError, match="layer '0': its channels cannot be pruned: on the way to"):
                ds.solve(layer, method)
