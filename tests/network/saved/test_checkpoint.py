"""A saved network comes back bit for bit, or not at all."""

import json

import pytest
import torch
from dense_network import Net, X, build, factors, moments
from torch import nn

from dalr_stream.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    StoreDamagedError,
    StoreNotFoundError,
)
from dalr_stream.network.saved.checkpoint import load, require_unchanged, save
from dalr_stream.network.saved.weights import load_weights, save_weights
from dalr_stream.network.surgery.compress import compress, parameter_count
from dalr_stream.numerics.selection.greedy import spectral
from dalr_stream.storage.json_record import digest_of


def compressed(dtype=torch.float32):
    net = build(dtype=dtype)
    parts = {"fc7": factors(net, "fc7", 3), "fc6": spectral(moments(net, "fc7"), affine=True).at_size(5)}
    return compress(net, parts, example=X[:2].to(dtype))


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


@pytest.fixture
def saved(tmp_path):
    return save(compressed(), tmp_path / "small", provenance={"network": "abc"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_network_comes_back_bit_for_bit(tmp_path, dtype):
    small = compressed(torch.float64).to(dtype).train()
    save(small, tmp_path / "small")
    back = load(tmp_path / "small", lambda: Net(dtype=dtype))
    assert same(back, small)
    assert not any(module.training for module in back.modules())
    assert back.compression_plan == small.compression_plan


def test_what_lies_in_memory_before_the_weights_are_loaded_warns_of_nothing(tmp_path, monkeypatch):
    small = compressed()
    save(small, tmp_path / "small")
    blank = nn.Module.to_empty
    monkeypatch.setattr(nn.Module, "to_empty", lambda *a, **k: infinite(blank(*a, **k)))
    assert same(load(tmp_path / "small", Net), small)


def infinite(module):
    for parameter in module.parameters():
        nn.init.constant_(parameter, float("inf"))
    return module


def test_a_network_compressed_in_two_steps_comes_back(tmp_path):
    net = build()
    small = compress(compress(net, {"fc6": factors(net, "fc6", 4)}), {"fc7": factors(net, "fc7", 3)})
    assert same(load(save(small, tmp_path / "small"), Net), small)


def test_a_network_that_was_never_compressed_comes_back(tmp_path):
    assert same(load(save(build(), tmp_path / "whole"), Net), build())


def test_shared_weights_come_back_shared(tmp_path):
    class Tied(Net):
        def __init__(self):
            super().__init__()
            self.again = nn.Linear(9, 4)
            self.again.weight = self.fc8.weight

    net = Tied()
    small = compress(net, {"fc7": factors(net, "fc7", 3)})
    back = load(save(small, tmp_path / "small"), Tied)
    assert same(back, small)
    assert back.again.weight is back.fc8.weight


def test_plan_and_provenance_are_plain_json(saved):
    plain = json.loads((saved / "plan.json").read_text())
    assert [(step["step"], step["layer"]) for step in plain["plan"]] == [("split", "fc7"), ("keep", "fc6")]
    assert plain["provenance"] == {"network": "abc"}
    assert plain["parameters"] == parameter_count(compressed())
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "model.safetensors", "plan.json"]


def test_saving_over_an_old_network_leaves_no_mixture(saved):
    (saved / "config.json").write_text("of the old one")
    net = build()
    other = compress(net, {"fc8": factors(net, "fc8", 2)})
    save(other, saved)
    assert same(load(saved, Net), other)
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "model.safetensors", "plan.json"]
    assert [path.name for path in saved.parent.iterdir()] == ["small"]


def test_a_network_that_cannot_be_saved_leaves_the_old_one(saved):
    with pytest.raises(TypeError):
        save(build(), saved, provenance={"not json": object()})
    assert same(load(saved, Net), compressed())


def test_what_lies_beside_a_saved_network_is_not_removed_with_it(saved):
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(InvalidInputError, match=r"holds other files, .*, 'notes\.txt' for one: choose a folder"):
        save(compressed(), saved)
    assert (saved / "notes.txt").read_text() == "mine"
    assert same(load(saved, Net), compressed())


