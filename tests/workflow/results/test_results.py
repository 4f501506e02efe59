import numpy as np
import pytest

from dalr_stream.report.records.results import ScoreCurve, ScorePoint
from dalr_stream.workflow.steps.solving.findings import RowCounts, activity, headline


def curve(method, accuracies, *, selection=False):
    points = [
        ScorePoint(size, None if selection else 30 * size, 20 * size + 100, accuracy)
        for size, accuracy in accuracies.items()
    ]
    return ScoreCurve(method, tuple(points))


def test_the_headline_takes_the_smallest_size_within_the_drop_and_its_ratio_to_svd():
    rows = headline(
        (
            curve("svd", {1: 0.2, 8: 0.95, 16: 0.93}),
            curve("dalr_anchored", {1: 0.3, 2: 0.96, 8: 0.97}),
            curve("spectral", {1: 0.1, 4: 0.94}, selection=True),
            curve("prune_max", {1: 0.1, 4: 0.2}, selection=True),
        ),
        0.94,
    )
    assert [row.size for row in rows] == [8, 2, 4, None]
    assert [row.svd_ratio for row in rows] == pytest.approx([1.0, 4.0, 260 / 180, None])
    assert rows[3].score is None


def test_there_is_no_ratio_where_svd_does_not_get_there():
    rows = headline((curve("svd", {1: 0.2}), curve("dalr_anchored", {1: 0.95})), 0.9)
    assert rows[1].size == 1
    assert rows[1].svd_ratio is None


def test_activity_ranks_the_features_and_finds_the_share_that_carries_half():
    rows = np.zeros((10, 4))
    rows[:6, 2] = 1.0
    rows[:2, 0] = -1.0
    rows[:2, 1] = 3.0
    found = activity("birds", RowCounts(10, np.count_nonzero(rows, axis=0)))
    assert found.active_rate == pytest.approx((0.6, 0.2, 0.2, 0.0))
    assert found.half_share == 0.25  # 0.6 of 1.0 is in the first of four


def test_features_that_never_fire_have_no_half():
    assert activity("dark", RowCounts(3, np.zeros(2, np.int64))).half_share == 1.0
