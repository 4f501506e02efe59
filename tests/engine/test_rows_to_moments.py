"""Masks, chosen positions and outputs all the way: the store and the direct route agree to the bit, killed or not."""

import os

import numpy as np
import pytest
import torch
from notes import Notes
from oracles import chosen_positions
from torch import nn
from torch.utils.data import DataLoader

import dalr_stream as ds
from dalr_stream.engine.capture import network_record
from dalr_stream.engine.direct import accumulate_into, accumulate_stream
from dalr_stream.engine.estimate import estimate
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.errors import FingerprintMismatchError, InvalidInputError
from dalr_stream.network.capture.proofs.probe import PROBE_PASSES
from dalr_stream.network.capture.proofs.proof import PADDING_PASSES, SAMPLE_PASSES
from dalr_stream.numerics.rows import tiling
from dalr_stream.storage.manifest import Manifest
from dalr_stream.storage.store import ActivationStore
from dalr_stream.storage.writer import open_writer
from dalr_stream.streaming.lanes import Pace

SAMPLES, POSITIONS = 60, 9
RULE = ds.RowRule(mask="attention_mask", most_per_sample=4, seed=3)
HOLDOUT = ds.HoldoutRule(0.3, seed=2)
FOLDING = ds.Folding(HOLDOUT, ds.Threads(2))


@pytest.fixture(autouse=True)
def _small_and_unsynced(monkeypatch):
    """Tiles of 8 rows, so that a few hundred rows fill many; a kill needs no fsync."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(tiling, "MIN_TILE_ROWS", 8)
    monkeypatch.setattr(tiling, "MAX_TILE_ROWS", 8)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.head, self.act = nn.Linear(6, 5), nn.Linear(5, 2), nn.ReLU(inplace=True)
        self.runs = 0

    def forward(self, x, attention_mask):
        self.runs += isinstance(x, torch.Tensor)  # torch.fx calls it with something else
        h = self.act(self.mix(x))
        weights = attention_mask[..., None].to(h.dtype)
        return self.head((h * weights).sum(1) / weights.sum(1).clamp(min=1))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Tokens().eval()


@pytest.fixture
def data():
    """Samples of 0 to 9 tokens; a run of them has none at all, and one batch of 5 is masked whole."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, POSITIONS, 6, generator=generator)
    lengths = torch.randint(0, POSITIONS + 1, (SAMPLES,), generator=generator)
    lengths[20:27] = 0
    return x, torch.arange(POSITIONS) < lengths[:, None]


def batches_of(data, size=5):
    x, mask = data
    return [{"x": a, "attention_mask": b.long()} for a, b in zip(x.split(size), mask.split(size), strict=True)]


def watched(net):
    return ds.network.select_layers(net, ["mix", "head"]) + ds.network.select_layers(net, ["mix"], side="outputs")


def positions_of(data, rule=RULE):
    return [
        chosen_positions(np.flatnonzero(kept), rule.most_per_sample, rule.seed, n) for n, kept in enumerate(data[1])
    ]


def assert_same_bits(one, other):
    assert set(one) == set(other)
    for part, twin in ((one, other), (one.heldout, other.heldout)):
        for stream in part:
            assert part[stream].same_bits(twin[stream]), stream


def assert_true(moments, net, data):
    """Compare to rows gathered one position at a time; a sample is in one part with all of its rows, or with none."""
    apart = HOLDOUT.mask(np.arange(SAMPLES))
    for held_out, part in ((False, moments), (True, moments.heldout)):
        chosen = [(n, p) for n, kept in enumerate(positions_of(data)) if apart[n] == held_out for p in kept]
        rows = torch.stack([data[0][n, p] for n, p in chosen])
        with torch.no_grad():
            expected = {"mix": rows, "mix@outputs": net.mix(rows)}
        for stream, block in expected.items():
            assert part[stream].count == len(chosen)
            assert part[stream].samples == len({n for n, _ in chosen})
            np.testing.assert_allclose(part[stream].mean, block.double().mean(0).numpy(), rtol=1e-4, atol=1e-6)
        assert part["head"].count == (apart == held_out).sum()  # pooled: a row a sample, none masked


