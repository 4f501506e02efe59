"""Small records with a digest: what comes back is what was written, or one error that says what to do."""

import errno
import json
import math
import os
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalr_stream.errors import FingerprintMismatchError, StoreDamagedError, StoreError, StoreNotFoundError
from dalr_stream.storage.json_record import RecordKind, read_record, write_record

KIND = RecordKind("evaluation", 1, "run evaluate")
CONTENT = {"metric": "accuracy", "sizes": [{"n": 12, "score": 0.5}], "none": None, "deep": {"ä": [True, -1e-300]}}
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "evaluation.json"


@given(content=plain)
def test_content_comes_back_as_it_was(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "one.json"
    write_record(path, KIND, content)
    assert read_record(path, KIND) == content


def test_keys_that_are_numbers_come_back_as_text_and_are_not_taken_for_damage(path):
    write_record(path, KIND, {10: "a", 2: (1, 2)})
    assert read_record(path, KIND) == {"10": "a", "2": [1, 2]}


def test_a_score_that_is_no_number_comes_back(path):
    write_record(path, KIND, [math.nan, math.inf])
    nan, infinity = read_record(path, KIND)
    assert math.isnan(nan)
    assert infinity == math.inf


def test_what_json_cannot_hold_leaves_the_old_record(path):
    write_record(path, KIND, CONTENT)
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_record(path, KIND, {"path": path})
    assert read_record(path, KIND) == CONTENT
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_missing_record_names_the_command(path):
    message = f"there is no '{path}': run evaluate first"
    with pytest.raises(StoreNotFoundError, match=f"^{re.escape(message)}$"):
        read_record(path, KIND)


def test_every_shortened_file_is_damaged_and_names_the_remedy(path):
    write_record(path, KIND, CONTENT)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(StoreDamagedError, match=r"evaluation\.json.*run evaluate again"):
            read_record(path, KIND)


def test_every_changed_byte_is_damaged_and_names_the_remedy(path):
    write_record(path, KIND, CONTENT)
    data = path.read_bytes()
    for at in range(len(data)):
        for flipped in (data[at] ^ 1, data[at] ^ 32):
            path.write_bytes(data[:at] + bytes([flipped]) + data[at + 1 :])
            with pytest.raises(StoreDamagedError, match=r"evaluation\.json.*run evaluate again"):
                read_record(path, KIND)


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"{}", b"7", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"metric": "accuracy", "sizes": []}'],
)
def test_what_is_no_record_is_damaged(path, data):
    path.parent.mkdir()
    path.write_bytes(data)
    with pytest.raises(StoreDamagedError, match="it is no record of kind 'evaluation'; run evaluate again"):
        read_record(path, KIND)


def test_a_record_of_another_kind_under_this_name_is_damage(path):
    write_record(path, RecordKind("stability", 1, "run solve"), CONTENT)
    with pytest.raises(StoreDamagedError, match="a record of kind 'stability', not 'evaluation'; run evaluate again"):
        read_record(path, KIND)


def test_a_changed_content_with_the_old_digest_is_damage(path):
    write_record(path, KIND, {"score": 0.5})
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "content": {"score": 0.6}}, indent=1) + "\n")
    with pytest.raises(StoreDamagedError, match="its digest does not match its content"):
        read_record(path, KIND)


def test_a_record_of_another_version_is_refused_by_name(path):
    write_record(path, RecordKind("evaluation", 2, "run evaluate"), CONTENT)
    with pytest.raises(FingerprintMismatchError, match="has schema 2, this version reads 1: run evaluate again"):
        read_record(path, KIND)


def test_a_folder_in_place_of_a_record_is_not_called_damaged(path):
    path.mkdir(parents=True)
    with pytest.raises(StoreError, match=r"cannot be read \(Is a directory\)") as caught:
        read_record(path, KIND)
    assert type(caught.value) is StoreError


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_an_unreadable_record_is_not_called_damaged(path, number, monkeypatch):
    def refuse(file):
        raise OSError(number, os.strerror(number), str(file))

    write_record(path, KIND, CONTENT)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(StoreError, match=f"cannot be read \\({os.strerror(number)}\\): check the disk") as caught:
        read_record(path, KIND)
    assert type(caught.value) is StoreError


def test_a_reader_beside_a_writer_sees_the_old_record_or_the_new_one(path):
    write_record(path, KIND, 0)
    stop = threading.Event()

    def write():
        for number in range(1, 100):
            write_record(path, KIND, number)
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = [0]
    while not stop.is_set():
        seen.append(read_record(path, KIND))
    writer.join()
    assert seen == sorted(seen)
    assert read_record(path, KIND) == 99
