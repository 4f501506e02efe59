"""Layers that read one tensor have one record: the same bits as each on its own, paid for once."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_into, accumulate_stream
from dalr_stream.engine.estimate import estimate
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.engine.stores.diff import diff_domains
from dalr_stream.engine.stores.merge import merge
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.engine.stores.verify import verify_store
from dalr_stream.errors import FingerprintMismatchError, InvalidInputError
from dalr_stream.network.capture.proofs.proof import SAMPLE_PASSES
from dalr_stream.storage.store import ActivationStore, StoredRows
from dalr_stream.streaming.lanes import Pace
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project

WIDTH, TOKENS = 12, 5
NAMES = ("q", "k", "v", "out", "gate", "up", "down")
SHARED = {"k": "q", "v": "q", "up": "gate"}
FOLDING = ds.Folding(ds.HoldoutRule(0.2, seed=3), ds.Threads(1))


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    """No power cut is played here; forcing every file to disk takes most of the time."""
    monkeypatch.setattr("os.fsync", lambda _: None)


class Block(nn.Module):
    """Attention and a gated MLP, as language models have them; the MLP makes its own views of one tensor."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.gate, self.up, self.down = nn.Linear(WIDTH, 9), nn.Linear(WIDTH, 9), nn.Linear(9, WIDTH)

    def forward(self, x):
        mixed = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2), -1) @ self.v(x)
        h = (x + self.out(mixed)).tanh_()
        gate, up = self.gate(h.reshape(-1, WIDTH)), self.up(h.reshape(-1, WIDTH))
        return self.down(torch.relu_(gate) * up)


def block():
    torch.manual_seed(0)
    return Block().eval()


@pytest.fixture
def net():
    return block()


