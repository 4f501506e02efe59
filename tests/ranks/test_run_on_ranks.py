"""A run file on several ranks: rank 0 does the steps, the others their part of those that run the network."""

import shutil

import pytest
from launching import launch
from tiny_run_file import write_run
from tower_run_file import differences, write_tower
from tower_run_file import files as files_of

from dalr_stream.storage.records.moments import load_moments, moments_path
from dalr_stream.storage.store import ActivationStore

DIRECT = ("--set", "capture.keep_activations=false", "--set", "accumulate.segment_batches=1")
FEW = ("--set", 'solve.methods=["svd", "dalr_anchored_affine", "momasp_node"]')


def run(file, ranks, *arguments):
    return launch(file.parent / "job", "command", ranks, ARGUMENTS="|".join(arguments))


def moments(file):
    root = file.parent / "out" / "store.zarr"
    names = [(domain, layer) for domain in ("target", "source") for layer in ("fc1", "fc2")]
    return [load_moments(moments_path(root, *name, part)) for name in names for part in ("training", "heldout")]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Run files of one process and of three ranks, trained by the same seed."""
    return [write_run(tmp_path_factory.mktemp(name) / "tiny") for name in ("one", "three")]


def test_a_run_has_the_bits_of_one_process(files):
    for file, ranks in zip(files, (1, 3), strict=True):
        ended = run(file, ranks, "accumulate", str(file), *DIRECT, *FEW)
        assert ended.codes == [0] * ranks, ended.errors
        assert all("report" not in error for error in ended.errors[1:])
    one, three = map(moments, files)
    assert [a.same_bits(b) for a, b in zip(one, three, strict=True)] == [True] * 8
    assert "ranks: 3 of them" in ended.errors[0]
    assert ended.errors[1:] == ["", ""]


def test_a_verb_that_runs_no_network_is_rank_0s(files):
    ended = run(files[0], 2, "solve", str(files[0]), *DIRECT, *FEW, "--set", "solve.ridge=1e-2")
    assert ended.codes == [0, 0], ended.errors
    assert ended.errors[1] == ""


def test_rows_that_are_kept_are_those_of_one_process(files):
    for file, ranks in zip(files, (1, 2), strict=True):
        ended = run(file, ranks, "capture", str(file), "--fresh")
        assert ended.codes == [0] * ranks, ended.errors
    one, two = (ActivationStore(file.parent / "out" / "store.zarr") for file in files)
    assert one.manifest.domains == two.manifest.domains


def test_an_error_of_another_rank_is_one_line_of_each(files):
    ended = run(files[0], 2, "accumulate", str(files[0]), "--fresh", *DIRECT, "--memory", "100KiB")
    assert ended.codes == [1, 1]
    assert ended.errors[1].startswith("dalr-stream, rank 1: ranks: ")
    assert len(ended.errors[1].splitlines()) == 1


def test_a_network_that_goes_block_by_block(tmp_path):
    file, segments, found = write_tower(tmp_path / "tower"), ("--set", "accumulate.segment_batches=1"), []
    for ranks in (1, 3):
        ended = run(file, ranks, "accumulate", str(file), "--fresh", *segments)
        assert ended.codes == [0] * ranks, ended.errors
        assert ended.errors[1:] == [""] * (ranks - 1)
        store = ActivationStore(file.parent / "out" / "store.zarr")
        domain = store.domain("target")
        paths = [moments_path(store.root, "target", name, "training") for name in domain.layers]
        found.append((domain, [load_moments(path) for path in paths]))
    (one, before), (three, after) = found
    assert one == three
    assert [a.same_bits(b) for a, b in zip(before, after, strict=True)] == [True] * len(one.layers)
    swept = []
    for ranks in (1, 3):
        settings = (*segments, "--set", "accumulate.keep_moments=false", "--set", "compress.ratio=0.5")
        shutil.rmtree(file.parent / "out")
        ended = run(file, ranks, "compress", str(file), *settings)
        assert ended.codes == [0] * ranks, ended.errors
        assert ended.errors[1:] == [""] * (ranks - 1)
        left = files_of(file.parent / "out" / "compressed")
        swept.append({name: data for name, data in left.items() if name.startswith("model")})
    assert swept[0].keys() > {"model.safetensors.index.json"}
    assert not differences(*swept)
