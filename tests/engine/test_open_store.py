"""A finished run's store, opened without the network: layers, domains, moments and solutions, or what there is."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import InvalidInputError, LayerNotFoundError, StoreNotFoundError
from dalr_stream.network.watch import watch
from dalr_stream.storage.records.solutions import save_solution

DOMAINS = {"target": 0.0, "source": 1.0}


def build():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def batches(shift):
    return (torch.randn(200, 6, generator=torch.Generator().manual_seed(1)) + shift).split(50)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root, model = tmp_path_factory.mktemp("store") / "birds.zarr", build()
    layers = watch(model, ["0"], example=batches(0.0)[0])
    folding = ds.Folding(ds.HoldoutRule(share=0.2, seed=3))
    for domain, shift in DOMAINS.items():
        ds.capture(model, batches(shift), layers, root, domain=domain)
        ds.accumulate(root, domain=domain, folding=folding)
    layer = ds.open_store(root).layer("0", source="source")
    for method in ("dalr_anchored_affine", "momasp_node"):
        save_solution(root, "0", ds.solve(layer, method), {})
    return root


@pytest.fixture
def store(root):
    return ds.open_store(root)


def test_it_says_what_there_is(store):
    assert store.layers == ("0", "2")
    assert store.domains == ("target", "source")
    assert store.methods("0") == (ds.Method.DALR_ANCHORED_AFFINE, ds.Method.MOMASP_NODE)
    assert store.methods("2") == ()
    assert repr(store).startswith("<store '")
    assert "target (200 samples, 2 layers, 2 with moments)" in repr(store)
    assert "<table>" in store._repr_html_()


def test_a_layer_of_two_domains_is_what_accumulating_each_gives(store):
    model = build()
    layers = watch(model, ["0"], example=batches(0.0)[0])
    folding = ds.Folding(ds.HoldoutRule(share=0.2, seed=3))
    target, source = (ds.accumulate(model, batches(shift), layers, folding=folding)["0"] for shift in DOMAINS.values())
    layer = store.layer("0", target="target", source="source")
    assert layer.inputs.same_bits(target.inputs)
    assert layer.heldout.same_bits(target.heldout)
    assert layer.nodes.same_bits(target.nodes)
    assert layer.source_nodes.same_bits(source.nodes)
    assert store.layer("0", target="source").inputs.same_bits(source.inputs)
    expected = ds.momasp(target, source)
    np.testing.assert_array_equal(ds.solve(layer, "momasp_node").order, expected.order)
    np.testing.assert_array_equal(store.solution("0", "momasp_node").order, expected.order)


def test_moments_of_a_domain_by_stream(store):
    moments = store.moments("target")
    assert set(moments) == {"0", "2"}
    assert moments["0"].same_bits(store.layer("0").inputs)
    assert moments.heldout["0"].count + moments["0"].count == 200
    assert not moments.shards


def test_a_solution_is_what_was_saved(store):
    factors = store.solution("0", ds.Method.DALR_ANCHORED_AFFINE)
    expected = ds.dalr(store.layer("0")).at_rank(3)
    np.testing.assert_array_equal(factors.at_rank(3).up, expected.up)
    np.testing.assert_array_equal(factors.at_rank(3).down, expected.down)


def test_rows_are_those_that_the_moments_are_of(store):
    rows = np.concatenate(list(store.rows("0")))
    assert len(rows) == store.layer("0").inputs.count < 200
    np.testing.assert_allclose(rows.mean(axis=0), store.layer("0").inputs.mean, rtol=1e-6)
    assert len(np.concatenate(list(store.rows("0", holdout=ds.HoldoutRule(0.0))))) == 200


def test_it_is_verified(store):
    store.verify().require()


@pytest.mark.parametrize(
    ("ask", "error", "words"),
    [
        (lambda store: store.layer("fc9"), LayerNotFoundError, "there is no layer 'fc9': there is 0, 2"),
        (
            lambda store: store.layer("0", target="birds"),
            StoreNotFoundError,
            "no domain 'birds': there is target, source",
        ),
        (lambda store: store.layer("0", source="birds"), StoreNotFoundError, "no domain 'birds'"),
        (lambda store: store.moments("birds"), StoreNotFoundError, "no domain 'birds': there is target, source"),
        (lambda store: store.rows("0", domain="birds"), StoreNotFoundError, "no domain 'birds'"),
        (lambda store: store.rows("fc9"), StoreNotFoundError, "has no layer 'fc9' on 'target': it has 0, 2"),
        (lambda store: store.methods("fc9"), LayerNotFoundError, "no layer 'fc9'"),
        (
            lambda store: store.solution("0", "svd"),
            StoreNotFoundError,
            "no solution of layer '0' by 'svd': there is dalr_anchored_affine, momasp_node",
        ),
        (lambda store: store.solution("2", "svd"), StoreNotFoundError, "by 'svd': there is none yet"),
        (lambda store: store.solution("0", "dalr"), InvalidInputError, "method must be one of"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(store, ask, error, words):
    with pytest.raises(error, match=words):
        ask(store)


def test_no_store_at_all(tmp_path):
    with pytest.raises(StoreNotFoundError, match="birds"):
        ds.open_store(tmp_path / "birds.zarr")


def test_everything_is_read_and_solved_without_torch(root):
    code = f"""
import sys
import dalr_stream as ds
store = ds.open_store({str(root)!r})
layer = store.layer("0", source="source")
assert ds.dalr(layer, ridge=1e-2).at_rank(3).rank == 3
assert ds.solve(layer, "momasp_node").order.size == 8
assert store.solution("0", "dalr_anchored_affine").at_rank(3).rank == 3
assert store.moments("source")["2"].count
store.verify().require()
ds.accumulate({str(root)!r})
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
