"""A network is loaded into one that computes as it did, or not at all: what is no weight decides its outputs too."""

import json

import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import FingerprintMismatchError
from dalr_stream.storage.json_record import digest_of

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))


class Config:
    def __init__(self, beta):
        self.beta = beta


class Net(nn.Module):
    def __init__(self, *, eps=1e-5, scale=1.0, beta=2, base=100.0, gate="relu", width=20_000, on=True):
        super().__init__()
        self.norm, self.fc, self.out = nn.LayerNorm(6, eps=eps), nn.Linear(6, 12), nn.Linear(12, 3)
        self.scale, self.config, self.gate, self.width = scale, Config(beta), gate, width
        self.register_buffer("table", base ** -torch.arange(6.0), persistent=False)
        self.adapter = nn.Identity()
        self.adapter.on = on

    def forward(self, x):
        h = getattr(torch, self.gate)(self.fc(self.norm(x * self.table))) * self.scale
        return self.out(h + self.config.beta * self.adapter.on)


def saved(tmp_path, **settings):
    net = Net(**settings).eval()
    layer = ds.accumulate(net, [X], ds.watch(net, ["fc"]))["fc"]
    return ds.save(ds.compress(net, {"fc": ds.dalr(layer).at_rank(3)}), tmp_path / "small")


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"eps": 1e-6}, r"'norm' \(LayerNorm\) was saved with eps = 1e-05 and is built with 1e-06"),
        ({"scale": 0.5}, r"Net was saved with scale = 1\.0 and is built with 0\.5"),
        ({"beta": 3}, r"Net was saved with config\.beta = 2 and is built with 3"),
        ({"gate": "tanh"}, r"Net was saved with gate = 'relu' and is built with 'tanh'"),
        ({"width": 20_001}, r"Net was saved with width = 20000 and is built with 20001"),
        ({"on": False}, r"'adapter' \(Identity\) was saved with on = True and is built with False"),
        (
            {"base": 10.0},
            r"Net was saved with table = numbers of size 0\.4083 and is built with numbers of size 0\.4103",
        ),
    ],
)
def test_a_factory_of_another_network_is_refused(tmp_path, other, named):
    """Its weights have the same names and shapes, and were loaded in silence."""
    folder = saved(tmp_path)
    assert isinstance(ds.load(folder, Net), Net)
    with pytest.raises(FingerprintMismatchError, match=f"{named}, which decides what it"):
        ds.load(folder, lambda: Net(**other))


def test_a_table_may_differ_in_its_last_digits_and_grow(tmp_path):
    folder = saved(tmp_path)
    ds.load(folder, lambda: Net(base=100.0 * (1 + 1e-7), scale=1.0 + 1e-12))

    def grown():
        net = Net()
        net.table = torch.cat([net.table, net.table])
        return net

    ds.load(folder, grown)


def test_a_flag_that_is_set_as_the_network_runs_is_named(tmp_path):
    """As RWKV's, which rescales its own weights the first time and would do so again."""

    class Rescaling(Net):
        def __init__(self):
            super().__init__()
            self.rescaled = False

        def forward(self, x):
            if not self.rescaled:
                self.out.weight.data.div_(2)
                self.rescaled = True
            return super().forward(x)

    net = Rescaling().eval()
    layer = ds.accumulate(net, [X], ds.watch(net, ["fc"]))["fc"]
    small = ds.compress(net, {"fc": ds.dalr(layer).at_rank(3)})
    folder = ds.save(small, tmp_path / "small")
    with pytest.raises(FingerprintMismatchError, match="was saved with rescaled = True and is built with False"):
        ds.load(folder, Rescaling)

    def as_it_was():
        net = Rescaling()
        net.rescaled = True
        return net

    assert torch.equal(ds.load(folder, as_it_was)(X), small(X))


def test_what_either_lacks_is_not_compared(tmp_path):
    folder = saved(tmp_path)

    def newer():
        net = Net()
        del net.scale
        net.option = 3.0
        return net

    ds.load(folder, newer)


def test_networks_of_before_have_no_settings(tmp_path):
    folder = saved(tmp_path)
    plain = json.loads((folder / "plan.json").read_text())
    plain = {name: value for name, value in plain.items() if name not in ("settings", "digest")}
    (folder / "plan.json").write_text(json.dumps({**plain, "digest": digest_of(plain)}))
    ds.load(folder, lambda: Net(eps=1e-6))
