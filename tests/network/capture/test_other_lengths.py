"""Texts of other lengths, a batch each and without padding: every row counts, whoever folds them."""

import numpy as np
import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.rows.tiling import VARYING, RowBatch, rows_per_sample

LENGTHS = (5, 1, 7, 2, 7, 3)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(40, 6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


def texts(lengths=LENGTHS, samples=1):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(40, (samples, length), generator=generator) for length in lengths]


@pytest.mark.parametrize(("lengths", "samples"), [(LENGTHS, 1), (LENGTHS, 2), (LENGTHS[1:], 1)])
def test_moments_are_those_of_all_rows_directly_and_from_a_store(lengths, samples, tmp_path):
    model, batches = net(), texts(lengths, samples)
    layers = ds.network.select_layers(model, ["1"])
    rows = np.concatenate([model[0](batch).detach().flatten(0, 1).double().numpy() for batch in batches])
    ds.capture(model, batches, layers, tmp_path, domain="text")
    folding = ds.Folding(holdout=ds.HoldoutRule(0.0))
    stored = accumulate_stored(tmp_path, domain="text", folding=folding)
    for moments in (accumulate_stream(model, batches, layers, folding=folding), stored):
        assert (moments["1"].count, moments["1"].samples) == (len(rows), samples * len(lengths))
        np.testing.assert_allclose(moments["1"].second_moment, rows.T @ rows / len(rows), rtol=1e-12, atol=1e-14)


def test_at_most_so_many_of_each_text(tmp_path):
    model = net()
    layers = ds.network.select_layers(model, ["1"])
    store = ds.capture(model, texts(), layers, tmp_path, domain="text", rows=ds.RowRule(most_per_sample=3))
    assert store.rows("text", "1").rows == sum(min(length, 3) for length in LENGTHS)


def test_only_of_sequences_the_sample_of_each_row_is_kept(tmp_path):
    torch.manual_seed(0)
    one_row = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    pictures = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(18, 2)).eval()
    for number, (model, given, expected) in enumerate((
        (one_row, torch.randn(8, 6), {"0": 1, "2": 1}),
        (pictures, torch.randn(8, 2, 5, 5), {"0": 9, "2": 9, "4": 1}),
        (one_row, torch.randn(8, 4, 6), {"0": VARYING, "2": VARYING}),
    )):  # fmt: skip
        root, layers = tmp_path / str(number), ds.network.select_layers(model, ["*"])
        store = ds.capture(model, given.split(5), layers, root, domain="d")
        assert {name: store.rows("d", name).rows_per_sample for name in expected} == expected
        kept = {path.name for path in (root / "activations/d").glob("*@sample")}
        assert kept == {f"{name}@sample" for name, each in expected.items() if each == VARYING}


def batch(rows, samples, counts=None):
    given = {} if counts is None else {"a": np.array(counts)}
    return RowBatch(samples, "", {"a": np.zeros((rows, 2))}, given)


def test_what_an_earlier_version_began_with_one_length_goes_on_with_it():
    assert rows_per_sample("a", batch(6, 2, [3, 3]), 3) == 3
    assert rows_per_sample("a", batch(6, 2, [3, 3]), None) == 0
    assert rows_per_sample("a", batch(2, 2), 0) == 0
    with pytest.raises(InvalidInputError, match="every sample must give the same number of rows"):
        rows_per_sample("a", batch(6, 2, [4, 2]), 3)
