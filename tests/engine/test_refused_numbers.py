"""Numbers that sums cannot hold, and arrays that numpy would quietly change, are refused by name."""

import warnings

import numpy as np
import pytest
import torch
import zarr
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import DalrStreamError, InvalidInputError, NonFiniteError, StoreDamagedError
from dalr_stream.storage.metadata import read_metadata, write_metadata
from dalr_stream.storage.records.moments import load_moments, moments_path, save_moments
from dalr_stream.storage.records.record import digest_of_array

ROWS = np.random.default_rng(0).normal(size=(9, 3))
STRANGE = {
    "complex": (ROWS.astype(complex), "must be real numbers, got an array of complex128"),
    "objects": (ROWS.astype(object), "must be real numbers, got an array of object"),
    "text": (ROWS.astype(str), "must be real numbers, got an array of <U"),
    "dates": (ROWS.astype("datetime64[s]"), "must be real numbers, got an array of datetime64"),
    "masked": (np.ma.masked_array(ROWS, mask=ROWS > 1), "must be a plain array, got a masked one"),
}


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.fc, self.factor = nn.Linear(3, 2).double(), factor

    def forward(self, x):
        return self.fc(x.double() * self.factor)


def layers_of(model):
    return ds.network.select_layers(model, ["*"])


@pytest.mark.parametrize(("array", "message"), STRANGE.values(), ids=STRANGE)
def test_arrays_that_numpy_would_change_are_refused(array, message):
    with pytest.raises(InvalidInputError, match=f"rows {message}"):
        ds.Moments.of(array)
    with pytest.raises(InvalidInputError, match=f"weight {message}"):
        ds.dalr(array, np.zeros(9), ds.Moments.of(ROWS))
    with pytest.raises(InvalidInputError, match=f"bias {message}"):
        ds.dalr(ROWS.T, array[:3, 0], ds.Moments.of(np.random.default_rng(1).normal(size=(20, 9))))


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint16, np.float16, np.float32])
def test_real_numbers_of_every_kind_are_read(dtype):
    rows = np.arange(12).reshape(4, 3) % 5
    expected = ds.Moments.of(rows.astype(dtype).astype(np.float64))
    assert ds.Moments.of(rows.astype(dtype)).same_bits(expected)


def test_a_complex_network_is_refused_by_name(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of complex modules
        model = nn.Sequential(nn.Linear(3, 2)).to(torch.complex64).eval()
    data = [torch.ones(4, 3, dtype=torch.complex64)]
    with pytest.raises(DalrStreamError, match=r"complex"):
        ds.accumulate(model, data, layers_of(model))
    with pytest.raises(DalrStreamError, match=r"complex"):
        ds.capture(model, data, layers_of(model), tmp_path, domain="t")


def test_sums_beyond_float64_are_refused_on_every_route(tmp_path):
    model, data = Scaled(1e200).eval(), [torch.randn(40, 3)]
    message = r"layer 'fc'.*the sum of squares of feature 0 is beyond float64"
    with pytest.raises(NonFiniteError, match=message):
        ds.accumulate(model, data, layers_of(model))
    with pytest.raises(NonFiniteError, match=message):
        ds.accumulate(model, data, layers_of(model), store=tmp_path / "direct")
    ds.capture(model, data, layers_of(model), tmp_path / "rows", domain="t")
    with pytest.raises(NonFiniteError, match=message):
        ds.accumulate(tmp_path / "rows", domain="t")


def test_a_sum_of_records_beyond_float64_is_refused_without_a_warning():
    far = [ds.Moments.of(np.full((5, 2), sign * 1e200)) for sign in (1, -1)]
    with pytest.raises(NonFiniteError, match="feature 0 is beyond float64"):
        far[0] + far[1]


def test_a_record_with_infinite_sums_is_damaged(tmp_path):
    """As versions before wrote them: the sums overflowed unnoticed."""
    path = moments_path(tmp_path, "t", "fc", "training")
    save_moments(path, ds.Moments.of(ROWS), {})
    scatter = np.full((3, 3), np.inf)
    zarr.open_array(path / "scatter", mode="r+")[...] = scatter
    document = read_metadata(path)
    digests = {**document["attributes"]["digests"], "scatter": digest_of_array(scatter)}
    write_metadata(path, {**document, "attributes": {**document["attributes"], "digests": digests}})
    with pytest.raises(StoreDamagedError, match=r"holds no moments .*beyond float64"):
        load_moments(path)
