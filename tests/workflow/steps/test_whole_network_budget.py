"""Sizes by a share of the whole network's parameters: what is not compressed counts, and narrows where it reads."""

import pytest

import dalr_stream as ds
from dalr_stream.errors import ConfigError, DalrStreamError
from dalr_stream.network.surgery.compress import parameter_count
from dalr_stream.numerics.methods import Method
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.sizes.compression import Compression

TOTAL = 16 * 12 + 16 + 10 * 16 + 10 + 3 * 10 + 3


def opened(run_file, *overrides, **sizes):
    return Run(Project(load_config(run_file, overrides, sizes), run_file.parent))


def left(run):
    return parameter_count(ds.load(run.project.compressed, run.project.code.build))


@pytest.mark.parametrize("method", [Method.DALR_ANCHORED_AFFINE, Method.SPECTRAL, None])
@pytest.mark.parametrize("share", [0.5, 0.75])
def test_the_network_has_at_most_the_share_and_most_of_it(finished_file, method, share):
    run = opened(finished_file, network=share, **({} if method is None else {"method": method.value}))
    run.compress()
    assert 0.75 * share * TOTAL <= left(run) <= share * TOTAL
    assert Compression.read(run.project.compression).rule == f"network {share:.0%}"


def test_readers_that_are_not_compressed_get_narrower_and_pay_for_nodes(run_file):
    run = opened(run_file, 'network.layers=["fc2"]', "solve.source=source", network="70%", method="spectral")
    for step in (run.train, run.accumulate, run.compress):
        step()
    rest = 16 * 12 + 16 + 10 + 3
    nodes = int((0.7 * TOTAL - rest) / (16 + 3))  # a row of fc2 and a column of fc3 each
    assert nodes == 3 > int((0.7 * TOTAL - rest - 30) / 16)
    assert Compression.read(run.project.compression).layers["fc2"].size == nodes
    assert left(run) == rest - (10 - nodes) + nodes * (16 + 3)


def test_a_share_below_what_is_not_compressed_is_refused_with_it(finished_file):
    with pytest.raises(ConfigError, match=r"network = 5\.00%: what is not compressed is 7\.06% of the network's"):
        opened(finished_file, network="5%", method="spectral").compress()
    with pytest.raises(DalrStreamError, match=r"compress\.network, in weights: .* raise it, or leave layers out"):
        opened(finished_file, network="16%", method="svd").compress()


def test_singular_values_are_the_smallest_rank_that_keeps_the_share_of_their_sum(finished_file):
    run = opened(finished_file, singular_values="60%", method="svd")
    run.compress()
    found = Compression.read(run.project.compression)
    store = run.store
    for layer in ("fc1", "fc2"):
        weight, _ = store.weights(layer)
        values = ds.numerics.singular_values(ds.truncated_svd(weight, None))
        rank = next(k for k in range(1, len(values) + 1) if values[:k].sum() >= 0.6 * values.sum())
        m, d = weight.shape
        smaller = rank if rank * (m + d) < m * d else None
        assert (found.layers[layer].size if layer in found.layers else None) == smaller
    with pytest.raises(ConfigError, match="layer 'fc1' is compressed by 'spectral', a selection, which has none"):
        opened(finished_file, singular_values="60%", method="spectral").compress()
