"""Stores compared: the feature that was moved is listed first, and two networks are not compared at all."""

import numpy as np
import pytest
import torch
from commands import cli
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.engine.stores.diff import diff_domains
from dalr_stream.engine.stores.merge import merge
from dalr_stream.errors import FingerprintMismatchError, InvalidInputError, LayerNotFoundError, StoreNotFoundError


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def rows(domain, seed=0):
    """Feature 4 has another mean on the source, feature 1 another spread."""
    found = torch.randn(200, 6, generator=torch.Generator().manual_seed(seed + (domain == "source")))
    if domain == "source":
        found[:, 4] += 3.0
        found[:, 1] *= 4.0
    return found


def captured(root, *domains, model=None, layers=("0", "2"), seed=0):
    model = model or network()
    for domain in domains:
        ds.capture(model, rows(domain, seed).split(64), ds.network.select_layers(model, layers), root, domain=domain)
        accumulate_stored(root, domain=domain)
    return root


@pytest.fixture
def store(tmp_path):
    return captured(tmp_path / "store.zarr", "target", "source")


def test_every_layer_is_compared_over_all_rows_of_both_domains(store):
    found = dict(diff_domains(store, "target", "source"))
    assert list(found) == ["0", "2"]
    assert (found["0"].features, found["2"].features) == (6, 8)
    whole = ds.numerics.diff(*(ds.Moments.of(rows(domain).double().numpy()) for domain in ("target", "source")))
    np.testing.assert_allclose(found["0"].mean_gap, whole.mean_gap, rtol=1e-9)
    np.testing.assert_allclose(found["0"].covariance_shift, whole.covariance_shift, rtol=1e-9)
    assert found["0"].top(1).tolist() == [4]
    assert found["0"].top(1, by="covariance").tolist() == [1]


def test_two_stores_of_one_network_compare_as_one_does(store, tmp_path):
    target = captured(tmp_path / "t.zarr", "target")
    source = merge([captured(tmp_path / "s.zarr", "source", layers=("0",))], tmp_path / "merged.zarr").root
    ((name, found),) = diff_domains(target, "target", "source", other=source)
    expected = dict(diff_domains(store, "target", "source"))["0"]
    assert name == "0"
    assert np.array_equal(found.mean_gap, expected.mean_gap)
    assert np.array_equal(found.covariance_shift, expected.covariance_shift)
    again = captured(tmp_path / "again.zarr", "target", seed=5)
    assert len(list(diff_domains(target, "target", "target", other=again))) == 2


def test_what_cannot_be_compared_is_refused(store, tmp_path):
    other = captured(tmp_path / "other.zarr", "target", model=network(seed=3))
    with pytest.raises(FingerprintMismatchError, match=r"store\.zarr' was made .*other\.zarr' from .*cannot be compar"):
        diff_domains(store, "target", "target", other=other)
    with pytest.raises(InvalidInputError, match="'target' does not differ from itself"):
        diff_domains(store, "target", "target")
    with pytest.raises(LayerNotFoundError):
        diff_domains(store, "target", "source", layers=["fc*"])
    with pytest.raises(StoreNotFoundError, match="has no domain 'test': it has source, target"):
        list(diff_domains(store, "target", "test"))
    with pytest.raises(StoreNotFoundError, match="there is nothing at"):
        diff_domains(tmp_path / "absent", "target", "source")


def test_the_command_lists_the_features_that_moved_most(store):
    done = cli("diff", store, "target", "source", "--layer", "0", "--top", "2")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "0: 6 features, 0 with equal means, 0 not live on target"
    assert [line.split()[0] for line in lines[1:]] == ["feature", "4", lines[3].split()[0]]
    assert len(lines) == 4
    refused = cli("diff", store, "target", "nowhere")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
