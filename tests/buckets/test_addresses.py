"""URLs: what is taken, what is refused, and that no secret is kept, shown or sent."""

import pickle
from pathlib import Path

import pytest
from stores_in_buckets import SECRET, capture, job

import dalr_stream as ds
from dalr_stream.errors import InvalidInputError, StoreError, StoreNotFoundError
from dalr_stream.storage.places import bucket
from dalr_stream.storage.places.place import place_of


@pytest.mark.parametrize(
    "url",
    [
        f"s3://tester:{SECRET}@birds/store.zarr",
        f"s3://birds/store.zarr?X-Amz-Signature={SECRET}",
        f"az://birds/store.zarr?sv=1&sig={SECRET}",
        f"gs://birds/store.zarr#{SECRET}",
    ],
)
def test_a_url_that_carries_a_secret_is_refused_and_not_repeated(url):
    with pytest.raises(InvalidInputError, match="environment") as refused:
        place_of(url)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["s3://birds", "s3:///store.zarr", "s3://birds/a//b", "s3://birds/../b", "s3://birds/./b"]
)
def test_a_url_names_a_bucket_and_a_store(url):
    with pytest.raises(InvalidInputError, match="name a bucket and a store in it"):
        place_of(url)


def test_another_scheme_is_refused_by_name():
    with pytest.raises(InvalidInputError, match="ftp://"):
        place_of("ftp://birds/store.zarr")


def test_a_url_that_went_through_a_path_is_told_apart_from_a_folder():
    with pytest.raises(InvalidInputError, match="as a str"):
        place_of(Path("s3://birds/store.zarr"))


def test_a_path_is_a_path(tmp_path):
    assert place_of(str(tmp_path)) == tmp_path
    assert place_of("birds.zarr") == Path("birds.zarr")


def test_a_servers_address_that_carries_a_secret_is_refused_and_not_repeated(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://tester:{SECRET}@somewhere")
    with pytest.raises(InvalidInputError, match="AWS_ENDPOINT_URL") as refused:
        place_of("s3://birds/store.zarr")
    assert SECRET not in str(refused.value)


def test_where_there_is_no_store_none_is_read(store):
    with pytest.raises(StoreNotFoundError, match="there is nothing at"):
        ds.open_store(store)


def test_a_bucket_that_is_not_there_is_named(in_s3):  # noqa: ARG001
    with pytest.raises(StoreError, match="there is no bucket 's3://nests'"):
        capture("s3://nests/store.zarr")


def test_what_is_sent_to_another_process_is_the_address_and_no_secret(in_s3, monkeypatch):
    job(in_s3)
    sent = pickle.dumps(ds.open_store(in_s3))
    assert SECRET.encode() not in sent
    monkeypatch.delenv("AWS_ENDPOINT_URL")  # the address says where the server is
    bucket.connect.cache_clear()
    assert pickle.loads(sent).domains == ("target",)  # noqa: S301  # sent by this test


def test_what_lies_in_memory_is_sent_nowhere(in_memory):
    with pytest.raises(InvalidInputError, match="memory:// lies in one process"):
        pickle.dumps(place_of(in_memory))


def test_no_object_holds_a_secret(in_s3):
    job(in_s3)
    root = place_of(in_s3)
    keys = list(root.bucket.keys(root.key))
    assert len(keys) > 40
    assert not any(SECRET.encode() in root.bucket.read(key) for key in keys)


@pytest.mark.usefixtures("quick_tries")
def test_a_refused_request_is_one_line_without_the_secret(in_s3, s3):
    from s3_server import Fault

    s3.fault = lambda *_: Fault.ERROR
    with pytest.raises(StoreError, match="cannot be reached") as failed:
        ds.open_store(in_s3)
    text = str(failed.value)
    assert in_s3 in text
    assert "\n" not in text
    assert SECRET not in text
