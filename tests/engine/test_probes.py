"""Networks of one fingerprint that compute otherwise: told by what they give for a made-up sample."""

import copy

import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.stores.merge import merge
from dalr_stream.errors import FingerprintMismatchError
from dalr_stream.network.capture.proofs.probe import probe_of
from dalr_stream.network.layers.identity import fingerprint
from dalr_stream.network.layers.spec import select_layers
from dalr_stream.numerics.rows.probe import Probe
from dalr_stream.storage.manifest import Manifest

WIDTH = 6
GAIN = {"of all": 1.0}


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """Computes with what no fingerprint can see: a function, a global, a library's own object."""

    def __init__(self, between=torch.tanh):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(WIDTH, 8), nn.Linear(8, 3)
        self.between = between

    def forward(self, x):
        return self.second(self.between(self.first(x)) * GAIN["of all"])


class Words(nn.Module):
    def __init__(self, between=torch.tanh):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.first, self.second = nn.Embedding(30, WIDTH), nn.Linear(WIDTH, 8), nn.Linear(8, 3)
        self.between = between

    def forward(self, input_ids, attention_mask):
        return {"logits": self.second(self.between(self.first(self.embed(input_ids))) * attention_mask[..., None])}


class Closure:
    """Its repr, and so any digest of it, is the same whatever it holds."""

    def __init__(self, gain):
        self.gain = gain

    def __call__(self, x):
        return self.gain * x


def text(samples, length, seed=1):
    ids = torch.randint(1, 30, (samples, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def captured(net, batches, root, *, direct):
    layers = select_layers(net.eval(), ["second"])
    if direct:
        ds.accumulate(net, batches, layers, store=root, domain="t")
    else:
        ds.capture(net, batches, layers, root, domain="t")
        ds.accumulate(root, domain="t")


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(
    ("kind", "batches"),
    [(Net, [[drawn(8, WIDTH)], [drawn(5, WIDTH, seed=2)]]), (Words, [[text(8, 9)], [text(5, 9, seed=2)]])],
    ids=["features", "words"],
)
def test_rows_of_networks_that_compute_otherwise_are_not_added_up(kind, batches, direct, tmp_path):
    one, other, same = kind(Closure(1.0)), kind(Closure(1.02)), kind(Closure(1.0))
    assert fingerprint(one) == fingerprint(other)
    for net, part, name in ((one, 0, "one"), (other, 1, "other"), (same, 1, "same")):
        captured(net, batches[part], tmp_path / name, direct=direct)
    reason = r"one' and .*other': the network gives other outputs for a made-up sample"
    with pytest.raises(FingerprintMismatchError, match=reason):
        merge([tmp_path / "one", tmp_path / "other"], tmp_path / "sum")
    merge([tmp_path / "one", tmp_path / "same"], tmp_path / "sum")
    assert len(Manifest.read(tmp_path / "sum").network.probes) == 1


@pytest.mark.parametrize("direct", [True, False])
def test_a_second_domain_of_a_network_that_changed_is_refused(direct, tmp_path):
    net = Net(Closure(1.0)).eval()
    captured(net, [drawn(8, WIDTH)], tmp_path, direct=direct)
    layers = select_layers(net, ["second"])
    net.between.gain = 1.5
    with pytest.raises(FingerprintMismatchError, match="the network gives other outputs for a made-up sample"):
        (ds.accumulate if direct else ds.capture)(net, [drawn(4, WIDTH)], layers, store=tmp_path, domain="u")
    net.between.gain = 1.0
    ds.capture(net, [drawn(4, WIDTH)], layers, tmp_path, domain="u")


def test_a_capture_that_was_stopped_is_not_gone_on_with_by_another_network(tmp_path, monkeypatch):
    net = Net().eval()
    layers, batches = select_layers(net, ["first"]), [drawn(300, WIDTH, seed=seed) for seed in range(20)]

    def stops(all_of_them):
        yield from all_of_them[:16]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ds.capture(net, stops(batches), layers, tmp_path, domain="t")
    with monkeypatch.context() as changed:
        changed.setitem(GAIN, "of all", 0.9)
        with pytest.raises(FingerprintMismatchError, match="the network gives other outputs for a made-up sample"):
            ds.capture(net, batches, layers, tmp_path, domain="t")
    ds.capture(net, batches, layers, tmp_path, domain="t")


def test_an_adapter_that_is_switched_off_shows():
    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.base, self.down, self.up = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 2), nn.Linear(2, 4)
            self.active = ["default"]

        def forward(self, x):
            return self.base(x) + (0.1 * self.up(self.down(x)) if self.active else 0)

    torch.manual_seed(0)
    net = Adapted().eval()
    on = probe_of(net, drawn(4, WIDTH), 4)
    net.active = []
    assert not on.agrees(probe_of(net, drawn(4, WIDTH), 4))


@pytest.mark.parametrize(
    ("net", "batch"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)), drawn(4, 3, 8, 8)),
        (Net(), drawn(4, WIDTH)),
        (Words(), text(4, 7)),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), drawn(4, 5, 8)),
    ],
    ids=["images", "features", "words", "encoder"],
)
def test_a_probe_does_not_depend_on_content_batch_size_threads_or_rounding(net, batch):
    net, before = net.eval(), torch.get_num_threads()
    samples = 4
    first = probe_of(net, batch, samples)
    assert first is not None
    fewer = {key: value[:2] for key, value in batch.items()} if isinstance(batch, dict) else 3 * batch[:2]
    try:
        torch.set_num_threads(2)
        assert probe_of(net, fewer, 2).agrees(first)
    finally:
        torch.set_num_threads(before)
    assert probe_of(copy.deepcopy(net).double(), doubled(batch), samples).numbers == pytest.approx(
        first.numbers, rel=1e-4
    )
    with torch.no_grad():
        next(iter(net.parameters())).mul_(1.1)
    assert not probe_of(net, batch, samples).agrees(first)


