"""Heads by what the loss feels: written out over pairs of rows, against random rivals, with gradients that say I."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_head_factors import LAYOUT, SIZE, given_by, outputs, problem, rows

import dalr_stream as ds
from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics import head_factors, head_nats
from dalr_stream.numerics.methods import Method

seeds, sizes = st.integers(0, 10**6), st.integers(1, SIZE)
SAMPLES = 12


def felt(seed, *, rank=8, n=60, gradient_ridge=0.0):
    """The problem with gradients of keys and outputs of some rank, in `SAMPLES` samples; and these gradients."""
    _, layers, x, z = problem(seed, rows(seed, n))
    rng = np.random.default_rng(seed + 7)
    g = {"k": rng.normal(size=(40, rank)) @ rng.normal(size=(rank, 8)), "o": rng.normal(size=(40, 10))}
    for name, read in (("q", x), ("k", x), ("v", x), ("o", z)):
        inputs = dataclasses.replace(ds.Moments.of(read), samples=SAMPLES)
        by_outputs = ds.Moments.of(g[name]) if name in g else None
        layers[name] = dataclasses.replace(layers[name], inputs=inputs, gradients=by_outputs)
    return head_factors(layers, LAYOUT, weighted=True, gradient_ridge=gradient_ridge), layers, x, z, g


def by_rows(record, layers, x, z, g):
    """1/2 (g'e)^2 over all pairs of a gradient and an error, for the rows of a sample."""
    k = given_by(layers["k"], x)
    k = (k - k.mean(axis=0)).reshape(len(x), LAYOUT.groups, -1)
    projected = np.einsum("grp,grq,ngq->ngp", record.queries, record.keys, k)
    by_key = np.einsum("mgp,ngp->gmn", g["k"].reshape(-1, LAYOUT.groups, SIZE), k - projected)
    gap = outputs(layers, z, record) - given_by(layers["o"], z)
    return len(x) / SAMPLES / 2 * (np.mean(by_key**2, axis=(1, 2)).sum() + np.mean((g["o"] @ gap.T) ** 2))


@settings(max_examples=20)
@given(seeds, sizes, st.booleans())
def test_nats_are_those_of_all_pairs_of_rows(seed, size, weighted):
    factors, layers, x, z, g = felt(seed)
    record = (factors if weighted else head_factors(layers, LAYOUT)).at_size(size)
    lost, at_stake = head_nats(record, layers)
    assert lost == pytest.approx(by_rows(record, layers, x, z, g), rel=1e-6, abs=1e-9 * at_stake)


@settings(max_examples=20)
@given(seeds, st.integers(1, SIZE - 1))
def test_no_rival_of_the_same_size_loses_fewer_nats_of_scores(seed, size):
    factors, layers, x, z, g = felt(seed)
    record, rng = factors.at_size(size), np.random.default_rng(seed)

    def scores_alone(one):
        return by_rows(dataclasses.replace(one, restore=record.restore, offset=record.offset), layers, x, z, g)

    best = scores_alone(record)
    for _ in range(5):
        near = [part + 0.1 * np.abs(part).max() * rng.normal(size=part.shape) for part in (record.queries, record.keys)]
        assert scores_alone(dataclasses.replace(record, queries=near[0], keys=near[1])) >= best * (1 - 1e-9)
    plain = head_factors(layers, LAYOUT).at_size(size)
    assert scores_alone(plain) >= best * (1 - 1e-6)


@settings(max_examples=20)
@given(seeds)
def test_at_full_size_nothing_changes_whatever_is_felt(seed):
    factors, layers, _, z, _ = felt(seed, rank=2)
    record = factors.at_size(SIZE)
    lost, at_stake = head_nats(record, layers)
    assert lost <= 1e-12 * at_stake
    assert outputs(layers, z, record) == pytest.approx(outputs(layers, z), abs=1e-6 * np.abs(outputs(layers, z)).max())


def test_gradients_that_feel_all_alike_choose_as_plain_heads_do():
    """E[g g'] of the keys is that of the queries, and of the outputs I."""
    layout = dataclasses.replace(LAYOUT, groups=4)
    plain, layers, x, _ = problem(3, layout=layout)
    layers["k"] = dataclasses.replace(layers["k"], gradients=ds.Moments.of(given_by(layers["q"], x)))
    layers["o"] = dataclasses.replace(layers["o"], gradients=ds.Moments.of(np.sqrt(10) * np.eye(10)))
    weighted = head_factors(layers, layout, weighted=True, gradient_ridge=0.0)
    assert weighted.method is Method.HEADS_WEIGHTED
    for size in (1, 2, 3):
        one, other = plain.at_size(size), weighted.at_size(size)
        assert one.score_loss == pytest.approx(other.score_loss)
        assert one.output_loss == pytest.approx(other.output_loss)
        assert one.queries.mT @ one.keys == pytest.approx(other.queries.mT @ other.keys, abs=1e-6)


def test_sizes_nest_and_what_nobody_feels_goes_first():
    factors, layers, *_ = felt(5)
    lost = [head_nats(factors.at_size(size), layers)[0] for size in range(1, SIZE + 1)]
    assert lost == sorted(lost, reverse=True)
    blind = np.zeros((30, 8))
    blind[:, ::SIZE] = np.random.default_rng(0).normal(size=(30, 2))  # of each head its first dimension alone
    layers["k"] = dataclasses.replace(layers["k"], gradients=ds.Moments.of(blind))
    record = head_factors(layers, LAYOUT, weighted=True, gradient_ridge=0.0).at_size(1)
    for up, down in zip(record.queries, record.keys, strict=True):
        rest = np.eye(SIZE) - up.T @ down
        assert rest[0] == pytest.approx(0.0, abs=1e-4)


def test_zero_gradients_and_bad_ones():
    _, layers, *_ = felt(1)
    layers["k"] = dataclasses.replace(layers["k"], gradients=ds.Moments.of(np.zeros((5, 8))))
    record = head_factors(layers, LAYOUT, weighted=True).at_size(2)
    assert np.isfinite(record.restore).all()
    layers["k"] = dataclasses.replace(layers["k"], gradients=None)
    with pytest.raises(InvalidInputError, match="layer 'k': the moments of its gradients are needed"):
        head_factors(layers, LAYOUT, weighted=True)
    with pytest.raises(InvalidInputError, match="layer 'k': the moments of its gradients are needed"):
        head_nats(record, layers)
    none = ds.Moments.of(np.zeros((0, 8)))
    layers["k"] = dataclasses.replace(layers["k"], gradients=none)
    with pytest.raises(InvalidInputError, match="layer 'k': gradients must come from at least one row"):
        head_factors(layers, LAYOUT, weighted=True)
