"""One block's moments at a time, in a bucket: killed anywhere, and from a run file, it ends as it does in a folder."""

import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from dying import Killed, process
from stopping import StopAfter, StoppedError
from stores_in_buckets import names
from tower_run_file import BY_BLOCKS, differences, files, named, write_tower

import dalr_stream as ds
from dalr_stream.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parents[1] / "engine" / "blocks"))
from block_networks import Tower, batches, in_shards, made

small = partial(Tower, 3)
SWEPT = ["accumulate.keep_moments=false", "evaluate.batches='tower:target'", "evaluate.ranks=[]"]
GRADIENTS = [
    "network.gradients=['blocks.*']", "solve.methods=['dalr_weighted_affine', 'svd']",
    "compress.method='dalr_weighted_affine'", 'compress.ratio="40%"',
]  # fmt: skip


def swept(network, store, folder):
    """Compress a network in one sweep; return the bytes of what was written."""
    layers = ds.watch(network, ["blocks.*"])
    with ds.statistics_by_block(network, batches(), layers, store=store) as statistics:
        pairs = {name: partial(lambda name: ds.dalr(statistics[name]).at_rank(2), name) for name in statistics}
        ds.compress_into(network, pairs, folder, made_from="rank 2")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_killed_at_any_put_the_sweep_goes_on_and_leaves_nothing(in_memory, done, tmp_path, soak):
    network = ds.open_network(small, in_shards(made(small), tmp_path / "weights"))
    with process() as writes:
        expected = swept(network, in_memory, tmp_path / "expected")
    few = 4
    for at in range(len(writes)) if soak else [(2 * number + 1) * len(writes) // (2 * few) for number in range(few)]:
        root, folder = in_memory.replace("store.zarr", f"{at}.zarr"), tmp_path / f"at-{at}"
        with process(at, done=done), suppress(Killed):
            swept(network, root, folder)
        with process():
            assert swept(network, root, folder) == expected
        assert names(root) == names(in_memory)
    assert not any("moments" in name or "unfinished" in name for name in names(in_memory))


def at(run_file, store, *settings, **options):
    return ds.Run.open(run_file, set=[*SWEPT, *settings, f"run.store={str(store)!r}"], **options)


@pytest.mark.parametrize("more", [[BY_BLOCKS["ratio"]], GRADIENTS, None], ids=["ratio", "gradients", "named"])
def test_a_run_file_that_keeps_no_moments(in_memory, more, tmp_path):
    run_file = write_tower(tmp_path / "run")
    settings = named(run_file) if more is None else more
    found = []
    for store in (tmp_path / "store.zarr", in_memory):
        with pytest.raises(StoppedError):
            at(run_file, store, *settings, progress=StopAfter(11)).evaluate()
        run = at(run_file, store, *settings)
        run.evaluate()
        network = {name: data for name, data in files(run.project.compressed).items() if name.startswith("model")}
        found.append((network, run.results.sizes))
        assert not any(would for step, would in at(run_file, store, *settings).outlook() if step != "report")
        run.project.output.rename(tmp_path / f"done-{len(found)}")
    assert not differences(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert names(in_memory) == ["manifest.json", "zarr.json"]


def test_moments_in_a_bucket_that_were_to_be_kept_are_not_swept_away(in_memory, tmp_path):
    run_file = write_tower(tmp_path / "run")
    at(run_file, in_memory, BY_BLOCKS["ratio"], "accumulate.keep_moments=true").accumulate()
    kept = names(in_memory)
    with pytest.raises(ConfigError, match=r"'memory://.*' has moments of 'target' that were to be kept"):
        at(run_file, in_memory, BY_BLOCKS["ratio"]).compress()
    assert names(in_memory) == kept