def doubled(batch):
    return batch if isinstance(batch, dict) else batch.double()


def test_texts_of_any_length_have_one_probe_and_fixed_lengths_their_own():
    assert probe_of(Words().eval(), text(4, 9), 4) == probe_of(Words().eval(), text(2, 5), 2)

    class Fixed(Words):
        def forward(self, input_ids, attention_mask):
            assert input_ids.shape[1] == 9
            return super().forward(input_ids, attention_mask)

    assert "1 x 9" in probe_of(Fixed().eval(), text(4, 9), 4).form


def test_a_network_that_takes_no_made_up_sample_is_captured_without(tmp_path):
    class Picky(Net):
        def forward(self, x):
            if len(x) == 1:
                raise ValueError("never so few")
            return super().forward(x)

    captured(Picky(), [drawn(8, WIDTH)], tmp_path, direct=False)
    assert Manifest.read(tmp_path).network.probes == ()


def test_a_probe_is_a_part_of_the_proof_and_left_out_with_it(tmp_path):
    net = Net().eval()
    unproved = ds.RowRule(prove=False)
    ds.capture(net, [drawn(8, WIDTH)], select_layers(net, ["first"]), tmp_path, domain="t", rows=unproved)
    assert Manifest.read(tmp_path).network.probes == ()


def test_random_numbers_of_the_caller_are_left_alone():
    net = nn.Sequential(nn.Linear(WIDTH, 2), nn.Dropout()).train()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    probe_of(net, drawn(4, WIDTH), 4)
    assert torch.equal(torch.rand(2), expected)


def test_probes_agree_within_what_machines_differ_by():
    one = Probe("f", (1.0, -2.0, 0.5))
    assert one.agrees(Probe("f", (1.001, -2.001, 0.5)))
    assert not one.agrees(Probe("f", (1.0, -2.0, 0.51)))
    assert not one.agrees(Probe("f", (1.0, -2.0)))
    assert one.agrees(Probe("another", (9.0,)))
    assert one.agrees(Probe("f", (1.0, -2.0, 0.55), coarse=True))
