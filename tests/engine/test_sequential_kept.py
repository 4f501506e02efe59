"""Sequential compression from kept moments: the same networks, and only the passes whose inputs have changed."""

import warnings

import numpy as np
import pytest
import torch
from notes import Notes
from pairs import Calls, network
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.sequential.passes import sequential_passes
from dalr_stream.engine.stores.verify import verify_store
from dalr_stream.errors import ParameterIncreaseWarning

WIDTHS = (6, 10, 8, 7, 4)
FIRST = {"0": ("dalr_anchored_affine", 4), "2": ("spectral", 5), "4": ("dalr_optimal", 3), "6": ("svd", 2)}


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


def batches(seed=1):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(6, 6, generator=generator)
    return (torch.randn(200, 6, generator=generator) @ mixing).split(40)


def choices(plan, **options):
    return {name: ds.LayerChoice(method, size, **options) for name, (method, size) in plan.items()}


def compressed(model, plan, data=None, *, store=None, progress=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        return ds.compress_sequentially(
            model, data or batches(), choices(plan, **options), store=store, progress=progress
        )


def same(one, other):
    mine, its = one.network.state_dict(), other.network.state_dict()
    assert list(one.layers.values()) == list(other.layers.values())
    return mine.keys() == its.keys() and all(torch.equal(tensor, its[name]) for name, tensor in mine.items())


def passes(model, plan, data=None, *, store, **options):
    """The network, the passes of the original over all batches but the first, and how many came from the store."""
    notes = Notes()
    with Calls(data or batches(), model) as calls:
        found = compressed(model, plan, data, store=store, progress=notes, **options)
    kept = sum("kept from an earlier pass" in line for line in notes.said)
    assert len(set(calls.of[1:])) == 1
    return found, calls.of[1], kept


def test_kept_or_not_the_network_is_the_same(tmp_path):
    model = network(widths=WIDTHS)
    assert same(compressed(model, FIRST, store=tmp_path / "s"), compressed(model, FIRST))
    stores = sorted((tmp_path / "s").iterdir())
    assert len(stores) == 4
    assert all(verify_store(store).findings == () for store in stores)


LATER_METHODS = ["dalr_published", "dalr_optimal_affine", "dalr_anchored", "svd"]


@pytest.mark.parametrize("method", LATER_METHODS)
def test_the_last_layer_at_another_size_by_another_method_costs_no_pass(method, tmp_path):
    model = network(widths=WIDTHS)
    compressed(model, FIRST, store=tmp_path / "s")
    plan = {**FIRST, "6": (method, 3)}
    found, calls, kept = passes(model, plan, store=tmp_path / "s", ridge=1e-3)
    assert (calls, kept) == (0, 4)
    assert same(found, compressed(model, plan))


def test_only_what_comes_after_a_change_has_a_pass(tmp_path):
    model = network(widths=WIDTHS)
    compressed(model, FIRST, store=tmp_path / "s")
    plan = {**FIRST, "2": ("prune_mean", 6)}
    found, calls, kept = passes(model, plan, store=tmp_path / "s")
    assert kept == 2
    assert calls == 2
    assert same(found, compressed(model, plan))
    assert len(list((tmp_path / "s").iterdir())) == 4  # those of the first plan that no pass used are gone


def test_other_data_is_noticed_and_gone_through(tmp_path):
    model = network(widths=WIDTHS)
    compressed(model, FIRST, store=tmp_path / "s")
    found, _, kept = passes(model, FIRST, batches(seed=2), store=tmp_path / "s")
    assert kept == 0
    assert same(found, compressed(model, FIRST, batches(seed=2)))


def test_other_weights_have_moments_of_their_own(tmp_path):
    model = network(widths=WIDTHS)
    compressed(model, FIRST, store=tmp_path / "s")
    with torch.no_grad():
        model[6].bias[0] += 1.0
    found, _, kept = passes(model, FIRST, store=tmp_path / "s")
    assert kept == 0
    assert same(found, compressed(model, FIRST))


def test_momasp_keeps_the_moments_of_the_source_too(tmp_path):
    model = network(widths=WIDTHS)
    plan = choices({"0": ("svd", 3), "2": ("momasp_node", 5)})
    source = batches(seed=5)

    def run():
        with Calls([*batches(), *source], model) as calls:
            found = ds.compress_sequentially(model, batches(), plan, source=source, store=tmp_path / "s")
        return found, calls.of

    first, second = run(), run()
    assert same(first[0], second[0])
    assert first[1][1 : len(batches())] == [2] * (len(batches()) - 1)
    assert sum(second[1][1:]) == 0
    assert same(first[0], ds.compress_sequentially(model, batches(), plan, source=source))


def test_stopped_between_passes_the_moments_made_until_then_are_used(tmp_path):
    model = network(widths=WIDTHS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        states = sequential_passes(model, batches(), choices(FIRST), store=tmp_path / "s")
        for _ in range(3):
            next(states)
        states.close()
    found, _, kept = passes(model, FIRST, store=tmp_path / "s")
    assert kept == 2
    assert same(found, compressed(model, FIRST))


def test_a_damaged_record_is_made_again(tmp_path):
    model = network(widths=WIDTHS)
    expected = compressed(model, FIRST, store=tmp_path / "s")
    first = next(path for path in sorted((tmp_path / "s").iterdir()) if (path / "moments/target/0").is_dir())
    (first / "moments" / "target" / "0" / "training" / "zarr.json").write_text("{")
    found, _, kept = passes(model, FIRST, store=tmp_path / "s")
    assert kept == 3
    assert same(found, expected)


class Residual(nn.Module):
    """Two blocks on a stream, and a head: the shape of a residual network."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.stem = nn.Linear(6, 8)
            self.up1, self.down1 = nn.Linear(8, 12), nn.Linear(12, 8)
            self.up2, self.down2 = nn.Linear(8, 12), nn.Linear(12, 8)
            self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.down1(torch.relu(self.up1(x)))
        x = x + self.down2(torch.relu(self.up2(x)))
        return self.head(x)


def test_a_residual_network_twice_the_second_time_from_what_the_first_kept(tmp_path):
    model = Residual().eval()
    names = ["up1", "down1", "up2", "down2", "head"]
    first = dict.fromkeys(names, ("dalr_anchored_affine", 3))
    second = {**first, "down2": ("dalr_optimal_affine", 3), "head": ("dalr_published", 2)}
    compressed(model, first, store=tmp_path / "s")
    found, calls, kept = passes(model, second, store=tmp_path / "s")
    assert kept == 4  # up1 to down2; the head reads another network's stream
    assert calls == 1
    assert same(found, compressed(model, second))
    errors = [outcome.error for outcome in found.layers.values()]
    assert np.isfinite(errors).all()