def test_a_folder_of_other_things_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InvalidInputError, match=r"holds other files, which saving would replace, 'thesis\.tex'"):
        save(compressed(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    save(compressed(), tmp_path / "empty")


def test_a_page_that_is_not_what_was_saved_is_told_and_the_network_loads_all_the_same(saved):
    require_unchanged(saved)
    page = saved / "README.md"
    page.write_text(page.read_text() + "and more")
    with pytest.raises(StoreDamagedError, match=r"README\.md' is not what was saved; save it again"):
        require_unchanged(saved)
    page.unlink()
    with pytest.raises(StoreDamagedError, match=r"README\.md' is not there; save it again"):
        require_unchanged(saved)
    assert same(load(saved, Net), compressed())


# --- refused ------------------------------------------------------------------------------------------------------


class Wider(Net):
    def __init__(self):
        super().__init__()
        self.fc8 = nn.Linear(9, 5)


class Longer(Net):
    def __init__(self):
        super().__init__()
        self.fc9 = nn.Linear(4, 4)


class Shorter(Net):
    def __init__(self):
        super().__init__()
        del self.fc8


class Renamed(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(10, 12)


class Convolutional(Net):
    def __init__(self):
        super().__init__()
        self.fc7 = nn.Conv2d(3, 3, 3)


@pytest.mark.parametrize("wrong", [Wider, Longer, Shorter, Renamed, Convolutional])
def test_another_network_than_the_one_compressed_is_refused(saved, wrong):
    with pytest.raises(FingerprintMismatchError, match="does not fit the network that was built"):
        load(saved, wrong)


def test_nothing_saved_is_said_so(tmp_path, saved):
    with pytest.raises(StoreNotFoundError, match=r"holds no compressed network: it has no plan.json"):
        load(tmp_path, Net)
    (saved / "model.safetensors").unlink()
    with pytest.raises(StoreNotFoundError, match="there are no weights"):
        load(saved, Net)


def test_a_flipped_bit_anywhere_in_the_weights_is_found(saved):
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    for position in range(0, len(whole), 97):
        data = bytearray(whole)
        data[position] ^= 1 << position % 8
        path.write_bytes(bytes(data))
        with pytest.raises(StoreDamagedError, match=r"model.safetensors' is damaged"):
            load(saved, Net)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreDamagedError, match=r"model.safetensors' is damaged"):
        load(saved, Net)


def rewrite(folder, change):
    """Write another plan, with the digest that it then has."""
    plain = json.loads((folder / "plan.json").read_text())
    del plain["digest"]
    change(plain)
    (folder / "plan.json").write_text(json.dumps({**plain, "digest": digest_of(plain)}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plain: plain["plan"][0].update(step="exec"), "a step must be one of split, keep, heads, got 'exec'"),
        (lambda plain: plain["plan"][0].pop("step"), "a step must be one of split, keep, heads, got None"),
        (lambda plain: plain["plan"][0].pop("rank"), "cannot be read: .*rank"),
        (lambda plain: plain["plan"][0].update(code="import os"), "cannot be read: .*code"),
        (lambda plain: plain["plan"][0].update(rank="3"), "rank must be a positive integer, got '3'"),
        (lambda plain: plain["plan"][1].update(kept=0), "kept must be a positive integer, got 0"),
        (lambda plain: plain["plan"][1].update(producers=[3]), "the name of a layer must be text, got 3"),
        (lambda plain: plain["plan"][1].update(producers=[]), "must be given by a layer and read by another"),
        (lambda plain: plain["plan"][1]["readers"][0].update(block=0), "got start 0, block 0"),
        (lambda plain: plain["plan"][1]["readers"][0].update(start=-3), "got start -3, block 1"),
        (lambda plain: plain["plan"].append("split"), "a step must be a mapping"),
        (lambda plain: plain.pop("plan"), "'plan'"),
    ],
)
def test_a_plan_with_a_step_that_is_none_is_damage(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(StoreDamagedError, match=f"plan.json' cannot be read: .*{message}"):
        load(saved, Net)


def test_a_plan_is_never_executed(saved):
    """Names in a plan are looked up among the modules that `build` made, and nowhere else."""
    for name in ("__class__", "fc7.weight", "re:.*", "*", "compression_plan", ""):
        rewrite(saved, lambda plain, name=name: plain["plan"][0].update(layer=name))
        with pytest.raises(FingerprintMismatchError, match="there is no layer"):
            load(saved, Net)


def test_a_network_in_place_of_what_builds_it_is_refused(saved):
    with pytest.raises(InvalidInputError, match="needs a function that makes the original network, got a Net"):
        load(saved, Net())


def test_a_changed_digit_of_a_plan_is_damage_and_plans_of_0_1_have_no_digest(saved):
    plan = saved / "plan.json"
    text = plan.read_text()
    plan.write_text(text.replace('"parameters": ', '"parameters": 1', 1))
    with pytest.raises(StoreDamagedError, match=r"plan.json' is damaged: it does not match its digest"):
        load(saved, Net)
    plan.write_text(json.dumps({key: value for key, value in json.loads(text).items() if key != "digest"}))
    load(saved, Net)


def test_a_plan_that_is_no_json_is_damage(saved):
    for text in ("", "{", "[]", "null"):
        (saved / "plan.json").write_text(text)
        with pytest.raises(StoreDamagedError, match=r"plan.json' cannot be read"):
            load(saved, Net)


def test_plain_weights_are_loaded_strictly(tmp_path):
    save_weights(build(), tmp_path / "deep" / "model.safetensors")
    net = Net()
    load_weights(net, tmp_path / "deep" / "model.safetensors")
    assert same(net, build())
    with pytest.raises(FingerprintMismatchError, match="does not fit the network") as refused:
        load_weights(Longer(), tmp_path / "deep" / "model.safetensors")
    assert "\n" not in str(refused.value)
    with pytest.raises(FingerprintMismatchError, match=r"size mismatch for fc8.*\(and 1 more\)$"):
        load_weights(Wider(), tmp_path / "deep" / "model.safetensors")
    with pytest.raises(StoreDamagedError, match="is not a readable safetensors file"):
        load_weights(net, tmp_path)
    with pytest.raises(StoreNotFoundError, match="there are no weights at"):
        load_weights(net, tmp_path / "absent")
    (tmp_path / "deep" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(StoreDamagedError, match="is not a readable safetensors file"):
        load_weights(net, tmp_path / "deep" / "model.safetensors")
