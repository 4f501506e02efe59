"""Heads of every size, against attention written out on rows: what scores and outputs lose, and what restores them."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dalr_stream as ds
from dalr_stream.errors import InvalidInputError, RankError
from dalr_stream.numerics import HeadLayout, head_factors, head_losses

WIDTH, SIZE, SHARED = 12, 4, 2
LAYOUT = HeadLayout("q", "k", "v", "o", heads=4, groups=2, size=SIZE)


def rows(seed, n=60, *, rank=WIDTH, mean=1.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, rank)) @ rng.normal(size=(rank, WIDTH)) + mean * rng.normal(size=WIDTH)


def problem(seed, x=None, z=None, layout=LAYOUT, **options):
    """Layers with biases, x (n, d) that queries, keys and values read, z (n, H p) that the output layer reads."""
    rng = np.random.default_rng(seed)
    whole, shared = layout.heads * layout.size, layout.groups * layout.size
    x = rows(seed) if x is None else x
    z = rng.normal(size=(len(x), whole)) @ rng.normal(size=(whole, whole)) + 1.0 if z is None else z
    shapes = {"q": (whole, WIDTH), "k": (shared, WIDTH), "v": (shared, WIDTH), "o": (10, whole)}
    layers = {
        name: ds.Layer(name, rng.normal(size=shape), rng.normal(size=shape[0]), inputs=ds.Moments.of(read))
        for (name, shape), read in zip(shapes.items(), (x, x, x, z), strict=True)
    }
    return head_factors(layers, layout, **options), layers, x, z


def given_by(layer, read):
    return read @ layer.weight.T + layer.bias


def scores(layers, x, record=None, layout=LAYOUT):
    """(H, n, n): q'k, less its mean over keys, which softmax takes no notice of; with narrowed heads where given."""
    q = given_by(layers["q"], x).reshape(len(x), layout.heads, -1)
    k = given_by(layers["k"], x).reshape(len(x), layout.groups, -1)
    if record is not None:
        q = np.einsum("nhp,hrp->nhr", q, record.queries.repeat(layout.shared, axis=0))
        k = np.einsum("ngp,grp->ngr", k, record.keys)
    found = np.einsum("nhr,mhr->hnm", q, k.repeat(layout.shared, axis=1))
    return found - found.mean(axis=2, keepdims=True)


def outputs(layers, z, record=None, layout=LAYOUT):
    if record is None:
        return given_by(layers["o"], z)
    kept = np.einsum("nhp,hrp->nhr", z.reshape(len(z), layout.heads, -1), record.values.repeat(layout.shared, axis=0))
    return given_by(layers["o"], kept.reshape(len(z), -1) @ record.restore.T + record.offset)


def share(difference, whole):
    return float(np.sum(difference**2) / np.sum(whole**2))


sizes, seeds = st.integers(1, SIZE), st.integers(0, 10**6)


@settings(max_examples=20)
@given(seeds, sizes, st.sampled_from([1, 5, WIDTH]), st.sampled_from([0.0, 1.0, 100.0]))
def test_scores_lose_over_all_pairs_of_rows_what_is_told(seed, size, rank, mean):
    factors, layers, x, _ = problem(seed, rows(seed, rank=rank, mean=mean))
    record = factors.at_size(size)
    whole = scores(layers, x)
    assert record.score_loss == pytest.approx(share(scores(layers, x, record) - whole, whole), rel=1e-4, abs=1e-7)


@settings(max_examples=20)
@given(seeds, sizes, st.booleans())
def test_outputs_lose_what_is_told(seed, size, affine):
    factors, layers, _, z = problem(seed, affine=affine)
    record = factors.at_size(size)
    whole = given_by(layers["o"], z)
    about = whole - (whole.mean(axis=0) if affine else layers["o"].bias)
    assert record.output_loss == pytest.approx(share(outputs(layers, z, record) - whole, about), rel=1e-6, abs=1e-12)


@settings(max_examples=20)
@given(seeds)
def test_at_full_size_nothing_changes(seed):
    factors, layers, x, z = problem(seed, rows(seed, rank=3))
    record = factors.at_size(SIZE)
    assert not record.offset.any()
    assert scores(layers, x, record) == pytest.approx(scores(layers, x), abs=1e-6 * np.abs(scores(layers, x)).max())
    assert outputs(layers, z, record) == pytest.approx(outputs(layers, z), abs=1e-8 * np.abs(outputs(layers, z)).max())


@settings(max_examples=20)
@given(seeds, sizes)
def test_restoring_from_all_heads_loses_no_more_than_each_head_by_itself(seed, size):
    free, anchored = (problem(seed, ridge=ridge)[0].at_size(size) for ridge in (0.0, 1e12))
    alone = np.kron(np.eye(LAYOUT.heads), np.ones((SIZE, size))) != 0
    assert anchored.restore[~alone] == pytest.approx(0.0, abs=1e-6)
    assert free.output_loss <= anchored.output_loss + 1e-9


@settings(max_examples=20)
@given(seeds, sizes)
def test_it_is_the_best_restoration_that_rows_show(seed, size):
    factors, layers, _, z = problem(seed, ridge=0.0)
    record = factors.at_size(size)
    centred = z - z.mean(axis=0)
    kept = np.einsum("nhp,hrp->nhr", centred.reshape(len(z), LAYOUT.heads, -1), record.values.repeat(SHARED, axis=0))
    target = centred @ layers["o"].weight.T
    fitted = np.linalg.lstsq(kept.reshape(len(z), -1), target, rcond=None)[0]
    residual = target - kept.reshape(len(z), -1) @ fitted
    assert record.output_loss == pytest.approx(share(residual, target), rel=1e-5, abs=1e-9)


