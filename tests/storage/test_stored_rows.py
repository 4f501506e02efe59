"""Rows read back for a solver: those that the moments are of, and none that were kept apart."""

import numpy as np
import pytest
from stores import batches_of, capture, rows_for, small_tiles, unsynced

from dalr_stream.errors import StoreNotFoundError
from dalr_stream.numerics.lowrank.from_rows import dalr_from_rows
from dalr_stream.numerics.lowrank.solvers import dalr
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.storage.removal import delete_activations
from dalr_stream.storage.store import ActivationStore, StoredRows


@pytest.fixture
def store(tmp_path):
    rows = rows_for(36)
    with small_tiles(), unsynced():
        capture(tmp_path, batches_of(rows, (7,)))
        yield ActivationStore(tmp_path), rows


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_training_rows_only_as_often_as_asked(store, share):
    opened, rows = store
    holdout = HoldoutRule(share)
    found = StoredRows(opened, "target", "classifier.0", holdout)
    kept = rows["classifier.0"][~holdout.mask(np.arange(36))]
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(found)), kept)
    assert 0 < len(kept) <= 36


@pytest.mark.filterwarnings("ignore::dalr_stream.errors.FewSamplesWarning")
def test_a_store_of_few_rows_is_solved_through_the_dual(store):
    opened, rows = store
    weight = np.random.default_rng(0).normal(size=(5, 40))
    found = StoredRows(opened, "target", "classifier.0")
    ours = dalr_from_rows(weight, None, found, variant="optimal")
    kept = rows["classifier.0"][~HoldoutRule().mask(np.arange(36))]
    theirs = dalr(weight, None, Moments.of(kept), variant="optimal")
    assert ours.diagnostics.route == "dual"
    np.testing.assert_allclose(ours.basis @ ours.down, theirs.basis @ theirs.down, atol=1e-10)
    delete_activations(opened.root)
    with pytest.raises(StoreNotFoundError, match="activations were deleted"):
        dalr_from_rows(weight, None, found, variant="optimal")
