import json

import pytest

from dalr_stream.workflow.steps.step import FILE, StepLog


def test_a_step_is_fresh_only_with_its_fingerprint_and_its_artefacts(tmp_path):
    artefact = tmp_path / "weights"
    artefact.touch()
    log = StepLog(tmp_path, {"ridge": 1})
    assert not log.fresh("train", "abc", [artefact])
    log.done("train", "abc")
    again = StepLog(tmp_path, {"ridge": 2})
    assert again.fresh("train", "abc", [artefact])
    assert not again.fresh("train", "abd", [artefact])
    assert not again.fresh("solve", "abc", [artefact])
    artefact.unlink()
    assert not again.fresh("train", "abc", [artefact])


def test_the_configuration_of_each_step_is_the_one_it_was_made_by(tmp_path):
    StepLog(tmp_path, {"ridge": 1}).done("train", "a")
    StepLog(tmp_path, {"ridge": 2}).done("solve", "b")
    kept = json.loads((tmp_path / FILE).read_text())
    assert kept["train"]["configuration"] == {"ridge": 1}
    assert kept["solve"]["configuration"] == {"ridge": 2}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"train": 3}', "null"])
def test_a_log_that_cannot_be_read_makes_every_step_stale(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    log = StepLog(tmp_path, {})
    assert not log.fresh("train", "a", [])
    log.done("train", "a")
    assert StepLog(tmp_path, {}).fresh("train", "a", [])
