"""Shares of matrices: every row is somebody's, at borders of blocks, and ranks hold about as much."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalr_stream.numerics.linalg.rank_k import BLOCK_COLUMNS
from dalr_stream.numerics.statistics.fold_rule import Strip, lane_count
from dalr_stream.numerics.statistics.strip_shares import blocks_of, share_out

widths = st.lists(st.integers(1, 30_000), min_size=1, max_size=5)


def held(shares, features, ranks, *, by_lanes):
    found = [0] * ranks
    for name, pieces in shares.items():
        for piece in pieces:
            found[piece.rank] += piece.strip.cells * (lane_count(features[name]) if by_lanes else 1)
    return found


@given(widths=widths, ranks=st.integers(1, 9), by_lanes=st.booleans())
def test_pieces_ascend_and_cover_each_matrix(widths, ranks, by_lanes):
    features = {str(number): width for number, width in enumerate(widths)}
    for name, pieces in share_out(features, ranks, by_lanes=by_lanes).items():
        borders = [0, *(piece.strip.stop for piece in pieces)]
        assert [piece.strip.first for piece in pieces] == borders[:-1]
        assert borders[-1] == features[name]
        assert all(border % BLOCK_COLUMNS == 0 for border in borders[:-1])
        assert {piece.rank for piece in pieces} <= set(range(ranks))


@given(width=st.integers(1, 60_000), ranks=st.integers(1, 9))
def test_no_rank_holds_much_more_than_its_share(width, ranks):
    """Than an equal share of the triangle and one strip more, as whoever is given one held the least before."""
    shares = share_out({"fc": width}, ranks, by_lanes=False)
    cells = [piece.strip.cells for piece in shares["fc"]]
    assert max(held(shares, {"fc": width}, ranks, by_lanes=False)) <= sum(cells) / ranks + max(cells)


@pytest.mark.parametrize(
    ("width", "ranks", "cells"), [(4096, 2, 5), (4096, 4, 4), (8192, 2, 20), (8192, 4, 9), (25_600, 8, 44)]
)
def test_known_shares(width, ranks, cells):
    """In blocks of rows times blocks of columns: of 4,096 features one of two ranks has blocks 0 and 3, one 1 and 2."""
    shares = share_out({"fc": width}, ranks, by_lanes=False)
    assert max(held(shares, {"fc": width}, ranks, by_lanes=False)) == cells * BLOCK_COLUMNS**2


def test_with_more_ranks_than_blocks_some_have_none():
    shares = share_out({"wide": 2500, "narrow": 3}, 8, by_lanes=True)
    assert len({piece.rank for pieces in shares.values() for piece in pieces}) == 4
    assert [len(pieces) for pieces in shares.values()] == [3, 1]


def test_layers_that_are_not_cut_are_dealt_whole():
    shares = share_out(dict.fromkeys("abcd", 1000), 2, by_lanes=True)
    assert [pieces[0].rank for pieces in shares.values()] == [0, 1, 0, 1]
    assert all(pieces[0].strip == Strip(0, 1000) for pieces in shares.values())


def test_one_rank_has_all_uncut():
    assert share_out({"fc": 9000}, 1, by_lanes=False)["fc"][0].strip == Strip(0, 9000)


def test_blocks_do_not_depend_on_the_strip_they_are_in():
    whole = list(blocks_of(Strip(0, 5000)))
    assert [*blocks_of(Strip(0, 2048)), *blocks_of(Strip(2048, 5000))] == whole
    assert whole[-1] == Strip(4096, 5000)
