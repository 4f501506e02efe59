import json

import pytest

from dalr_stream.workflow.steps.step_log import FILE, StepLog


def test_what_a_step_was_made_from_outlives_the_process_until_it_is_begun_again(tmp_path):
    StepLog(tmp_path, {}).done("train", "abc")
    log = StepLog(tmp_path, {})
    assert log.made_from("train") == "abc"
    assert log.made_from("solve") is None
    log.begin("train")
    assert log.made_from("train") is None
    assert StepLog(tmp_path, {}).made_from("train") is None


def test_the_configuration_of_each_step_is_the_one_it_was_made_by(tmp_path):
    StepLog(tmp_path, {"ridge": 1}).done("train", "a")
    StepLog(tmp_path, {"ridge": 2}).done("solve", "b")
    log = json.loads((tmp_path / FILE).read_text())["content"]
    assert log["train"]["configuration"] == {"ridge": 1}
    assert log["solve"]["configuration"] == {"ridge": 2}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"train": 3}', "null"])
def test_a_damaged_log_makes_every_step_stale_and_says_so(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    log = StepLog(tmp_path, {})
    assert log.made_from("train") is None
    assert "is damaged" in log.damage
    assert "\n" not in log.damage
    log.done("train", "a")
    again = StepLog(tmp_path, {})
    assert again.made_from("train") == "a"
    assert again.damage == ""


def test_a_changed_digit_in_the_log_counts_as_damage(tmp_path):
    StepLog(tmp_path, {}).done("train", "1234")
    path = tmp_path / FILE
    path.write_text(path.read_text().replace("1234", "1235"))
    assert StepLog(tmp_path, {}).made_from("train") is None


def test_a_log_of_0_1_still_counts(tmp_path):
    (tmp_path / FILE).write_text(json.dumps({"train": {"made_from": "abc", "configuration": {}}}))
    log = StepLog(tmp_path, {})
    assert (log.made_from("train"), log.made_from("solve"), log.damage) == ("abc", None, "")
