"""The same rows are counted once, in whatever batches they were captured; rows that only look alike are added."""

import pytest
import torch
from capture_jobs import LAYERS, network

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_into
from dalr_stream.engine.stores.merge import merge
from dalr_stream.errors import InvalidInputError
from dalr_stream.storage.removal import delete_activations

pytestmark = pytest.mark.usefixtures("low_tiles")
ALL = torch.randn(2000, 12, generator=torch.Generator().manual_seed(7))


def captured(root, rows, size, *, folding=None, directly=False, model=None):
    model = model or network()
    layers, batches = ds.network.select_layers(model, LAYERS), list(rows.split(size))
    if directly:
        accumulate_into(root, model, batches, layers, domain="target", folding=folding)
        return root
    ds.capture(model, batches, layers, root, domain="target")
    ds.accumulate(root, domain="target", folding=folding)
    return root


@pytest.mark.parametrize("routes", [(False, False), (True, True), (False, True)])
@pytest.mark.parametrize("samples", [100, 2000])
def test_the_same_rows_in_batches_of_other_sizes_are_refused(tmp_path, routes, samples):
    one, other = (
        captured(tmp_path / str(size), ALL[:samples], size, directly=directly)
        for size, directly in zip((10, 20), routes, strict=True)
    )
    with pytest.raises(InvalidInputError, match="would count twice: capture parts of the data that do not overlap"):
        merge([one, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_rows_are_refused_where_the_activations_are_gone(tmp_path):
    stores = [captured(tmp_path / str(size), ALL, size) for size in (100, 50)]
    for store in stores:
        delete_activations(store)
    with pytest.raises(InvalidInputError, match="would count twice"):
        merge(stores, tmp_path / "out")


@pytest.mark.parametrize("other", [slice(0, 1000), slice(512, 2000)])
def test_rows_that_overlap_in_batches_of_other_sizes_are_refused(tmp_path, other):
    stores = [captured(tmp_path / "a", ALL, 100), captured(tmp_path / "b", ALL[other], 90)]
    with pytest.raises(InvalidInputError, match=r"from tile \d+ of layer '0' on, .* in batches of other sizes"):
        merge(stores, tmp_path / "out")


def test_the_same_rows_are_refused_beside_a_merged_store_too(tmp_path):
    merge([captured(tmp_path / "a", ALL[:900], 100), captured(tmp_path / "b", ALL[900:], 100)], tmp_path / "out")
    again = captured(tmp_path / "c", ALL[:900], 30)
    with pytest.raises(InvalidInputError, match="would count twice"):
        merge([tmp_path / "out", again], tmp_path / "more")


def test_other_rows_in_equal_numbers_are_added(tmp_path):
    stores = [captured(tmp_path / str(part), ALL[part * 500 : (part + 1) * 500], 50) for part in range(4)]
    assert len(merge(stores, tmp_path / "out").shards) == 4


def test_a_layer_that_is_dead_everywhere_keeps_nothing_from_being_added(tmp_path):
    dead = network()
    with torch.no_grad():
        dead[0].bias.fill_(-1e6)
    stores = [captured(tmp_path / str(part), ALL[part * 1000 : (part + 1) * 1000], 50, model=dead) for part in range(2)]
    assert len(merge(stores, tmp_path / "out").shards) == 2


def test_shards_whose_samples_are_all_held_out_are_added(tmp_path):
    folding = ds.Folding(ds.HoldoutRule(0.999999))
    stores = [captured(tmp_path / str(part), ALL[part : part + 1], 1, folding=folding) for part in range(3)]
    assert len(merge(stores, tmp_path / "out").shards) == 3