def test_store_and_direct_route_give_the_same_bits_and_the_right_rows(net, data, tmp_path):
    batches, layers = batches_of(data), watched(net)
    ds.capture(net, batches, layers, tmp_path / "s", domain="target", rows=RULE)
    stored = accumulate_stored(tmp_path / "s", domain="target", folding=FOLDING)
    assert set(stored) == {"mix", "head", "mix@outputs"}
    assert_true(stored, net, data)
    assert_same_bits(accumulate_stream(net, batches, layers, rows=RULE, folding=FOLDING), stored)
    into = accumulate_into(tmp_path / "d", net, batches, layers, domain="target", rows=RULE, folding=FOLDING)
    assert_same_bits(into, stored)
    records = Manifest.read(tmp_path / "s").network.layers
    assert records == Manifest.read(tmp_path / "d").network.layers
    assert {name: record.side for name, record in records.items()} == {
        "mix": "inputs",
        "head": "inputs",
        "mix@outputs": "outputs",
    }
    assert Manifest.read(tmp_path / "s").domains["target"].choice == RULE.words


@pytest.mark.parametrize("size", [1, 7, 60])
def test_any_batch_size_chooses_the_same_rows(net, data, size):
    """What `mix` reads does not change with the batch size, and so no bit does."""
    layers = ds.network.select_layers(net, ["mix"])
    whole = accumulate_stream(net, batches_of(data), layers, rows=RULE, folding=FOLDING)
    assert_same_bits(accumulate_stream(net, batches_of(data, size), layers, rows=RULE, folding=FOLDING), whole)


def test_the_bias_is_in_the_outputs_and_a_shift_of_the_mean_takes_it_out(net, data):
    layers = ds.network.select_layers(net, ["mix"]) + ds.network.select_layers(net, ["mix"], side="outputs")
    moments = accumulate_stream(net, batches_of(data), layers, rows=RULE)
    weight, bias = ds.network.weights_of(net, "mix")
    outputs, inputs = moments["mix@outputs"], moments["mix"]
    np.testing.assert_allclose(outputs.mean - bias, weight @ inputs.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs.scatter, weight @ inputs.scatter @ weight.T, rtol=1e-4, atol=1e-4)


# --- stopped and resumed ------------------------------------------------------------------------------------------


class Stopped(Exception):  # noqa: N818  # the end of a process is no error
    pass


class Breaking:
    """A loader that ends a run before batch number `stop`; with `position`, one that can begin in the middle."""

    def __init__(self, batches, stop=None):
        self.batches, self.stop, self.loaded = batches, stop, []

    def _from(self, first):
        for number, batch in enumerate(self.batches[first:], start=first):
            if number == self.stop:
                raise Stopped
            self.loaded.append(number)
            yield batch

    def __iter__(self):
        return self._from(0)


class Restoring(Breaking):
    def starting_at(self, batch):
        return self._from(batch)


@pytest.fixture(params=[Breaking, Restoring])
def loader(request):
    return request.param


def files_of(root):
    files = [path for path in root.rglob("*") if path.is_file() and path.name != "writer.lock"]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.mark.parametrize("stops", [(1,), (3, 6), (4, 5, 11)])
def test_a_capture_of_varying_rows_resumes_to_the_same_files(net, data, tmp_path, loader, stops):
    batches, layers = batches_of(data), watched(net)
    ds.capture(net, batches, layers, tmp_path / "whole", domain="target", rows=RULE)
    for stop in stops:
        with pytest.raises(Stopped):
            ds.capture(net, loader(batches, stop), layers, tmp_path / "s", domain="target", rows=RULE)
    known = Manifest.read(tmp_path / "s").domains.get("target")
    held = 0
    if known is not None:
        with open_writer(tmp_path / "s", "target", network_record(net, layers), RULE.words) as writer:
            held = writer.committed_batches
    runs, last = net.runs, loader(batches)
    ds.capture(net, last, layers, tmp_path / "s", domain="target", rows=RULE)
    assert files_of(tmp_path / "s") == files_of(tmp_path / "whole")
    left = len(batches) - held
    assert net.runs - runs == (left + SAMPLE_PASSES + PADDING_PASSES + PROBE_PASSES if left else 0)
    assert last.loaded == list(range(max(held - 1, 0) if loader is Restoring else 0, len(batches)))


