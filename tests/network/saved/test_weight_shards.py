"""Networks opened from shards: files that do not fit, lie or are damaged are one clear line before anything runs."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import FingerprintMismatchError, InvalidInputError, StoreDamagedError, StoreNotFoundError

sys.path.insert(0, str(Path(__file__).parents[2] / "engine" / "blocks"))
from block_networks import Tower, batches, in_shards, made

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    return in_shards(made(Tower), tmp_path / "weights")


def shard(folder, number=1):
    return sorted(folder.glob("*.safetensors"))[number]


def change(path, edit):
    state = load_file(path)
    edit(state)
    save_file(state, path)


def indexed(folder, edit):
    index = json.loads((folder / INDEX).read_text())
    edit(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def lacking(folder):
    name = next(iter(load_file(shard(folder))))
    change(shard(folder), lambda state: state.pop(name))
    indexed(folder, lambda index: index.pop(name))


def left_over(folder):
    change(shard(folder), lambda state: state.update(strange=torch.zeros(2)))
    indexed(folder, lambda index: index.update(strange=shard(folder).name))


def of_another_shape(folder):
    change(shard(folder, 0), lambda state: state.update({"words.weight": torch.zeros(7, 8)}))


def index_names_another_file(folder):
    names = list(load_file(shard(folder)))
    indexed(folder, lambda index: index.update({names[0]: shard(folder, 0).name}))


def of_whole_numbers(folder):
    change(shard(folder, 0), lambda state: state.update({"words.weight": state["words.weight"].to(torch.int8)}))


def one_file_beside_the_index(folder):
    (folder / "model.safetensors").write_bytes(shard(folder).read_bytes())


def index_lacks_one(folder):
    indexed(folder, lambda index: index.pop(next(iter(index))))


def index_names_more(folder):
    indexed(folder, lambda index: index.update(strange=shard(folder).name))


def twice(folder):
    name = next(iter(load_file(shard(folder, 0))))
    change(shard(folder), lambda state: state.update({name: torch.zeros(2)}))


def cut_short(folder):
    shard(folder).write_bytes(shard(folder).read_bytes()[:-9])


def another_header(folder):
    data = bytearray(shard(folder).read_bytes())
    data[8] ^= 4
    shard(folder).write_bytes(bytes(data))


def no_file(folder):
    shard(folder).unlink()


def index_is_no_index(folder):
    (folder / INDEX).write_text("{}")


def index_leads_elsewhere(folder):
    indexed(folder, lambda index: index.update({next(iter(index)): "../secret.safetensors"}))


def index_names_the_folder_above(folder):
    indexed(folder, lambda index: index.update({next(iter(index)): ".."}))


def pickled(folder):
    torch.save({}, shard(folder))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lacking, FingerprintMismatchError, "does not fit the network that was built: '.*' is missing"),
        (left_over, FingerprintMismatchError, "'strange' is left over"),
        (of_another_shape, FingerprintMismatchError, "'words.weight' is 7 x 8 there and 30 x 8 in the network"),
        (of_whole_numbers, FingerprintMismatchError, r"'words.weight' is I8 there and torch.float32 in the network"),
        (index_names_another_file, FingerprintMismatchError, "says that '.*' is in '.*1-of.*', and it is in '.*2-of"),
        (index_lacks_one, FingerprintMismatchError, "does not name '.*', which '.*' holds"),
        (index_names_more, FingerprintMismatchError, "says that 'strange' is in .* in none of the files"),
        (twice, FingerprintMismatchError, "is in two files"),
        (cut_short, StoreDamagedError, "is not a readable safetensors file"),
        (another_header, StoreDamagedError, "is not a readable safetensors file"),
        (
            one_file_beside_the_index,
            InvalidInputError,
            "has both 'model.safetensors' and .*: name the one that is meant",
        ),
        (no_file, StoreNotFoundError, "there is no '.*', which"),
        (index_is_no_index, StoreDamagedError, "is no index of safetensors files"),
        (index_leads_elsewhere, StoreDamagedError, "names '../secret.safetensors', which is not a file beside it"),
        (index_names_the_folder_above, StoreDamagedError, "names '..', which is not a file beside it"),
        (pickled, InvalidInputError, "is a file of torch.save, which is not read"),
    ],
)
def test_files_that_are_wrong(spoil, error, message, folder):
    spoil(folder)
    with pytest.raises(error, match=message) as caught:
        ds.open_network(Tower, folder)
    assert "\n" not in str(caught.value)


def test_a_file_that_was_replaced_since_it_was_opened_is_refused(folder):
    network = ds.open_network(Tower, folder)
    expected = network(**batches()[0])
    assert torch.equal(network(**batches()[0]), expected)
    change(shard(folder), lambda state: state.update({name: one + 1 for name, one in state.items()}))
    with pytest.raises(FingerprintMismatchError, match="was replaced since the network was opened: open it again"):
        network(**batches()[0])
    assert not torch.equal(ds.open_network(Tower, folder)(**batches()[0]), expected)
    shard(folder).unlink()
    with pytest.raises(StoreNotFoundError, match="was removed since the network was opened"):
        network(**batches()[0])


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(StoreNotFoundError, match="there are no weights at"):
        ds.open_network(Tower, tmp_path)


def test_tensors_that_the_network_has_as_one_must_be_one(folder):
    numbers = load_file(shard(folder, 0))["words.weight"]
    for number, value in ((1, numbers), (2, numbers + 1)):
        change(shard(folder, number), lambda state, value=value: state.update({"head.weight": value.clone()}))
        indexed(folder, lambda index, number=number: index.update({"head.weight": shard(folder, number).name}))
        if number == 1:
            ds.open_network(Tower, folder)
            change(shard(folder, 1), lambda state: state.pop("head.weight"))
    with pytest.raises(
        FingerprintMismatchError, match="are one tensor in the network that was built and two different"
    ):
        ds.open_network(Tower, folder)


def test_buffers_have_their_numbers_and_parameters_take_no_memory(folder):
    model = ds.open_network(Tower, folder)
    assert model.distances.tolist() == [0, -1, -2, -3, -4, -5]
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.head.weight is model.words.weight
    assert not model.training


def test_a_buffer_without_numbers_is_named(folder):
    def build():
        with torch.device("meta"):
            return Tower()

    with pytest.raises(InvalidInputError, match="buffer 'distances' has no numbers"):
        ds.open_network(build, folder)


def test_a_network_in_place_of_a_function(folder):
    with pytest.raises(InvalidInputError, match="needs a function that makes the network, got a Tower"):
        ds.open_network(Tower(), folder)


def test_a_file_may_hold_a_buffer_that_the_network_computes(folder):
    change(shard(folder), lambda state: state.update(distances=torch.zeros(6)))
    indexed(folder, lambda index: index.update(distances=shard(folder).name))
    assert ds.open_network(Tower, folder).distances.tolist() == [0, -1, -2, -3, -4, -5]


def test_a_function_that_makes_none(folder):
    with pytest.raises(InvalidInputError, match="build must return a torch module, got tuple"):
        ds.open_network(lambda: (1, 2), folder)


def test_what_hangs_on_the_network_itself_is_read_at_once(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.randn(3))
            self.layers = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))

    one = made(Net)
    one.layers[1].running_mean += 5
    model = ds.open_network(Net, in_shards(one, tmp_path, files=1))
    assert model.token.equal(one.token)
    assert model.layers[1].running_mean.equal(one.layers[1].running_mean)
    assert model.layers[0].weight.is_meta
