"""The end of the writing process at one of its requests, in a store that outlives it."""

from contextlib import contextmanager

import pytest
from stores_in_buckets import contents

from dalr_stream.storage.buckets import claim
from dalr_stream.storage.buckets.process import this_process
from dalr_stream.storage.places.bucket import Bucket

WRITES = ("_put", "delete")


class Killed(BaseException):
    """Stands for the end of the process: nothing that it would do on its way out is done."""


@contextmanager
def process(dies_at=None, *, done=False):
    """Be a process of its own, which ends at its write number `dies_at`, with that write `done` or not; yields writes.

    What it claimed stays claimed, and whoever looks sees that the process is gone.
    """
    writes, ended = [], []

    def dying(function):
        def request(bucket, *arguments):
            if ended:
                raise Killed
            if function.__name__ in WRITES:
                writes.append(arguments[0])
                if dies_at == len(writes) - 1:
                    ended.append(True)
                    if done:
                        function(bucket, *arguments)
                    raise Killed
            return function(bucket, *arguments)

        return request

    with pytest.MonkeyPatch.context() as patch:
        for name in (*WRITES, "read_version", "version"):
            patch.setattr(Bucket, name, dying(getattr(Bucket, name)))
        gone = {**this_process(), "started": "before this machine"}
        patch.setattr(claim, "this_process", lambda: gone)
        yield writes


def held(root):
    """Return what a store holds; nothing where there is none yet."""
    from dalr_stream.errors import StoreNotFoundError

    try:
        return contents(root)
    except StoreNotFoundError:
        return {}