class Once(Pace):
    """A checkpoint after so many batches, and no other."""

    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def due(self):
        self.left -= 1
        return self.left == 0


def kept_after(batches):
    return ds.Folding(HOLDOUT, ds.Threads(1), pace=lambda: Once(batches))


@pytest.mark.parametrize("stop", [1, 6])
def test_a_direct_run_over_varying_rows_resumes_to_the_same_bits(net, data, tmp_path, loader, stop):
    batches, layers = batches_of(data), watched(net)
    folding = kept_after(stop)
    options = {"domain": "target", "rows": RULE, "folding": folding}
    with pytest.raises(Stopped):
        accumulate_into(tmp_path, net, loader(batches, stop), layers, **options)
    runs, last = net.runs, loader(batches)
    resumed = accumulate_into(tmp_path, net, last, layers, **options)
    assert net.runs - runs == len(batches) - stop + SAMPLE_PASSES + PADDING_PASSES + PROBE_PASSES
    assert last.loaded == list(range(stop - 1 if loader is Restoring else 0, len(batches)))
    assert_same_bits(resumed, accumulate_stream(net, batches, layers, rows=RULE, folding=folding))


def test_it_is_said_whether_a_loader_began_in_the_middle(net, data, tmp_path):
    batches, layers = batches_of(data), ds.network.select_layers(net, ["mix"])
    folding = kept_after(6)
    for loader, said in ((Breaking, "no `starting_at`, so its first 6 batches"), (Restoring, "resuming at batch 5")):
        options = {"domain": "target", "rows": RULE, "folding": folding}
        root, notes = tmp_path / loader.__name__, Notes()
        with pytest.raises(Stopped):
            accumulate_into(root, net, loader(batches, 6), layers, **options, progress=notes)
        assert not notes.said
        accumulate_into(root, net, loader(batches), layers, **options, progress=notes)
        assert any(said in note for note in notes.said)


def test_a_loader_that_begins_in_the_wrong_place_is_found_out(net, data, tmp_path):
    batches, layers = batches_of(data), watched(net)
    with pytest.raises(Stopped):
        ds.capture(net, Restoring(batches, 9), layers, tmp_path, domain="target", rows=RULE)
    wrong = Restoring(batches)
    wrong.starting_at = lambda batch: batches[batch - 1 :]
    with pytest.raises(FingerprintMismatchError, match=r"is not the batch captured before"):
        ds.capture(net, wrong, layers, tmp_path, domain="target", rows=RULE)


def test_a_complete_domain_is_compared_whole_also_where_the_loader_could_begin_later(net, tmp_path):
    samples = [torch.full((6,), float(i)) for i in range(20)]
    layers = ds.network.select_layers(net, ["mix"])
    plain = nn.Sequential()
    plain.mix = net.mix
    plain.eval()
    ds.capture(plain, DataLoader(samples, batch_size=4), layers, tmp_path, domain="target")
    samples[1] = samples[1] + 1
    with pytest.raises(FingerprintMismatchError, match="batch 0 is not the batch captured before"):
        ds.capture(plain, DataLoader(samples, batch_size=4), layers, tmp_path, domain="target")


# --- other settings -----------------------------------------------------------------------------------------------

OTHERS = [
    (ds.RowRule(), "every row"),
    (ds.RowRule("attention_mask", 4, seed=4), "at most 4 a sample by seed 4"),
    (ds.RowRule("attention_mask", 5, seed=3), "at most 5 a sample by seed 3"),
    (ds.RowRule(most_per_sample=4, seed=3), "every row, at most 4 a sample by seed 3"),
]


