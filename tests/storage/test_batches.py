"""Batches in columns are those that came, in order; older copies do not change, and neither does what a store wrote."""

import copy
import json
import pickle
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalr_stream.errors import InvalidInputError
from dalr_stream.storage.batches import Batches, BatchLog, BatchRecord
from dalr_stream.storage.contents import DomainRecord, NetworkRecord
from dalr_stream.storage.json_record import digest_of
from dalr_stream.storage.manifest import FILE, Manifest

words = st.text(st.characters(codec="utf-8", exclude_characters=" \0"), min_size=1, max_size=70)
records = st.lists(st.builds(BatchRecord, st.integers(0, 2**40), words), max_size=80)


@given(records)
def test_they_come_back_as_they_came(several):
    batches = Batches.of(several)
    assert list(batches) == several
    assert len(batches) == len(several)
    assert batches.samples.tolist() == [batch.samples for batch in several]
    for again in (
        Batches.of_plain(json.loads(json.dumps(batches.plain()))),
        pickle.loads(pickle.dumps(batches)),  # noqa: S301  # our own
        Batches.joined([batches[:3], batches[3:]]),
    ):
        assert again == batches
        assert hash(again) == hash(batches)
        assert again.digested.hexdigest() == batches.digested.hexdigest()


@given(records, records)
def test_more_of_them_change_no_older_copy(before, after):
    first = Batches.of(before)
    logs = [BatchLog(first), BatchLog(first)]
    copies = [first]
    for batch in after:
        for log in logs:
            log.append(batch)
        copies.append(logs[0].batches)
    for number, kept in enumerate(copies):
        assert list(kept) == [*before, *after[:number]]
    assert list(logs[1].batches) == [*before, *after]


@given(records, records)
def test_equal_ones_have_equal_samples_and_digests(one, other):
    assert (Batches.of(one) == Batches.of(other)) == (one == other)
    assert Batches.of(one) != one


@pytest.mark.parametrize("digest", ["", "a b", "a\0"])
def test_a_digest_is_a_word(digest):
    with pytest.raises(InvalidInputError, match="a batch's digest must be a word, got "):
        BatchRecord(4, digest)


def test_a_store_of_schema_3_is_read_and_brought_to_this_one(tmp_path):
    batches = Batches.of([BatchRecord(4, "d"), BatchRecord(2, "e")])
    manifest = Manifest(NetworkRecord("f", {}), {"target": DomainRecord(True, batches)})
    plain = json.loads(json.dumps(manifest.plain()))
    body = copy.deepcopy(plain) | {"schema": 3}
    body["domains"]["target"]["batches"] = [{"samples": 4, "digest": "d"}, {"samples": 2, "digest": "e"}]
    (tmp_path / FILE).write_text(json.dumps({"digest": digest_of(body), "manifest": body}))
    read = Manifest.read(tmp_path)
    assert read == manifest
    read.write(tmp_path)
    assert json.loads((tmp_path / FILE).read_text())["manifest"] == plain | {"schema": 4}


def test_memory_of_a_batch_and_of_reading_it(tmp_path):
    """Figures of bytes, not of time: an object each took 350, and 590 while a manifest was read."""
    tracemalloc.start()
    log = BatchLog()
    for number in range(20_000):
        log.append(BatchRecord(16, f"{number:064x}"))
    held = tracemalloc.get_traced_memory()[0] / 20_000
    Manifest(NetworkRecord("f", {}), {"target": DomainRecord(True, log.batches)}).write(tmp_path)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    read = Manifest.read(tmp_path)
    peak = (tracemalloc.get_traced_memory()[1] - before) / 20_000
    tracemalloc.stop()
    assert read.domains["target"].batches == log.batches
    assert held < 100
    assert peak < 400
