"""What the records print of themselves: one line, whatever they hold."""

import numpy as np
import pytest

import dalr_stream as ds

ROWS = np.random.default_rng(0).normal(size=(2000, 60))
MOMENTS = ds.Moments.of(ROWS)
LAYER = ds.Layer("fc", ROWS[:70], None, inputs=MOMENTS)
FACTORS, NODES = ds.dalr(LAYER), ds.spectral(MOMENTS)


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (MOMENTS, "Moments of 2,000 rows, 60 features"),
        (ds.numerics.CrossMoments.of(ROWS, ROWS[:, :3]), "CrossMoments of 2,000 rows, 60 inputs, 3 outputs"),
        (LAYER, "Layer 'fc', 70 x 60, with inputs"),
        (ds.Layer("fc", ROWS[:70], None), "Layer 'fc', 70 x 60, with no moments"),
        (FACTORS, "LowRankFactors by dalr_anchored_affine, 70 x 60, ranks 1 to 60"),
        (FACTORS.at_rank(7), "LowRankLayer of rank 7, 70 x 60"),
        (NODES, "ChannelSelection by spectral of 60 nodes, sizes 1 to 60"),
        (NODES.at_size(9), "SelectedNodes: 9 of 60"),
    ],
)
def test_a_record_prints_one_line(record, line):
    assert repr(record) == line