@settings(max_examples=20)
@given(seeds, sizes)
def test_held_out_rows_are_judged_as_they_are(seed, size):
    factors, layers, *_ = problem(seed)
    record, x = factors.at_size(size), rows(seed + 1, mean=3.0)
    z = np.random.default_rng(seed + 2).normal(size=(40, 16)) @ np.random.default_rng(seed).normal(size=(16, 16)) - 2.0
    unseen = {
        name: dataclasses.replace(layer, heldout=ds.Moments.of(z if name == "o" else x))
        for name, layer in layers.items()
    }
    losses, whole, read = head_losses(record, unseen), scores(layers, x), outputs(layers, z)
    assert losses.scores == pytest.approx(share(scores(layers, x, record) - whole, whole), rel=1e-4, abs=1e-7)
    expected = share(outputs(layers, z, record) - read, read - read.mean(axis=0))
    assert losses.outputs == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_the_rows_that_decided_are_judged_as_told():
    factors, layers, *_ = problem(4)
    record = factors.at_size(2)
    losses = head_losses(record, layers, heldout=False)
    assert losses.scores == pytest.approx(record.score_loss)
    assert losses.outputs == pytest.approx(record.output_loss)
    with pytest.raises(InvalidInputError, match=r"layer 'q': needs moments of its inputs on held-out rows, has none"):
        head_losses(record, layers)


def test_losses_fall_with_the_size():
    factors, *_ = problem(0)
    records = [factors.at_size(size) for size in range(1, SIZE + 1)]
    assert np.all(np.diff(factors.score_losses) <= 0)
    assert [record.score_loss for record in records] == pytest.approx(factors.score_losses[1:])
    assert np.all(np.diff([record.output_loss for record in records]) <= 1e-12)


@pytest.mark.parametrize("n", [1, 2])
def test_a_row_or_two_are_enough_to_give_something_finite(n):
    factors, layers, x, z = problem(3, rows(3, n=n))
    record = factors.at_size(2)
    assert np.isfinite(scores(layers, x, record)).all()
    assert np.isfinite(outputs(layers, z, record)).all()


def test_dead_and_constant_features_and_a_huge_mean():
    x = rows(5)
    x[:, 0], x[:, 1], x[:, 2] = 0.0, 7.0, x[:, 3]
    x[:, 4] += 1e6
    factors, layers, *_ = problem(5, x)
    record = factors.at_size(2)
    whole = scores(layers, x)
    assert record.score_loss == pytest.approx(share(scores(layers, x, record) - whole, whole), rel=1e-3, abs=1e-6)


def test_heads_that_share_nothing_are_solved_one_by_one():
    layout = dataclasses.replace(LAYOUT, groups=4)
    _, layers, *_ = problem(1, layout=layout)
    both = head_factors(layers, layout)
    for head in range(layout.heads):
        here = slice(head * SIZE, (head + 1) * SIZE)
        alone = dataclasses.replace(layout, heads=1, groups=1)
        own = {
            name: ds.Layer(name, layer.weight[here], layer.bias[here], inputs=layer.inputs)
            for name, layer in layers.items()
            if name != "o"
        }
        read = layers["o"].inputs.features_between(here.start, here.stop)
        own["o"] = ds.Layer("o", layers["o"].weight[:, here], None, inputs=read)
        assert head_factors(own, alone).scores[0].losses == pytest.approx(both.scores[head].losses)
        assert head_factors(own, alone).mixed[0].losses == pytest.approx(both.mixed[head].losses)


def test_bad_input():
    factors, layers, *_ = problem(2)
    for size in (0, SIZE + 1, 1.0, True):
        with pytest.raises(RankError, match=r"layer 'o': size of a head must lie in 1\.\.4, got"):
            factors.at_size(size)
    with pytest.raises(InvalidInputError, match=r"layer 'k': needs moments of its inputs, has none: accumulate them"):
        head_factors({**layers, "k": ds.Layer("k", layers["k"].weight, None)}, LAYOUT)
    with pytest.raises(InvalidInputError, match=r"layer 'o': its attention needs q, k, v, o, and k, v are not given"):
        head_factors({"q": layers["q"], "o": layers["o"]}, LAYOUT)
    with pytest.raises(InvalidInputError, match=r"layer 'q': gives 16 features, and heads of 'o' have 8"):
        head_factors(layers, dataclasses.replace(LAYOUT, heads=2))
    with pytest.raises(InvalidInputError, match=r"layer 'o': reads 16 features, and heads of 'o' have 8"):
        head_factors({**layers, "q": layers["k"]}, dataclasses.replace(LAYOUT, heads=2))
    with pytest.raises(InvalidInputError, match=r"layer 'o': ridge must be 0 or more, got -1"):
        head_factors(layers, LAYOUT, ridge=-1.0)
    with pytest.raises(InvalidInputError, match=r"ridge must be 0 or more, got nan"):
        head_factors(layers, LAYOUT, ridge=float("nan"))
    with pytest.raises(InvalidInputError, match=r"4 heads of queries cannot share 3 of keys and values"):
        dataclasses.replace(LAYOUT, groups=3)
    with pytest.raises(InvalidInputError, match=r"heads must be a positive integer, got 0"):
        dataclasses.replace(LAYOUT, heads=0)
