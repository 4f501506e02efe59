"""Cross moments that a run file asks for: between its network and one compressed before."""

import dataclasses
import shutil

import pytest
from notes import Notes

import dalr_stream as ds
from dalr_stream.engine.cross.accumulate import accumulate_cross
from dalr_stream.errors import ConfigError, FingerprintMismatchError, StoreNotFoundError
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.verify import verify_run

HERE = 'accumulate.cross="small"'


def opened(run_file, *overrides, **options):
    said = Notes()
    return Run(Project(load_config(run_file, overrides, {}), run_file.parent), progress=said, **options), said.said


def save_small(run_file, rank, name="small"):
    """Save the run's network with fc1 a pair of layers."""
    network = opened(run_file)[0].project.network
    pair = ds.truncated_svd(*ds.network.weights_of(network, "fc1")).at_rank(rank)
    ds.save(ds.compress(network, {"fc1": pair}), run_file.parent / name)


@pytest.fixture
def with_small(finished_file):
    save_small(finished_file, 2)
    return finished_file


def test_they_are_those_of_python_and_skipped_while_fresh(with_small):
    run, said = opened(with_small, HERE)
    run.accumulate()
    project = run.project
    assert any("left out are fc1, which are compressed in the other" in line for line in said)
    small = ds.load(with_small.parent / "small", project.code.build)
    layers = ds.network.select_layers(project.network, ["fc2"])
    folding = dataclasses.replace(project.folding("target"), device=None)
    expected = accumulate_cross(project.network, small, project.code.batches("target"), layers, folding=folding)
    store = ds.open_store(project.cross)
    assert store.cross()["fc2"].same_bits(expected["fc2"])
    weight, bias = store.weights("fc2")
    assert weight.shape == (10, 16)
    assert ds.dalr(weight, bias, store.cross()["fc2"]).max_rank == 10
    assert project.stores == [project.store, project.cross]
    again, said = opened(with_small, HERE)
    again.accumulate()
    assert "accumulate cross: up to date, skipped" in said


def test_what_other_settings_left_half_made_is_no_finding(with_small):
    run, _ = opened(with_small, HERE)
    run.all()
    verify_run(run.project).require()
    shutil.rmtree(next((run.project.cross / "moments").glob("*/*/training")))
    (finding, *_) = verify_run(run.project).findings
    assert str(finding).endswith(f"delete '{run.project.cross}', which accumulate makes again")
    verification = verify_run(opened(with_small)[0].project)
    assert verification.findings == ()
    assert "cross.zarr: of other settings, not read; no step needs it now" in verification.whole


def test_a_compressed_network_that_changed_is_named_and_fresh_replaces_it(with_small):
    opened(with_small, HERE)[0].accumulate()
    shutil.rmtree(with_small.parent / "small")
    save_small(with_small, 3)
    run, _ = opened(with_small, HERE)
    with pytest.raises(FingerprintMismatchError, match=r"cross moments of the compressed network .* --fresh replaces"):
        run.accumulate()
    opened(with_small, HERE, fresh=True)[0].accumulate()


def test_a_folder_without_such_a_network_is_named(finished_file):
    with pytest.raises(StoreNotFoundError, match=r"'.*small' holds no compressed network"):
        opened(finished_file, HERE)[0].accumulate()
    done = opened(finished_file)[0].project.compressed
    run, _ = opened(finished_file, f'accumulate.cross="{done}"')
    with pytest.raises(ConfigError, match=r"accumulate.cross: '.*compressed' has none of fc1, fc2 as a layer"):
        run.accumulate()
