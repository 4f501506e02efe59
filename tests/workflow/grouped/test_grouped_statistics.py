"""Groups of a convolution are watched and solved, and the saved network is that of their factors."""

import copy

import numpy as np
import pytest
import torch
from grouped_network import GROUPED, METHOD, ByHand, inputs, patches, read_by

import dalr_stream as ds
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.engine.stores.verify import verify_store
from dalr_stream.network.measure.profile import Stopwatch
from dalr_stream.network.surgery.compress import compress
from dalr_stream.workflow.results.results import results
from dalr_stream.workflow.steps.named_sizes import at_size

pytestmark = pytest.mark.filterwarnings("ignore::dalr_stream.errors.ParameterIncreaseWarning")  # full rank, on purpose


def test_groups_have_statistics_and_layers_have_names(project):
    store = StoreView.open(project.store)
    assert project.layers == store.layers == ("stem", "split", "line", "fc1", "fc2")
    groups = [f"{name}@group{number}" for name, count in GROUPED.items() for number in range(count)]
    assert [name for name in store.manifest.network.layers if "@group" in name] == groups
    for name, count in GROUPED.items():
        read = patches(project.network.get_submodule(name), read_by(project, name, inputs(project))).double()
        for number in range(count):
            rows = read[:, number].movedim(1, 2).flatten(0, 1).numpy()
            moments = store.moments("target", f"{name}@group{number}")
            assert moments.count == len(rows)
            np.testing.assert_allclose(moments.mean, rows.mean(axis=0), atol=1e-6)


def test_the_saved_network_is_that_of_the_factors_by_hand(project):
    store, x = StoreView.open(project.store), inputs(project)
    small, twin = ds.load(project.compressed, project.code.build), copy.deepcopy(project.network)
    for name, size in (("split", 3), ("line", 1), ("stem", 4)):
        module = twin.get_submodule(name)
        pair = store.solutions(name, [METHOD])[METHOD].at_rank(size)
        setattr(twin, name, ByHand(module, pair))
        groups = GROUPED.get(name, 1)
        assert [part.groups for part in small.get_submodule(name)] == [groups, groups]
        assert small.get_submodule(f"{name}.0").out_channels == groups * size
    twin.fc1, twin.fc2 = small.fc1, small.fc2
    with torch.inference_mode():
        torch.testing.assert_close(small(x), twin(x), rtol=1e-4, atol=1e-5)


def test_at_full_rank_the_outputs_are_the_originals(project):
    store, x = StoreView.open(project.store), inputs(project)
    solutions = {name: store.solutions(name, [METHOD])[METHOD] for name in (*GROUPED, "stem", "fc2")}
    assert [solutions[name].max_rank for name in GROUPED] == [6, 2]
    whole = compress(project.network, {name: at_size(one, one.max_rank, name, 0.0) for name, one in solutions.items()})
    with torch.inference_mode():
        torch.testing.assert_close(whole(x), project.network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", GROUPED)
def test_the_error_of_a_layer_is_that_of_all_its_groups(project, name):
    store, module = StoreView.open(project.store), project.network.get_submodule(name)
    read = read_by(project, name, inputs(project))
    curve = next(layer for layer in results(project).layers if layer.name == name).error_curves
    for method in (ds.Method.SVD, METHOD):
        found = next(one for one in curve if one.method == method.value).training
        solution = store.solutions(name, [method])[method]
        with torch.inference_mode():
            y = module(read)
            centred = y if module.bias is None else y - module.bias.reshape(-1, *[1] * (y.ndim - 2))
            for rank in range(1, solution.max_rank):
                gap = y - ByHand(module, solution.at_rank(rank))(read)
                assert found[rank] == pytest.approx(float(gap.norm() / centred.norm()), rel=1e-4)


def test_what_shares_a_layer_cannot_be_selected_and_says_so(project):
    said = {layer: StoreView.open(project.store).record(layer).unprunable for layer in project.layers}
    assert "it is a Conv2d of 2 groups" in said["split"]
    assert "'split', which reads them, is a Conv2d of 2 groups" in said["stem"]
    assert said["fc1"] == ""
    told = [line for line in results(project).decisions if "'split': its channels" in line]
    assert len(told) == 1


def test_the_store_is_whole_and_the_saved_network_says_what_its_layers_were(project):
    verify_store(project.store).require()
    readme = (project.compressed / "README.md").read_text()
    assert "| split | 12 x 36 | a pair, 6 x 36, 12 x 3 | 444 | 264 |" in readme


def test_a_profile_has_the_convolution_beside_its_pair(project):
    small, x = ds.load(project.compressed, project.code.build), inputs(project)
    found = ds.profile(project.network, small, x, batch_sizes=(1,), stopwatch=Stopwatch(turns=3, least_seconds=0.0))
    macs = {layer.name: (layer.macs_before, layer.macs_after) for layer in found.layers}
    assert macs["split"] == (432 * 16, 252 * 16)
    assert macs["line"] == (72 * 16, 44 * 16)
