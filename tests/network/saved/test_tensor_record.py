"""Tensors by name in one record: every type comes back as it was, and what is not what was written is refused."""

import itertools

import pytest
import torch
from torch import nn

from dalr_stream.errors import FingerprintMismatchError, StoreDamagedError, StoreNotFoundError
from dalr_stream.network.saved.tensor_record import TensorRecord
from dalr_stream.storage.places.place import place_of, remove_folder

TENSORS = {
    "half": torch.randn(3, 5).bfloat16(),
    "turned": torch.randn(4, 6).T,
    "part": torch.randn(9, 4)[2:5, 1:],
    "counted": torch.tensor(7),
    "none": torch.zeros(0, 3),
    "kept/only": torch.tensor([True, False]),
    "small": torch.randn(2).to(torch.float8_e4m3fn),
    "not a number": torch.tensor([float("nan"), float("inf"), -0.0]),
}
_numbers = itertools.count()


@pytest.fixture(params=["folder", "bucket"])
def path(request, tmp_path):
    if request.param == "bucket":
        pytest.importorskip("obstore")
        return place_of(f"memory://tensors/{next(_numbers)}") / "block" / "network"
    return tmp_path / "block" / "network"


def test_tensors_come_back_byte_by_byte(path):
    TensorRecord.write(path, TENSORS, {"made_from": "x", "steps": [{"kept": [1, 2]}]})
    record = TensorRecord.open(path)
    assert dict(record.values) == {"made_from": "x", "steps": [{"kept": [1, 2]}]}
    assert record.names == TENSORS.keys()
    for name, tensor in TENSORS.items():
        found = record.tensor(name)
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        bits = [one.reshape(-1).view(torch.int8).tolist() for one in (found, tensor)]
        assert bits[0] == bits[1]
    assert record.digest == TensorRecord.open(path).digest


def test_they_are_put_where_a_network_has_them(path):
    one, other = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).bfloat16() for _ in range(2))
    TensorRecord.write(path, one.state_dict(), {})
    TensorRecord.open(path).fill(other)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_another_record_in_its_place_is_refused(path):
    TensorRecord.write(path, {"a": torch.ones(2)}, {})
    before = TensorRecord.open(path)
    TensorRecord.write(path, {"a": torch.zeros(2)}, {})
    after = TensorRecord.open(path)
    assert before.stamp != after.stamp
    assert before.digest != after.digest
    with pytest.raises(FingerprintMismatchError, match="was replaced since the network was opened"):
        before.tensor("a")
    remove_folder(path)
    with pytest.raises(StoreNotFoundError, match="was removed since the network was opened"):
        after.tensor("a")
    with pytest.raises(StoreNotFoundError):
        TensorRecord.open(path)


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_damaged_tensor_is_found_out(damage, tmp_path):
    path = tmp_path / "block" / "network"
    TensorRecord.write(path, {"a": torch.randn(50), "b": torch.randn(50)}, {})
    record, chunk = TensorRecord.open(path), path / "1" / "c" / "0"
    if damage == "gone":
        chunk.unlink()
    else:
        chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    record.tensor("a")
    with pytest.raises(StoreDamagedError, match=r"array '1'"):
        record.require_whole()


def test_a_record_of_other_things_is_refused(tmp_path):
    from dalr_stream.storage.records.record import save_record

    save_record(tmp_path / "block" / "network", [], {}, {}, {}, names=2)
    with pytest.raises(StoreDamagedError, match="holds no tensors"):
        TensorRecord.open(tmp_path / "block" / "network")
