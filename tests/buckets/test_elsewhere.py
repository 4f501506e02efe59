"""Commands and whole runs that share nothing but the bucket."""

import pytest
from stores_in_buckets import accumulate, capture, contents, job
from tiny_run_file import write_run
from typer.testing import CliRunner

import dalr_stream as ds
from dalr_stream.cli.app import app
from dalr_stream.errors import ConfigError
from dalr_stream.storage.places.place import place_of


def test_verbs_take_urls_of_stores(in_memory):
    job(in_memory)
    other = in_memory.replace("store.zarr", "other.zarr")
    capture(other, seed=2)
    accumulate(other)
    merged = in_memory.replace("store.zarr", "merged.zarr")
    for words in (
        ["verify", in_memory],
        ["merge", merged, in_memory, other],
        ["verify", merged],
        ["diff", in_memory, "target", "target", "--other", other],
    ):
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output


def test_a_run_has_its_store_in_a_bucket_and_the_rest_in_its_folder(in_memory, tmp_path, quick):  # noqa: ARG001
    file = write_run(tmp_path / "run")
    in_bucket = [f'run.store="{in_memory}"', 'run.output="bucket"']
    ds.Run.open(file, set=in_bucket).all()
    ds.Run.open(file).all()
    folders = [file.parent / name for name in ("bucket", "out")]
    assert contents(in_memory) == contents(folders[1] / "store.zarr")
    assert {path.name for path in folders[1].iterdir()} - {path.name for path in folders[0].iterdir()} == {"store.zarr"}
    pages = [(folder / "evaluation.json").read_bytes() for folder in folders]
    assert pages[0] == pages[1]
    root = place_of(in_memory)
    versions = {key: root.bucket.version(key) for key in root.bucket.keys(root.key) if not key.endswith(".lock")}
    ds.Run.open(file, set=in_bucket).all()  # with nothing left to do
    assert versions == {key: root.bucket.version(key) for key in versions}


def test_a_run_file_takes_no_url_with_a_secret(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.store: a URL") as refused:
        ds.Run.open(write_run(tmp_path / "run"), set=['run.store="s3://me:mine@birds/store.zarr"'])
    assert "mine" not in str(refused.value)


def test_a_store_may_lie_in_another_folder(tmp_path, quick):  # noqa: ARG001
    run = ds.Run.open(write_run(tmp_path / "run"), set=['run.store="../birds.zarr"'])
    run.all()
    assert place_of(tmp_path / "birds.zarr").is_dir()
    assert not (tmp_path / "run/out/store.zarr").exists()
