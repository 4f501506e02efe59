"""A server of the S3 protocol that can be told to fail, and stores in it. All is skipped where obstore is not there."""

from datetime import timedelta
from itertools import count

import pytest
from stores_in_buckets import SECRET, small_tiles

_numbers = count()


@pytest.fixture(scope="session")
def s3():
    """The server; its bucket is `birds`."""
    pytest.importorskip("moto.server", reason="a server of the S3 protocol needs moto: pip install 'dalr_stream[dev]'")
    from s3_server import Server

    with Server("birds") as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "tester")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_REGION", "us-east-1")
        yield server


@pytest.fixture
def in_s3(s3):
    """A new store's URL on the server, which fails at nothing yet."""
    s3.fault = None
    yield f"s3://birds/{next(_numbers)}/store.zarr"
    s3.fault = None


@pytest.fixture
def in_memory():
    """A new store's URL in this process."""
    return f"memory://birds/{next(_numbers)}/store.zarr"


@pytest.fixture(scope="session")
def azure():
    """The URL of a container on a server of Azure's protocol, where there is one."""
    from azure_server import azurite

    with azurite("birds") as container:
        yield container


@pytest.fixture
def in_azure(azure):
    """A new store's URL on that server."""
    return f"{azure}/{next(_numbers)}/store.zarr"


@pytest.fixture(params=["memory", "s3", "azure"])
def store(request):
    """A new store's URL, in memory and on servers."""
    return request.getfixturevalue(f"in_{request.param}")


@pytest.fixture
def quick_tries(monkeypatch):
    """Failing requests are tried again at once, and a late answer is given up after a second."""
    from dalr_stream.storage.places import bucket

    monkeypatch.setattr(bucket, "FIRST_PAUSE", timedelta(milliseconds=2))
    monkeypatch.setattr(bucket, "REQUEST_TIMEOUT", timedelta(seconds=1))
    bucket.connect.cache_clear()
    yield
    bucket.connect.cache_clear()


@pytest.fixture(autouse=True, scope="module")
def _small_tiles():
    pytest.importorskip("obstore", reason="stores in buckets need obstore: pip install 'dalr_stream[buckets]'")
    with small_tiles():
        yield