@pytest.mark.parametrize(("other", "words"), OTHERS)
@pytest.mark.parametrize("stop", [6, None])
def test_other_rows_into_the_same_domain_are_refused_and_both_choices_named(net, data, tmp_path, other, words, stop):
    batches, layers = batches_of(data), ds.network.select_layers(net, ["mix"])
    named = rf"rows that mask 'attention_mask' keeps, at most 4 a sample by seed 3, this (capture|run) takes .*{words}"
    folding = kept_after(6)
    for send in (ds.capture, accumulate_into):
        root = tmp_path / send.__name__
        options = {"domain": "target"} | ({"folding": folding} if send is accumulate_into else {})

        def run(loader, rule, send=send, root=root, options=options):
            positional = (net, loader, layers, root) if send is ds.capture else (root, net, loader, layers)
            send(*positional, rows=rule, **options)

        if stop is None:
            run(batches, RULE)
        else:
            with pytest.raises(Stopped):
                run(Breaking(batches, stop), RULE)
        before = files_of(root)
        with pytest.raises(FingerprintMismatchError, match=named):
            run(batches, other)
        assert files_of(root) == before


def test_another_mask_by_the_same_name_is_another_batch(net, data, tmp_path):
    batches, layers = batches_of(data), ds.network.select_layers(net, ["mix"])
    masks = [data[1], data[1].logical_not()]

    def kept(batch):
        return masks[0][: len(batch["x"])]

    with pytest.raises(Stopped):
        ds.capture(net, Breaking(batches, 9), layers, tmp_path, domain="target", rows=ds.RowRule(kept))
    masks.pop(0)
    with pytest.raises(FingerprintMismatchError, match="batch 0 is not the batch captured before"):
        ds.capture(net, batches, layers, tmp_path, domain="target", rows=ds.RowRule(kept))


def test_nothing_but_padding_leaves_moments_of_no_rows(net, data, tmp_path):
    x, mask = data
    batches, layers = batches_of((x, torch.zeros_like(mask))), ds.network.select_layers(net, ["mix"])
    ds.capture(net, batches, layers, tmp_path, domain="target", rows=RULE)
    assert ActivationStore(tmp_path).tiles("target", "mix") == 0
    for moments in (
        accumulate_stored(tmp_path, domain="target", folding=FOLDING),
        accumulate_stream(net, batches, layers, rows=RULE, folding=FOLDING),
    ):
        assert moments["mix"].count == 0


# --- cost ---------------------------------------------------------------------------------------------------------


def test_an_estimate_counts_positions_as_if_none_were_masked(net, data):
    plan = estimate(net, {"target": batches_of(data)}, watched(net), FOLDING, rows=RULE)
    rows = {layer.name: (layer.rows, layer.features) for layer in plan.layers}
    assert rows == {"mix": (SAMPLES * 4, 6), "head": (SAMPLES, 5), "mix@outputs": (SAMPLES * 4, 5)}
    every = estimate(net, {"target": batches_of(data)}, watched(net), FOLDING)
    assert every.layers[0].rows == SAMPLES * POSITIONS
    with pytest.raises(InvalidInputError, match="has no 'padding'"):
        estimate(net, {"target": batches_of(data)}, watched(net), FOLDING, rows=ds.RowRule("padding"))


@pytest.mark.parametrize(
    ("batches", "layers", "message"),
    [
        ([torch.zeros(2, 3)], ["0"], r"layers come from select_layers\(model, patterns\), got '0' among them"),
        (torch.zeros(2, 3), None, "batches must be a list of batches, a DataLoader or the like, got a Tensor"),
        (None, None, "got a NoneType"),
    ],
)
def test_what_is_no_layer_or_no_batches_is_one_clear_line(tmp_path, batches, layers, message):
    net = nn.Sequential(nn.Linear(3, 2)).eval()
    layers = layers or ds.network.select_layers(net, ["0"])
    with pytest.raises(InvalidInputError, match=message):
        accumulate_stream(net, batches, layers)
    with pytest.raises(InvalidInputError, match=message):
        accumulate_into(tmp_path / "a.zarr", net, batches, layers, domain="target")
    with pytest.raises(InvalidInputError, match=message):
        ds.capture(net, batches, layers, tmp_path / "b.zarr", domain="target")


def test_batches_by_number_alone_are_batches():
    class ByNumber:
        def __len__(self):
            return 2

        def __getitem__(self, number):
            return [torch.ones(2, 3), torch.zeros(1, 3)][number]

    net = nn.Sequential(nn.Linear(3, 2)).eval()
    assert accumulate_stream(net, ByNumber(), ds.network.select_layers(net, ["0"]))["0"].samples > 0
