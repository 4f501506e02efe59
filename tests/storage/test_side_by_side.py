"""A writer has its store alone; readers beside it see what was committed and change nothing."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from stores import (
    Killed,
    batches_of,
    capture,
    files_of,
    network,
    read_back,
    rows_for,
)

from dalr_stream.errors import (
    StoreLockedError,
)
from dalr_stream.storage.store import ActivationStore
from dalr_stream.storage.writer import open_writer

pytestmark = pytest.mark.usefixtures("quick_stores")


def test_a_second_writer_is_refused_also_from_another_process(tmp_path):
    script = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from stores import *
        from dalr_stream.errors import StoreLockedError
        try:
            capture({str(tmp_path)!r}, [], domain="source")
        except StoreLockedError as error:
            print(error)
    """)
    with open_writer(tmp_path, "target", network()):
        litter = tmp_path / ".tmp-of-the-writer"
        litter.write_text("mine")
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603
        assert "is being written by another process: wait for it" in run.stdout
        with pytest.raises(StoreLockedError), open_writer(tmp_path, "source", network()):
            pass
        assert litter.exists()
    capture(tmp_path, batches_of(rows_for(10), [10]))


def test_a_reader_beside_a_writer_sees_committed_rows_only_and_changes_nothing(tmp_path):
    rows = rows_for(100)
    with open_writer(tmp_path, "target", network()) as writer:
        seen = []
        for number, batch in enumerate(batches_of(rows, [9])):
            assert not writer.skip(number, batch.samples, batch.digest)
            writer.write(batch)
            before = files_of(tmp_path)
            store = ActivationStore(tmp_path)
            if "target" in store.manifest.domains:
                assert not store.domain("target").complete
                found = read_back(tmp_path, "classifier.0")
                assert np.array_equal(found, rows["classifier.0"][: len(found)])
                seen.append(len(found))
            assert files_of(tmp_path) == before
        writer.finish()
    assert seen == [4 * (9 * k // 4) for k in range(1, 12)] + [100]


def test_a_reader_opened_before_a_commit_goes_on_reading_what_it_knew(tmp_path):
    rows = rows_for(100)
    batches = list(batches_of(rows, [10]))
    with pytest.raises(Killed):
        capture(tmp_path, batches, stop_after=5)
    early = ActivationStore(tmp_path)
    capture(tmp_path, batches)
    tiles = [
        early.read_tile("target", "classifier.0", tile).rows for tile in range(early.tiles("target", "classifier.0"))
    ]
    assert np.array_equal(np.concatenate(tiles), rows["classifier.0"][:48])


def test_litter_is_swept_by_a_writer_and_left_by_a_reader(half):
    litter = [
        half / ".tmp-new-manifest.json-0123abcd",
        half / "activations/target/fc6/c/2/0.0123456789abcdef0123456789abcdef.partial",
    ]
    for path in litter:  # a chunk's is behind the last committed tile: its writer was killed before the commit
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    (half / "moments/target/fc6/.tmp-new-training-0123abcd").mkdir(parents=True)
    ActivationStore(half).read_tile("target", "fc6", 0)
    assert all(path.exists() for path in litter)
    capture(half, batches_of(rows_for(100), [10]))
    assert not any(path.exists() for path in litter)
    assert not (half / "moments/target/fc6/.tmp-new-training-0123abcd").exists()
