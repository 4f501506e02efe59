"""A capture is gone on with only by the same batches, layers and network; what differs is named."""

from contextlib import suppress

import numpy as np
import pytest
from stores import (
    Killed,
    batches_of,
    capture,
    files_of,
    network,
    rows_for,
)

from dalr_stream.errors import (
    FingerprintMismatchError,
    InvalidInputError,
)
from dalr_stream.numerics.rows.tiling import RowBatch
from dalr_stream.storage.records.weights import save_layer_weights
from dalr_stream.storage.writer import open_writer

pytestmark = pytest.mark.usefixtures("quick_stores")


def test_another_batch_size_on_resume_is_named_with_its_batch(half):
    before = files_of(half)
    with pytest.raises(FingerprintMismatchError, match="'target', batch 0 had 10 samples and now has 20: resume with"):
        capture(half, batches_of(rows_for(100), [20]))
    with pytest.raises(FingerprintMismatchError, match="batch 2 had 10 samples and now has 5"):
        capture(half, batches_of(rows_for(100), [10, 10, 5]))
    assert files_of(half) == before


@pytest.mark.parametrize("first", [0, 5, 6])
def test_another_order_on_resume_is_named_with_its_batch(half, first):
    """Batch 6 straddles the commit: it is run again, and still compared."""
    batches = list(batches_of(rows_for(100), [10]))
    batches[first], batches[9] = batches[9], batches[first]
    before = files_of(half)
    with pytest.raises(FingerprintMismatchError, match=f"batch {first} is not the batch captured before .*their order"):
        capture(half, batches)
    assert files_of(half) == before


def test_a_loader_that_ends_early_on_resume_is_refused(half):
    with pytest.raises(FingerprintMismatchError, match="had 7 batches before and ended after 6 now"):
        capture(half, list(batches_of(rows_for(100), [10]))[:6])


def test_other_layers_on_resume_are_named(half):
    rows = rows_for(100)
    other = [RowBatch(b.samples, b.digest, {"fc6": b.rows["fc6"]}) for b in batches_of(rows, [10])]
    with pytest.raises(
        FingerprintMismatchError, match=r"holds layers classifier.0, fc6, .* watches fc6: watch the same"
    ):
        capture(half, other, net=network(layers=["fc6"]))


def test_other_layers_over_a_complete_domain_are_named_too(full):
    rows = rows_for(100)
    before = files_of(full)
    with pytest.raises(FingerprintMismatchError, match=r"holds layers classifier.0, fc6, .* watches fc6"):
        capture(full, batches_of(rows, [10]), net=network(layers=["fc6"]))
    assert files_of(full) == before


def rewritten(batches, change):
    return [RowBatch(b.samples, b.digest, {n: change(r) for n, r in b.rows.items()}) for b in batches]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.astype(np.float64), "3 features of float32, now 3 of float64"),
        (lambda rows: rows[:, 1:], "3 features of float32, now 2 of float32"),
        (lambda rows: np.repeat(rows, 2, axis=0), "layer 'fc6': .* gave 20 and earlier ones 1 each"),
    ],
)
def test_rows_of_another_kind_on_resume_are_refused(half, change, message):
    before = files_of(half)
    with pytest.raises((FingerprintMismatchError, InvalidInputError), match=message):
        capture(half, rewritten(batches_of(rows_for(100), [10]), change))
    assert files_of(half) == before


def test_another_network_is_refused_and_both_are_named(full):
    before = files_of(full)
    with pytest.raises(FingerprintMismatchError, match="fingerprint aaaaaaaaaaaa, this one has bbbbbbbbbbbb"):
        capture(full, batches_of(rows_for(100), [10]), net=network("b" * 64))
    assert files_of(full) == before


def test_a_first_capture_that_failed_lends_its_weights_to_no_other_network(tmp_path):
    """The weights are written before the first rows; without a manifest another network would find and keep them."""
    with suppress(Killed), open_writer(tmp_path, "target", network()):
        save_layer_weights(tmp_path, "fc6", np.zeros((5, 3)), None, {})
        raise Killed
    with pytest.raises(FingerprintMismatchError, match="aaaaaaaaaaaa"):
        capture(tmp_path, batches_of(rows_for(10), [10]), net=network("b" * 64))


def test_a_complete_domain_takes_the_same_data_again_and_changes_no_byte(full):
    before = files_of(full)
    assert capture(full, batches_of(rows_for(100), [10])) == 10
    assert files_of(full) == before


def test_a_complete_domain_takes_neither_more_nor_fewer_batches(full):
    before = files_of(full)
    with pytest.raises(FingerprintMismatchError, match="is complete with 10 batches, and more came"):
        capture(full, [*batches_of(rows_for(100), [10]), *batches_of(rows_for(5), [5])])
    with pytest.raises(FingerprintMismatchError, match="had 10 batches before and ended after 9 now"):
        capture(full, list(batches_of(rows_for(100), [10]))[:9])
    assert files_of(full) == before
