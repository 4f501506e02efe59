"""The hot kernel against the product it stands for, and against itself under other schedules."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController, threadpool_info, threadpool_limits

from dalr_stream.numerics.linalg import rank_k
from dalr_stream.numerics.linalg.rank_k import add_rank_k, mirror_lower, one_blas_thread, usable_cores

WIDTHS = [1, 3, 100, 129, 1024, 1025, 1537]


def rows_of(width, n=37):
    return np.random.default_rng(width).normal(size=(n, width))


def folded(rows, executor=None, times=1):
    scatter = np.zeros((rows.shape[1],) * 2)
    for _ in range(times):
        add_rank_k(scatter, rows, executor)
    mirror_lower(scatter)
    return scatter


@pytest.mark.parametrize("width", WIDTHS)
def test_two_updates_are_twice_the_product(width):
    rows = rows_of(width)
    bound = 1e-14 * np.outer(np.linalg.norm(rows, axis=0), np.linalg.norm(rows, axis=0))
    assert (np.abs(folded(rows, times=2) - 2 * (rows.T @ rows)) <= 4 * bound).all()


@pytest.mark.parametrize("width", WIDTHS)
def test_bits_depend_neither_on_the_executor_nor_on_blas_threads_outside(width):
    rows = rows_of(width, n=300)
    found = []
    with ThreadPoolExecutor(2) as executor:
        for threads in (1, 2):
            with threadpool_limits(limits=threads, user_api="blas"), one_blas_thread():
                found += [folded(rows), folded(rows, executor)]
    assert all(np.array_equal(found[0], other) for other in found[1:])


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_one_blas_thread_is_one_inside_and_what_it_was_outside():
    """Whether more would give other bits depends on the build, the width and the machine."""
    with threadpool_limits(limits=2, user_api="blas"):
        with one_blas_thread():
            with one_blas_thread():
                assert blas_threads() == {1}
            assert blas_threads() == {1}
        assert blas_threads() == {2}


def test_libraries_are_looked_for_again_once_a_module_was_imported(monkeypatch):
    looks, held = [], rank_k._OneThread()
    monkeypatch.setattr(rank_k, "ThreadpoolController", lambda: looks.append(1) or ThreadpoolController())

    def hold():
        held.enter()
        assert blas_threads() == {1}
        held.leave()

    hold()
    hold()
    assert len(looks) == 1
    monkeypatch.setitem(sys.modules, "imported_between", None)
    hold()
    assert len(looks) == 2


@pytest.mark.parametrize("first_to_leave", [0, 1])
def test_blocks_that_overlap_in_several_threads_hold_it_until_the_last_has_left(first_to_leave):
    def entered():
        block = one_blas_thread()
        block.__enter__()
        return block

    with threadpool_limits(limits=2, user_api="blas"), ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        blocks = [(thread, thread.submit(entered).result()) for thread in (one, other)]
        for count in (first_to_leave, 1 - first_to_leave):
            assert blas_threads() == {1}
            thread, block = blocks[count]
            thread.submit(block.__exit__, None, None, None).result()
        assert blas_threads() == {2}


@pytest.mark.parametrize(("cores", "expected"), [(None, 1), (3, 3)])
def test_cores_are_those_of_the_machine_where_the_system_tells_no_more(monkeypatch, cores, expected):
    """As macOS does."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert usable_cores() == expected


def test_no_rows_change_nothing():
    scatter = np.full((4, 4), 3.0)
    add_rank_k(scatter, np.empty((0, 4)))
    assert (scatter == 3.0).all()


@pytest.mark.parametrize("width", [5, 1025])
def test_the_upper_triangle_outside_the_diagonal_blocks_is_left_alone(width):
    scatter = np.zeros((width, width))
    add_rank_k(scatter, rows_of(width))
    assert not scatter[:1024, 1024:].any()
    assert scatter[np.tril_indices(width)].all()


@pytest.mark.parametrize(
    ("scatter", "rows", "message"),
    [
        (np.zeros((4, 4), np.float32), np.ones((2, 4)), "float64"),
        (np.zeros((4, 4)), np.ones((2, 4), np.float32), "float64"),
        (np.zeros((4, 4)), np.asfortranarray(np.ones((3, 4))), "C order"),
        (np.zeros((4, 8))[:, ::2], np.ones((2, 4)), "C order"),
        (np.zeros((5, 5)), np.ones((2, 4)), "last rows of 4 x 4"),
    ],
)
def test_memory_that_blas_would_misread_is_refused(scatter, rows, message):
    with pytest.raises(ValueError, match=message):
        add_rank_k(scatter, rows)


@pytest.mark.parametrize("width", [1, 7, 1024, 1030, 2050])
def test_mirroring_makes_the_matrix_its_own_transpose(width):
    matrix = np.random.default_rng(0).normal(size=(width, width))
    lower = np.tril(matrix)
    mirror_lower(matrix)
    assert np.array_equal(np.tril(matrix), lower)
    assert np.array_equal(matrix, matrix.T)