def data(samples=120, seed=1):
    return torch.randn(samples, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def batches():
    return list(data().split(50))


def layers(net, *names):
    return ds.network.select_layers(net, names or NAMES)


def apart(net, batches, **options):
    """Moments of each layer captured alone: nothing can be shared."""
    return {n: accumulate_stream(net, batches, layers(net, n), folding=FOLDING, **options) for n in NAMES}


def require_same(found, expected):
    for name in NAMES:
        assert found[name].same_bits(expected[name][name]), name
        assert found.heldout[name].same_bits(expected[name].heldout[name]), name


def folders(root):
    return sorted(path.name for path in root.iterdir())


# --- exact, and once ----------------------------------------------------------------------------------------------


def test_through_a_store_every_layer_has_the_moments_it_has_alone_and_rows_lie_there_once(net, batches, tmp_path):
    store = ds.capture(net, batches, layers(net), tmp_path, domain="t")
    found = accumulate_stored(tmp_path, domain="t", folding=FOLDING)
    require_same(found, apart(net, batches))
    assert store.domain("t").shared == SHARED
    assert set(found) == set(NAMES)
    once = sorted(set(NAMES) - set(SHARED))
    assert folders(tmp_path / "activations" / "t") == sorted([*once, *(f"{name}@sample" for name in once), "zarr.json"])
    assert folders(tmp_path / "moments" / "t") == once


def test_directly_too_with_a_store_and_without(net, batches, tmp_path):
    expected = apart(net, batches)
    require_same(accumulate_stream(net, batches, layers(net), folding=FOLDING), expected)
    kept = accumulate_into(tmp_path, net, batches, layers(net), domain="t", folding=FOLDING)
    require_same(kept, expected)
    assert folders(tmp_path / "moments" / "t") == sorted(set(NAMES) - set(SHARED))
    assert StoreView.open(tmp_path).moments("t", "v").same_bits(expected["v"]["v"])


def test_with_the_torch_fold_a_mask_and_fewer_rows_a_sample(net, batches):
    masks = [
        torch.rand(len(b), TOKENS, generator=torch.Generator().manual_seed(i)) > 0.3 for i, b in enumerate(batches)
    ]
    masked = [{"x": batch, "mask": mask} for batch, mask in zip(batches, masks, strict=True)]
    net.forward = lambda x, mask: Block.forward(net, x * mask[..., None])
    rule = ds.RowRule(mask="mask", most_per_sample=2, seed=4)
    require_same(accumulate_stream(net, masked, layers(net), rows=rule, folding=FOLDING), apart(net, masked, rows=rule))
    on_torch = dataclasses.replace(FOLDING, device="cpu")
    found = accumulate_stream(net, masked, layers(net), rows=rule, folding=on_torch)
    alone = accumulate_stream(net, masked, layers(net, "v"), rows=rule, folding=on_torch)
    assert found["v"].same_bits(alone["v"])


def test_rows_are_taken_and_folded_once(net, batches, monkeypatch):
    from dalr_stream.network.capture.row_rule import BatchRows
    from dalr_stream.streaming.layer_lanes import LaneFold

    taken, widths = [], []
    take, update = BatchRows.take, LaneFold.update
    monkeypatch.setattr(BatchRows, "take", lambda self, name, *rest: (taken.append(name), take(self, name, *rest))[1])
    monkeypatch.setattr(LaneFold, "update", lambda self, tile: (widths.append(tile.rows.shape), update(self, tile))[1])
    accumulate_stream(net, batches[:1], layers(net), folding=FOLDING)
    assert taken == list(NAMES)  # each is taken, to be compared with what it may share
    assert len(widths) == 4 * len(FOLDING.rule(WIDTH).partitions)


def test_stored_rows_and_tiles_are_found_by_every_name(net, batches, tmp_path):
    store = ds.capture(net, batches, layers(net), tmp_path, domain="t")
    by_name = [np.concatenate(list(StoredRows(store, "t", name))) for name in ("q", "v")]
    assert np.array_equal(*by_name)
    assert store.rows("t", "up").rows == 120 * TOKENS
    assert store.has_rows("t", "k")
    assert store.domain("t").fingerprint("k") == store.domain("t").fingerprint("q")


def test_estimate_counts_them_once(net, batches):
    def cost(*names, direct=False):
        return estimate(net, {"t": batches}, layers(net, *names), FOLDING, direct=direct)

    assert [layer.name for layer in cost().layers] == ["q", "out", "gate", "down"]
    assert cost("q", "k", "v").disk_bytes == cost("v").disk_bytes
    assert cost("q", "k", "v", direct=True).peak_bytes == cost("q", direct=True).peak_bytes


def test_a_memory_limit_keeps_them_in_one_pass(net, batches):
    limited = dataclasses.replace(FOLDING, memory_limit_bytes=1)
    with pytest.raises(ds.DalrStreamError):
        accumulate_stream(net, batches, layers(net), folding=limited)
    ample = dataclasses.replace(FOLDING, memory_limit_bytes=2**40)
    one = estimate(net, {"t": batches}, layers(net, "q"), ample, direct=True).peak_bytes
    two = estimate(net, {"t": batches}, layers(net, "q", "out"), ample, direct=True).peak_bytes
    limited = dataclasses.replace(FOLDING, memory_limit_bytes=(one + two) // 2)
    runs = []
    net.register_forward_pre_hook(lambda *_: runs.append(1))
    found = accumulate_stream(net, batches, layers(net, "q", "k", "v", "out"), folding=limited)
    # of the first batch its rows and what it takes; then two passes, each of them proved
    assert len(runs) == 2 + 2 * len(batches) + 3 * SAMPLE_PASSES
    assert found["k"].same_bits(found["q"])


# --- readers of a store -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::dalr_stream.errors.ParameterIncreaseWarning")  # full rank, on purpose
def test_verify_diff_summary_and_the_solvers_know_every_name(net, batches, tmp_path):
    for domain, shift in (("t", 0.0), ("s", 0.5)):
        ds.capture(net, [batch + shift for batch in batches], layers(net), tmp_path, domain=domain)
        accumulate_stored(tmp_path, domain=domain, folding=FOLDING)
    checked = verify_store(tmp_path)
    checked.require()
    assert "t/k: the rows of q" in checked.whole
    shifts = dict(diff_domains(tmp_path, "t", "s"))
    assert np.array_equal(shifts["v"].mean_gap, shifts["q"].mean_gap)
    assert "(120 samples, 7 layers, 7 with moments)" in repr(ActivationStore(tmp_path))
    problem = StoreView.open(tmp_path).layer("up", "t", None)
    assert problem.inputs.same_bits(accumulate_stored(tmp_path, domain="t", folding=FOLDING)["gate"])
    factors = ds.dalr(problem.weight, problem.bias, problem.inputs)
    small = ds.compress(net, {"up": factors.at_rank(9)})
    assert torch.allclose(small(batches[0]), net(batches[0]), atol=1e-4)


def test_shards_dealt_and_merged_are_found_by_every_name(net, batches, tmp_path):
    dealt = dataclasses.replace(FOLDING, shards=3)
    qkv = layers(net, "q", "k", "v")
    ds.capture(net, batches, qkv, tmp_path / "a", domain="t")
    found = accumulate_stored(tmp_path / "a", domain="t", layers=["q", "v"], folding=dealt)
    assert [s.count for s in found.shards["v"]] == [s.count for s in found.shards["q"]]
    assert len(StoreView.open(tmp_path / "a").shards("t", "k")) == 3

    ds.capture(net, [data(50, seed=9)], qkv, tmp_path / "b", domain="t")
    for name in "ab":
        accumulate_stored(tmp_path / name, domain="t", folding=FOLDING)
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    both = StoreView.open(tmp_path / "m")
    expected = [accumulate_stored(tmp_path / name, domain="t", folding=FOLDING)["k"].count for name in "ab"]
    assert both.moments("t", "k").count == sum(expected)
    assert len(both.shards("t", "v")) == 2
    verify_store(tmp_path / "m").require()


class Forked(Block):
    """Gives K a copy of its own from a batch of three samples on, or always."""

    always = False

    def forward(self, x):
        self.q(x)
        self.v(x)
        return self.k(x.clone() if self.always or len(x) == 3 else x)


def forked(*, always=False):
    torch.manual_seed(0)
    net = Forked().eval()
    net.always = int(always)  # a flag would make it another network
    return net


def test_stores_that_share_other_layers_do_not_merge(tmp_path):
    for name, always in (("a", False), ("b", True)):
        net = forked(always=always)
        ds.capture(net, [data(20, seed=int(always))], layers(net, "q", "k", "v"), tmp_path / name, domain="t")
        accumulate_stored(tmp_path / name, domain="t", folding=FOLDING)
    with pytest.raises(FingerprintMismatchError, match=r"layer 'k' are those of '[qk]', in .* those of '[qk]'"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m")


def test_a_run_file_goes_the_whole_way_with_layers_that_share(run_file):
    module = run_file.parent / "tiny_run.py"
    gated = module.read_text().replace("self.fc2 =", "self.gate = nn.Linear(12, width)\n        self.fc2 =")
    module.write_text(gated.replace("torch.relu(self.fc1(x))", "torch.relu(self.fc1(x)) * torch.sigmoid(self.gate(x))"))
    text = run_file.read_text().replace('layers = ["fc[12]"]', 'layers = ["fc[12]", "gate"]')
    text = text.replace("[solve]", '[solve]\nmethods = ["svd", "dalr_anchored_affine", "momasp_node"]')
    run_file.write_text(text.replace("ranks = [1, 2, 4, 8]", "ranks = [2]"))
    project = Project(load_config(run_file), run_file.parent)
    Run(project).all()
    store = StoreView.open(project.store)
    assert store.manifest.domains["target"].shared == {"gate": "fc1"}
    assert folders(project.store / "moments" / "target") == ["fc1", "fc2", "fc3"]
    report = json.loads((project.report_folder / "results.json").read_text())
    assert [layer["name"] for layer in report["layers"]] == ["fc1", "gate", "fc2"]
    verify_store(project.store).require()


# --- when it does not hold ----------------------------------------------------------------------------------------


def test_layers_that_no_longer_read_the_same_are_both_named(tmp_path):
    net, batches = forked(), [data(4), data(3)]
    watched = layers(net, "q", "k", "v")
    for route in (
        lambda: ds.capture(net, batches, watched, tmp_path, domain="t"),
        lambda: accumulate_stream(net, batches, watched),
    ):
        with pytest.raises(InvalidInputError, match="layers 'q' and 'k': read the same tensor in earlier batches"):
            route()


def test_layers_that_come_to_read_the_same_later_keep_rows_of_their_own():
    net = forked()
    batches = [data(3), data(4)]
    found = accumulate_stream(net, batches, layers(net, "q", "k"), folding=FOLDING)
    assert found["q"].same_bits(found["k"])


class Overwritten(nn.Module):
    """Reads a tensor, overwrites it and reads it again; then frees it, and makes another in its place."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(64, 64) for _ in range(3))

    def forward(self, x):
        h = x * 2
        self.first(h)
        self.second(h.relu_())
        del h
        return self.third(x * 3)


@pytest.mark.parametrize("inference", [False, True])
def test_memory_that_was_overwritten_or_used_again_is_another_input(inference):
    torch.manual_seed(0)
    net, x = Overwritten().eval(), torch.randn(300, 64)
    with torch.inference_mode(inference):
        found = accumulate_stream(net, [x], ds.network.select_layers(net, ["first", "second", "third"]))
    assert (found["first"].nonzero == found["first"].count).all()
    assert (found["second"].nonzero < found["second"].count).all()
    np.testing.assert_allclose(found["third"].mean, found["first"].mean * 1.5, rtol=1e-5)


def test_outputs_and_inputs_are_never_taken_for_one_another(net, batches):
    both = layers(net, "q", "k") + ds.network.select_layers(net, ["q", "k"], side="outputs")
    found = accumulate_stream(net, batches, both, folding=FOLDING)
    assert set(found) == {"q", "k", "q@outputs", "k@outputs"}
    assert not found["q@outputs"].same_bits(found["k@outputs"])


class Branches(nn.Module):
    """Convolutions on one input: two with the same patches, one with others."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Conv2d(3, n, 3, padding=1) for n in (4, 5))
        self.c, self.d = nn.Conv2d(3, 4, 3, padding="same"), nn.Conv2d(3, 4, 3, padding=1, stride=2)

    def forward(self, x):
        return self.a(x), self.b(x), self.c(x), self.d(x)


def test_convolutions_share_patches_where_they_make_them_alike(tmp_path):
    net, x = Branches().eval(), torch.randn(30, 3, 8, 8)
    store = ds.capture(net, [x], ds.network.select_layers(net, ["a", "b", "c", "d"]), tmp_path, domain="t")
    assert store.domain("t").shared == {"b": "a", "c": "a"}
    found = accumulate_stored(tmp_path, domain="t")
    alone = accumulate_stream(net, [x], ds.network.select_layers(net, ["c"]))
    assert found["c"].same_bits(alone["c"])


# --- stopped and resumed ------------------------------------------------------------------------------------------


def failing(batches, after):
    yield from batches[:after]
    raise RuntimeError("stopped")


def every_third_batch():
    return Pace(every_tiles=3)


def test_a_capture_that_was_stopped_goes_on_to_the_same_bytes(net, tmp_path, contents):
    batches = list(data(1000).split(180))
    ds.capture(net, batches, layers(net), tmp_path / "straight", domain="t")
    with pytest.raises(RuntimeError, match="stopped"):
        ds.capture(net, failing(batches, 5), layers(net), tmp_path / "resumed", domain="t")
    assert ActivationStore(tmp_path / "resumed").domain("t").shared == SHARED
    ds.capture(net, batches, layers(net), tmp_path / "resumed", domain="t")
    assert contents(tmp_path / "resumed") == contents(tmp_path / "straight")


def test_a_direct_run_that_was_stopped_goes_on_to_the_same_bits(net, tmp_path):
    batches = list(data(1000).split(180))
    paced = dataclasses.replace(FOLDING, pace=every_third_batch)
    with pytest.raises(RuntimeError, match="stopped"):
        accumulate_into(tmp_path, net, failing(batches, 4), layers(net), domain="t", folding=paced)
    runs = []
    net.register_forward_pre_hook(lambda *_: runs.append(1))
    resumed = accumulate_into(tmp_path, net, batches, layers(net), domain="t", folding=paced)
    assert len(runs) - SAMPLE_PASSES < len(batches)
    alone = accumulate_stream(block(), batches, layers(net, "v"), folding=FOLDING)["v"]
    assert all(resumed[name].same_bits(alone) for name in "qkv")


def test_a_caller_in_inference_mode_shares_as_any_other(net, tmp_path):
    with torch.inference_mode():
        batch = data(7)
        store = ds.capture(net, [batch], layers(net), tmp_path, domain="t")
    assert store.domain("t").shared == SHARED
    again = ds.capture(net, [batch, data(8)], layers(net), tmp_path / "outside", domain="t")
    assert again.domain("t").shared == SHARED


def test_another_set_of_layers_is_refused_as_ever(net, batches, tmp_path):
    ds.capture(net, batches, layers(net), tmp_path, domain="t")
    with pytest.raises(
        FingerprintMismatchError, match="holds layers down, gate, k, out, q, up, v, this capture watches q"
    ):
        ds.capture(net, batches, layers(net, "q"), tmp_path, domain="t")
