"""Projections of a head's dimensions: optimal, nested, one decomposition for every size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalr_stream.numerics.heads.projection import joint_projection
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.lowrank.solvers import dalr
from dalr_stream.numerics.statistics.moments import Moments

P = 6


def semidefinite(rank, seed, size=P):
    root = np.random.default_rng(seed).normal(size=(size, rank))
    return root @ root.T


def lost(readers, read, projection):
    rest = np.eye(len(read)) - projection
    return np.trace(readers @ rest @ read @ rest.T)


def fitted_in_turn(readers, read, rank, seed):
    """The least loss of up @ down that alternating least squares finds from a random start."""
    rng = np.random.default_rng(seed)
    up, down = rng.normal(size=(P, rank)), rng.normal(size=(rank, P))
    for _ in range(400):
        up = read @ down.T @ np.linalg.pinv(down @ read @ down.T)
        down = np.linalg.pinv(up.T @ readers @ up) @ up.T @ readers
    return lost(readers, read, up @ down)


ranks = st.integers(1, P)
seeds = st.integers(0, 10**6)


@given(ranks, ranks, ranks, seeds)
def test_no_projection_that_least_squares_finds_loses_less_and_the_loss_is_as_told(rank, first, second, seed):
    readers, read = semidefinite(first, seed), semidefinite(second, seed + 1)
    found = joint_projection(readers, read)
    own = lost(readers, read, found.up[:, :rank] @ found.down[:rank])
    scale = found.losses[0]
    assert own == pytest.approx(found.losses[rank], abs=1e-8 * scale)
    assert own <= fitted_in_turn(readers, read, rank, seed) + 1e-8 * scale


@given(ranks, ranks, seeds)
def test_nothing_changes_at_full_size_and_losses_fall(first, second, seed):
    found = joint_projection(semidefinite(first, seed), semidefinite(second, seed + 1))
    assert found.up @ found.down == pytest.approx(np.eye(P), abs=1e-8)
    assert np.all(np.diff(found.losses) <= 0)
    assert found.losses[-1] == 0.0


@given(seeds)
def test_sizes_do_not_depend_on_which_side_is_whitened(seed):
    """Readers and read exchanged: the same loss at every size, as singular values of a product and its transpose."""
    one, other = semidefinite(P, seed), semidefinite(P, seed + 1)
    assert joint_projection(one, other).losses == pytest.approx(joint_projection(other, one).losses)


@pytest.mark.parametrize("dead", ["readers", "read", "both"])
def test_of_what_nobody_reads_or_what_is_not_there_nothing_is_lost(dead):
    zero, full = np.zeros((P, P)), semidefinite(P, 0)
    found = joint_projection(full if dead == "read" else zero, full if dead == "readers" else zero)
    assert np.isfinite(found.up).all()
    assert found.losses == pytest.approx(0.0, abs=1e-8 * np.trace(full))
    assert found.up @ found.down == pytest.approx(np.eye(P), abs=1e-8)


def test_a_dimension_that_nobody_reads_goes_first():
    readers = semidefinite(P, 0)
    readers[2] = readers[:, 2] = 0.0
    found = joint_projection(readers, 1e6 * np.eye(P))
    assert found.losses[P - 1] == pytest.approx(0.0, abs=1e-3)
    assert found.down[: P - 1, 2] == pytest.approx(0.0, abs=1e-3)


@given(seeds, st.integers(1, 3))
def test_one_head_that_an_output_layer_reads_is_dalr(seed, rank):
    """The same error curve as reduced-rank regression of W z on z, and the same product W P."""
    rng = np.random.default_rng(seed)
    weight, rows = rng.normal(size=(9, P)), rng.normal(size=(50, P)) @ rng.normal(size=(P, P))
    moments = Moments.of(rows)
    optimal = dalr(Layer("o", weight, None, inputs=moments), variant="optimal", affine=True, ridge=0.0)
    found = joint_projection(weight.T @ weight, moments.scatter)
    pair = optimal.at_rank(rank)
    product = weight @ found.up[:, :rank] @ found.down[:rank]
    errors = np.asarray(optimal.errors(moments))
    assert found.losses == pytest.approx(errors, rel=1e-6, abs=1e-8 * errors[0])
    assert product == pytest.approx(pair.up @ pair.down, abs=1e-5 * np.abs(weight).max())
