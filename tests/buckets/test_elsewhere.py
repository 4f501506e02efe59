"""Workers, commands and whole runs that share nothing but the bucket."""

import pytest
from stores_in_buckets import accumulate, capture, contents, job, whole_tiles
from tiny_run_file import write_run
from typer.testing import CliRunner

import dalr_stream as ds
from dalr_stream.cli.app import app
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.errors import ConfigError, InvalidInputError, ResourceError
from dalr_stream.storage.places.place import place_of
from dalr_stream.streaming.cluster import open_cluster

of_distributed = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def _whole_tiles():
    with whole_tiles():
        yield


@pytest.mark.usefixtures("_whole_tiles")
class TestCluster:
    pytestmark = of_distributed

    def test_workers_read_the_rows_from_the_bucket(self, in_s3, s3, tmp_path):
        job(tmp_path)
        capture(in_s3)
        s3.requests.clear()
        with open_cluster(workers=2) as cluster:
            accumulate_stored(in_s3, domain="target", folding=ds.Folding(ds.HoldoutRule(0.3), cluster))
        assert s3.counted("/activations/target/0/c/0/0") == {"GET": 1}
        assert contents(in_s3) == contents(tmp_path)

    def test_workers_that_cannot_read_it_are_one_line(self, in_memory, in_s3, monkeypatch):
        capture(in_s3)
        capture(in_memory)
        monkeypatch.setattr("dalr_stream.streaming.cluster.PATIENCE_SECONDS", 10.0)
        with open_cluster(workers=1) as cluster:
            folding = ds.Folding(ds.HoldoutRule(0.3), cluster)
            with pytest.raises(InvalidInputError, match="memory:// lies in one process"):
                accumulate_stored(in_memory, domain="target", folding=folding)
            cluster.client.run(_without_credentials)
            with pytest.raises(ResourceError, match="or in a bucket for which they have the credentials"):
                accumulate_stored(in_s3, domain="target", folding=folding)


def _without_credentials():
    from dalr_stream.storage.places.bucket import Bucket

    def refused(*_):
        raise OSError

    Bucket.read_version = refused


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
