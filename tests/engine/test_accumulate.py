"""One verb for a network and for a store: the same layers, ready for the solvers, none read before it is asked for."""

import numpy as np
import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    LayerNotFoundError,
    StoreNotFoundError,
)
from dalr_stream.network.watch import watch
from dalr_stream.storage.records.stored_moments import open_moments


def build():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(128, 12), nn.ReLU(), nn.Linear(12, 3)
        ).eval()


BATCHES = torch.randn(120, 4, 6, 6, generator=torch.Generator().manual_seed(1)).split(40)
SHARDS = ds.Folding(shards=3)


def watched(model):
    return watch(model, ["0", "3"], example=BATCHES[0], outputs=["5"])


@pytest.fixture(params=["memory", "store", "rows"])
def statistics(request, tmp_path):
    model = build()
    layers = watched(model)
    if request.param == "memory":
        return ds.accumulate(model, BATCHES, layers, folding=SHARDS)
    if request.param == "store":
        return ds.accumulate(model, BATCHES, layers, store=tmp_path, folding=SHARDS)
    ds.capture(model, BATCHES, layers, tmp_path, domain="target")
    return ds.accumulate(tmp_path, folding=SHARDS)


def test_layers_bring_weights_and_every_moment_that_is_known(statistics):
    model = build()
    expected = accumulate_stream(model, BATCHES, watched(model), folding=SHARDS)
    assert list(statistics) == ["0", "3", "5"]
    assert "5@outputs" not in statistics
    dense = statistics["3"]
    weight, bias = model[3].weight.detach().numpy(), model[3].bias.detach().numpy()
    np.testing.assert_array_equal(dense.weight, weight)
    np.testing.assert_array_equal(dense.bias, bias)
    assert dense.inputs.same_bits(expected["3"])
    assert dense.heldout.same_bits(expected.heldout["3"])
    assert [part.count for part in dense.shards] == [part.count for part in expected.shards["3"]]
    assert dense.nodes.same_bits(expected["5"])
    assert dense.outputs is None
    assert dense.source_nodes is None
    last = statistics["5"]
    assert last.outputs.same_bits(expected["5@outputs"])
    assert last.inputs.same_bits(expected["5"])  # watched, as it reads the nodes of "3"
    assert last.nodes is None
    assert statistics.moments("5@outputs").same_bits(expected["5@outputs"])


def test_a_convolution_of_several_groups_is_one_layer(statistics):
    layer = statistics["0"]
    assert layer.weight.shape == (8, 18)
    assert [part.count for part in layer.inputs.parts] == [statistics.moments("0@group0").count] * 2
    assert len(layer.shards) == 3
    assert len(layer.heldout.parts) == 2
    assert ds.dalr(layer).at_rank(2).rank == 2


def test_what_is_solved_from_a_layer_is_what_is_solved_from_its_parts(statistics):
    model = build()
    moments = statistics.moments("3")
    weight, bias = ds.network.weights_of(model, "3")
    one, other = ds.dalr(statistics["3"]), ds.dalr(weight, bias, moments)
    np.testing.assert_array_equal(one.errors(moments), other.errors(moments))
    named = ds.solve(statistics["3"], "spectral")
    np.testing.assert_array_equal(named.order, ds.spectral(statistics.moments("5")).order)


def test_an_unknown_layer_is_named_with_those_there_are(statistics):
    with pytest.raises(LayerNotFoundError, match=r"there is no layer 'fc' among 0, 3, 5"):
        statistics["fc"]
    with pytest.raises(LayerNotFoundError, match=r"moments\('5@outputs'\) gives that stream"):
        statistics["5@outputs"]
    with pytest.raises(LayerNotFoundError, match="there are no moments of layer 'fc'"):
        statistics.moments("fc")


def test_records_in_a_store_are_read_when_they_are_asked_for_and_once(tmp_path, monkeypatch):
    model, read = build(), []
    statistics = ds.accumulate(model, BATCHES, watched(model), store=tmp_path)
    load = open_moments
    monkeypatch.setattr("dalr_stream.engine.layer_moments.open_moments", lambda path: read.append(path) or load(path))
    layer = statistics["3"]
    assert "3" in statistics
    assert repr(layer) == "Layer '3', 12 x 128, with inputs, heldout, nodes, readers"
    assert not read
    ds.spectral(layer)
    assert [path.parent.name for path in read] == ["5"]
    ds.spectral(layer)
    assert len(read) == 1
    assert layer.inputs is layer.inputs


def test_some_streams_of_a_store_alone(tmp_path):
    model = build()
    ds.capture(model, BATCHES, watched(model), tmp_path, domain="target")
    statistics = ds.accumulate(tmp_path, layers=["3"])
    assert list(statistics) == ["3"]
    assert statistics["3"].nodes is None  # what reads them was not accumulated


def test_weights_that_changed_since_are_refused():
    model = build()
    statistics = ds.accumulate(model, BATCHES, watched(model))
    with torch.no_grad():
        model[3].weight[0, 0] += 1.0
    assert statistics["0"].weight.shape == (8, 18)
    with pytest.raises(FingerprintMismatchError, match=r"layer '3': its weight or bias is not the one that its mom"):
        statistics["3"]


def test_weights_in_a_store_do_not_change_with_the_network(tmp_path):
    model = build()
    statistics = ds.accumulate(model, BATCHES, watched(model), store=tmp_path)
    before = statistics["3"].weight
    with torch.no_grad():
        model[3].weight.zero_()
    np.testing.assert_array_equal(statistics["3"].weight, before)


def test_arguments_of_the_other_source_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="is a store, and batches and rows can only be given with a network"):
        ds.accumulate(tmp_path, BATCHES, rows=ds.RowRule())
    with pytest.raises(InvalidInputError, match="a network needs its batches, and the layers from watch"):
        ds.accumulate(build())
    with pytest.raises(StoreNotFoundError, match="nowhere"):
        ds.accumulate(tmp_path / "nowhere")


def test_a_store_without_the_domain_names_those_it_has(tmp_path):
    model = build()
    ds.capture(model, BATCHES, watched(model), tmp_path, domain="birds")
    with pytest.raises(StoreNotFoundError, match="has no domain 'target': it has birds"):
        ds.accumulate(tmp_path)
