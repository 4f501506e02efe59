"""What solving holds: laws of the arithmetic, and what is said where it does not fit."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalr_stream.errors import MemoryLimitError
from dalr_stream.numerics.diagnostics import Route
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.streaming.solving_cost import SolvedLayer, solving_cost
from dalr_stream.streaming.solving_plan import SolvingPlan

GIB = 2**30
FC6 = {"name": "fc6", "outputs": 4096, "inputs": 25_088}
LOW_RANK = [method for method in Method if method.family is Family.LOW_RANK]


def refusal(layer, *methods, limit=6 * GIB):
    with pytest.raises(MemoryLimitError) as caught:
        SolvingPlan.of([(layer, methods)], limit).require()
    return str(caught.value)


@given(st.integers(1, 30_000), st.integers(1, 30_000), st.integers(1, 10**6), st.sampled_from(list(Method)))
def test_more_of_anything_takes_no_less(outputs, inputs, rows, method):
    one = solving_cost(SolvedLayer("fc", outputs, inputs, rows), method).peak_bytes
    for more in (SolvedLayer("fc", 2 * outputs, inputs, rows), SolvedLayer("fc", outputs, inputs, rows, groups=2)):
        assert solving_cost(more, method).peak_bytes >= one
    kept = SolvedLayer("fc", outputs, inputs, rows, rows_kept=True)
    assert (solving_cost(kept, method).route is Route.DUAL) == (
        rows < inputs and "published" in method.value + method.value.replace("optimal", "published")
    )


@pytest.mark.parametrize("method", [method for method in Method if method.family is not Family.HEADS])
def test_every_method_fits_at_vgg19s_fc6_where_rows_are_few_and_kept(method):
    layer = SolvedLayer(**FC6, rows=5994, rows_kept=True, readers=(4096,))
    SolvingPlan.of([(layer, [method])], 6 * GIB).require()


def test_where_rows_are_not_kept_the_refusal_says_what_would_fit():
    message = refusal(SolvedLayer(**FC6, rows=5994), *LOW_RANK)
    assert message.startswith("layer 'fc6': solving 4,096 x 25,088 by dalr_")
    assert "the limit is 6,144 MiB: keep the rows (capture.keep_activations = true)" in message
    assert "solve by dalr_anchored" in message
    assert message.count("which fits") == 3
    assert "leave dalr_published, dalr_published_bc, dalr_published_affine, dalr_optimal, dalr_optimal_affine out" in (
        message
    )


def test_many_rows_and_shards_have_remedies_of_their_own():
    many = SolvedLayer(**FC6, rows=10**6, rows_kept=True)
    fewer = re.search(r"keep at most ([\d,]+) rows, fewer than features", refusal(many, Method.DALR_OPTIMAL))
    most = int(fewer[1].replace(",", ""))
    fits, over = (replace(many, rows=rows) for rows in (most, most + 1))
    SolvingPlan.of([(fits, [Method.DALR_OPTIMAL])], 6 * GIB).require()
    assert f"keep at most {most:,} rows" in refusal(over, Method.DALR_OPTIMAL)
    dealt = SolvedLayer(**FC6, rows=5994, rows_kept=True, shards=8)
    assert "keep no shards" in refusal(dealt, Method.DALR_ANCHORED_AFFINE)
    assert "leave" not in refusal(dealt, Method.SVD)  # nothing would be left


def test_no_limit_refuses_nothing():
    SolvingPlan.of([(SolvedLayer(**FC6, rows=10**6), LOW_RANK)], None).require()
    assert SolvingPlan.of([], 1).peak_bytes == 0
