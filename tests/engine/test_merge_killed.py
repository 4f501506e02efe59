"""A merge that was killed leaves the old store or one that says so, and can be repeated."""

import os
from pathlib import Path

import pytest
from capture_jobs import name_of
from commands import forked

from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.engine.stores.merge import merge
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    StoreNotFoundError,
)
from dalr_stream.storage.manifest import Manifest

pytestmark = pytest.mark.usefixtures("unsynced", "jobs_as_they_were")


def dying_merge(renames, out, stores, without):
    """Merge, and die before so many whole records or manifests and one have their names."""
    left = renames

    def counted(original):
        def dying(path, target):
            nonlocal left
            left -= path.name.startswith(".tmp-new-") and "zarr.json" not in path.name
            if left < 0:
                os._exit(9)
            return original(path, target)

        return dying

    Path.rename, Path.replace = counted(Path.rename), counted(Path.replace)
    os.fsync = lambda _: None
    merge(stores, out, without=without)


def killed_merge(renames, out, *stores, without=()):
    """Kill a merge of `stores` into `out`; return whether it was killed before it ended."""
    return forked(dying_merge, renames, out, stores, without).returncode == 9


@pytest.fixture(scope="module")
def sum_of_a_and_b(jobs, tmp_path_factory):
    """The store that nobody killed a merge of."""
    return merge([jobs["a"], jobs["b"]], tmp_path_factory.mktemp("expected") / "sum").root


@pytest.mark.parametrize("renames", [0, 5, 8, 9, 10, 12])
def test_a_killed_merge_leaves_the_old_store_or_one_that_says_so_and_can_be_repeated(
    jobs, sum_of_a_and_b, tmp_path, contents, renames
):
    """Eight records of shards, the manifest, four sums: a kill before each kind, and between two."""
    expected = contents(sum_of_a_and_b)
    out = merge([jobs["a"]], tmp_path / "out").root
    assert killed_merge(renames, out, jobs["a"], jobs["b"])
    committed = set(Manifest.read(out).domains["target"].shards)
    assert committed in ({name_of(jobs["a"])}, set(map(name_of, (jobs["a"], jobs["b"]))))
    known = [root for root in jobs.values() if name_of(root) in committed]
    try:
        found = StoreView.open(out).moments("target", "0").count
        assert found == sum(accumulate_stored(root, domain="target")["0"].count for root in known)
    except (FingerprintMismatchError, StoreNotFoundError):
        assert renames in (9, 10)  # the sums of this layer were being replaced
    assert len(committed) == (1 if renames <= 8 else 2)
    merge([jobs["a"], jobs["b"]], out)
    assert contents(out) == expected


@pytest.mark.parametrize("renames", [0, 3, 4, 5, 6, 8])
def test_a_killed_merge_into_an_existing_store_goes_on_to_the_same_bytes(
    jobs, sum_of_a_and_b, tmp_path, contents, renames
):
    """Four records of the new shard, the manifest, four sums."""
    expected = contents(sum_of_a_and_b)
    out = merge([jobs["a"]], tmp_path / "out").root
    assert killed_merge(renames, out, out, jobs["b"])
    for _ in range(2):
        merge([out, jobs["b"]], out)
        assert contents(out) == expected


@pytest.mark.parametrize("renames", [0, 1, 2, 4])
def test_a_killed_removal_of_a_shard_goes_on_to_the_same_bytes(jobs, tmp_path, contents, renames):
    """The manifest, four sums; then the shard's folder goes."""
    expected = contents(merge([jobs["a"], jobs["c"]], tmp_path / "expected").root)
    out = merge([jobs["a"], jobs["b"], jobs["c"]], tmp_path / "out").root
    gone = name_of(jobs["b"])
    assert killed_merge(renames, out, out, without=[gone])
    merge([out], out, without=[gone])
    assert contents(out) == expected
    with pytest.raises(InvalidInputError, match=f"without: there is no shard '{gone}'"):
        merge([out], out, without=[gone])


def test_a_first_merge_that_was_killed_is_taken_up(jobs, sum_of_a_and_b, tmp_path, contents):
    expected = contents(sum_of_a_and_b)
    for renames in (0, 1, 2, 7):
        out = tmp_path / f"out{renames}"
        assert killed_merge(renames, out, jobs["a"], jobs["b"])
        with pytest.raises(StoreNotFoundError):
            accumulate_stored(out, domain="target")
        merge([jobs["b"], jobs["a"]], out)
        assert contents(out) == expected
