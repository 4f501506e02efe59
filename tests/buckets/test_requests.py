"""What a server is asked was worked out before: puts and gets to the request, the small ones from above."""

from collections import Counter
from itertools import count

import pytest
import torch
from stores_in_buckets import SAMPLES, batches, network, small_tiles, whole_tiles

import dalr_stream as ds
from dalr_stream.engine.estimate import estimate
from dalr_stream.engine.planning.requests import bucket_requests
from dalr_stream.storage.buckets import claim
from dalr_stream.storage.places.bucket import Bucket
from dalr_stream.streaming.lanes import Pace

SMALL = ("version", "keys", "any_below", "names")
AT_MOST = 4
"""Times that the small requests may be counted too many: they are cheap, and kept apart."""


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch):
    """However slow this machine is, nobody renews a claim or writes a checkpoint: these are not counted."""
    monkeypatch.setattr(claim, "BEAT_SECONDS", 1e6)
    monkeypatch.setattr(claim, "LEASE_SECONDS", 1e7)
    monkeypatch.setattr(Pace, "due", lambda _: False)


@pytest.fixture
def asked(monkeypatch):
    """Count what is asked of any bucket."""
    counts = Counter()

    def counting(name, request):
        def asking(bucket, key, *arguments):
            what = "put" if name == "_put" else "get" if name == "read_version" and "/c/" in key else "small"
            counts[what] += 1
            return request(bucket, key, *arguments)

        return asking

    for name in ("_put", "read_version", *SMALL):
        monkeypatch.setattr(Bucket, name, counting(name, getattr(Bucket, name)))
    return counts


def planned(model, data, layers, folding, *, direct, rows=None):
    plan = estimate(model, {"target": data}, layers, folding, direct=direct, rows=rows)
    return bucket_requests(plan, layers, {"target": folding}).total


def done(model, data, layers, folding, store, *, direct, rows=None):
    if direct:
        ds.accumulate(model, data, layers, store=store, folding=folding, rows=rows)
    else:
        ds.capture(model, data, layers, store, domain="target", rows=rows)
        ds.accumulate(store, folding=folding)


def require_same(asked, expected):
    assert (asked["put"], asked["get"]) == (expected.puts, expected.gets)
    assert asked["small"] <= expected.small <= AT_MOST * asked["small"]


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("shards", [1, 3])
def test_capturing_and_accumulating(in_memory, asked, direct, share, shards):
    model, folding = network(), ds.Folding(ds.HoldoutRule(share), ds.Threads(1), shards=shards)
    layers = ds.watch(model, ["*"])
    expected = planned(model, batches(), layers, folding, direct=direct)
    asked.clear()
    done(model, batches(), layers, folding, in_memory, direct=direct)
    require_same(asked, expected)


def test_every_hundredth_batch_commits_once_there_are_many(in_memory, asked):
    model, data = network(), torch.split(torch.randn(700, 6), 1)
    layers, folding = ds.watch(model, ["*"], outputs=["0"]), ds.Folding(workers=ds.Threads(1))
    expected = planned(model, data, layers, folding, direct=False)
    asked.clear()
    done(model, data, layers, folding, in_memory, direct=False)
    require_same(asked, expected)


def test_a_matrix_folded_in_strips_and_one_of_several_chunks(in_memory, asked):
    with whole_tiles():
        model = torch.nn.Sequential(torch.nn.Linear(6, 2304), torch.nn.Linear(2304, 3)).eval()
        data, layers = torch.split(torch.randn(300, 6), 100), ds.watch(model, ["1"])
        for limit in (140 * 2**20, None):
            folding = ds.Folding(workers=ds.Threads(1), memory_limit_bytes=limit)
            expected = planned(model, data, layers, folding, direct=False)
            asked.clear()
            done(model, data, layers, folding, f"{in_memory}{limit}", direct=False)
            require_same(asked, expected)


def test_samples_of_unequal_lengths(in_memory, asked):
    """Which rows a mask leaves out is not known: what is planned is a bound."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.Linear(10, 3)).eval()
    data = [{"input": torch.randn(4, 5, 6)} for _ in range(6)]
    lengths = (torch.arange(5) < torch.tensor([5, 3, 4, 1])[:, None]).long()
    rule, folding = ds.RowRule(mask=lambda _: lengths), ds.Folding(workers=ds.Threads(1))
    layers = ds.watch(model, ["*"])
    expected = planned(model, data, layers, folding, direct=False, rows=rule)
    asked.clear()
    done(model, data, layers, folding, in_memory, direct=False, rows=rule)
    assert asked["put"] <= expected.puts
    assert asked["get"] <= expected.gets
    assert asked["small"] <= expected.small


def test_the_last_batch_may_be_shorter_and_a_shard_empty(in_memory, asked):
    model, layers = network(), ds.watch(network(), ["*"])
    for number, samples in zip(count(), (7, 333), strict=False):
        data = torch.split(torch.randn(samples, 6), 7)
        folding = ds.Folding(ds.HoldoutRule(0.3), ds.Threads(1), shards=3)
        expected = planned(model, data, layers, folding, direct=False)
        asked.clear()
        done(model, data, layers, folding, f"{in_memory}{number}", direct=False)
        assert 0 <= expected.puts - asked["put"] <= 16
        assert 0 <= expected.gets - asked["get"] <= 10


def test_a_server_counts_the_same(in_s3, s3):
    model, folding = network(), ds.Folding(ds.HoldoutRule(0.3), ds.Threads(1))
    layers = ds.watch(model, ["*"])
    expected = planned(model, batches(), layers, folding, direct=False)
    s3.requests.clear()
    done(model, batches(), layers, folding, in_s3, direct=False)
    methods = Counter(method for method, _ in s3.requests)
    assert methods["PUT"] == expected.puts
    assert s3.counted("/c/")["GET"] == expected.gets
    assert methods["GET"] + methods["HEAD"] - expected.gets <= expected.small


def test_more_bytes_are_planned_than_are_put(in_memory, monkeypatch):
    sizes = []
    put = Bucket._put

    def noting(bucket, key, data, mode):
        sizes.append(len(data) if "/c/" in key else 0)
        return put(bucket, key, data, mode)

    monkeypatch.setattr(Bucket, "_put", noting)
    model, folding = network(), ds.Folding(ds.HoldoutRule(0.3), ds.Threads(1))
    layers = ds.watch(model, ["*"])
    with small_tiles((256, 512)):
        expected = planned(model, batches(), layers, folding, direct=False)
        done(model, batches(), layers, folding, in_memory, direct=False)
    assert expected.put_bytes > SAMPLES * (6 + 10) * 4
    assert sum(sizes) < expected.put_bytes
