import pytest

from dalr_stream.errors import FingerprintMismatchError
from dalr_stream.storage.json_record import RecordKind
from dalr_stream.workflow.steps.step import Artefact, Step, json_record, read_stamped, write_stamped
from dalr_stream.workflow.steps.step_log import StepLog

KIND = RecordKind("sample", 1, "run sample")


def step(*artefacts, made_from="abc"):
    return Step("sample", "sample", (), lambda: made_from, lambda: artefacts, lambda _: None)


def test_a_step_is_fresh_only_with_its_fingerprint_and_its_artefacts(tmp_path):
    weights = Artefact(tmp_path / "weights")
    weights.path.touch()
    log = StepLog(tmp_path, {})
    assert step(weights).stale(log) == "not done yet"
    log.done("sample", "abc")
    assert step(weights).stale(log) is None
    assert step(weights, made_from="abd").stale(log) == "settings changed"
    weights.path.unlink()
    assert step(weights).stale(log) == f"there is no '{weights.path}'"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data.replace(b"17", b"18"), "is damaged"),
        (lambda data: data[: len(data) // 2], "is damaged"),
        (lambda _: b"", "is damaged"),
    ],
)
def test_a_damaged_record_is_one_line_and_the_step_is_stale(tmp_path, change, reason):
    path = tmp_path / "sample.json"
    write_stamped(path, KIND, "abc", {"value": 17})
    log = StepLog(tmp_path, {})
    log.done("sample", "abc")
    assert step(json_record(path, KIND)).stale(log) is None
    path.write_bytes(change(path.read_bytes()))
    stale = step(json_record(path, KIND)).stale(log)
    assert reason in stale
    assert "run sample" in stale
    assert "\n" not in stale


def test_a_record_of_other_settings_makes_the_step_stale_whatever_the_log_says(tmp_path):
    path = tmp_path / "sample.json"
    write_stamped(path, KIND, "other", {})
    log = StepLog(tmp_path, {})
    log.done("sample", "abc")
    assert step(json_record(path, KIND)).stale(log) == f"'{path}' was made from other settings"
    assert read_stamped(path, KIND) == read_stamped(path, KIND, "other") == {}
    with pytest.raises(FingerprintMismatchError, match="was made from other settings: run sample again"):
        read_stamped(path, KIND, "abc")
