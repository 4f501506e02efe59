"""A bad link and a failing server: the same bits, or one line."""

import itertools

import pytest
from soaking import in_soak
from stores_in_buckets import contents, job

from dalr_stream.errors import StoreError
from dalr_stream.storage.places import bucket

pytest.importorskip("moto.server", reason="a server of the S3 protocol needs moto: pip install 'dalr_stream[dev]'")
from s3_server import Fault

pytestmark = pytest.mark.usefixtures("quick_tries")
WRITTEN = ("PUT", "POST", "DELETE")


@pytest.mark.parametrize(
    "fault", [Fault.SLOW_DOWN, Fault.DONE_TORN, Fault.HALF, *in_soak(Fault.ERROR, Fault.TORN, Fault.DONE_ERROR)]
)
def test_every_request_failing_once_ends_in_the_same_bits(in_s3, s3, tmp_path, fault):
    job(tmp_path)
    failed = set()

    def first_time(_number, method, path):
        if (method, path) in failed:
            failed.remove((method, path))
            return None
        failed.add((method, path))
        return fault

    s3.requests.clear()
    s3.fault = first_time
    job(in_s3)
    s3.fault = None
    assert len(s3.requests) > 200
    assert contents(in_s3) == contents(tmp_path)


def test_an_answer_that_comes_too_late_is_asked_for_again(in_s3, s3, tmp_path):
    job(tmp_path)
    s3.fault = lambda number, method, _: Fault.LATE if number % 40 == 7 and method in (*WRITTEN, "GET") else None
    job(in_s3)
    s3.fault = None
    assert contents(in_s3) == contents(tmp_path)


@pytest.mark.parametrize("fault", [Fault.DONE_TORN, *in_soak(Fault.ERROR, Fault.TORN)])
def test_a_server_that_fails_for_good_is_one_line_and_the_same_command_goes_on(
    in_s3, s3, tmp_path, fault, monkeypatch, soak
):
    job(tmp_path)
    monkeypatch.setattr(bucket, "RETRY_LIMIT", 1)
    bucket.connect.cache_clear()
    s3.requests.clear()
    job(in_s3.replace("store.zarr", "whole.zarr"))
    total, lines = len(s3.requests), []
    for last in range(3, total, 7 if soak else total // 4):
        begun = itertools.count()
        s3.fault = lambda *_, begun=begun, last=last: fault if next(begun) >= last else None
        lines.append(line_of(job, in_s3))
        s3.fault = None
    job(in_s3)
    assert contents(in_s3) == contents(tmp_path)
    assert len([line for line in lines if line]) > 1  # it goes on each time, and so comes to its end
    assert all("\n" not in line and (not line or "s3://birds/" in line) for line in lines)


def line_of(act, *arguments):
    """Return what an act that fails says; nothing of one that does not."""
    try:
        act(*arguments)
    except StoreError as error:
        return str(error)
    return ""
