"""What was untied before it was compressed comes back untied, although the network that is built ties it."""

import json

import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import FingerprintMismatchError
from dalr_stream.network.saved.ties import tied_parameters, untie

TOKENS = torch.randint(40, (4, 6), generator=torch.Generator().manual_seed(0))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.middle, self.head = nn.Embedding(40, 16), nn.Linear(16, 16), nn.Linear(16, 40, bias=False)
        self.again = nn.Linear(16, 40)
        self.head.weight = self.again.weight = self.embed.weight

    def forward(self, x):
        h = torch.tanh(self.middle(self.embed(x)))
        return self.head(h) + self.again(h)


def untied(*layers):
    torch.manual_seed(0)
    net = Tied().eval()
    for layer in layers:
        own = net.get_submodule(layer)
        own.weight = nn.Parameter(own.weight.detach().clone() + 1)
    return net


def compressed(net, layer):
    weight, bias = ds.network.weights_of(net, layer)
    return ds.compress(net, {layer: ds.truncated_svd(weight, bias).at_rank(4)}, example=TOKENS)


CASES = [(["head"], "head"), (["head"], "middle"), (["head", "again"], "again"), ([], "middle")]


@pytest.mark.parametrize(("own", "layer"), CASES)
def test_a_saved_network_comes_back_with_the_ties_that_it_had(own, layer, tmp_path):
    small = compressed(untied(*own), layer)
    ds.save(small, tmp_path / "small")
    loaded = ds.load(tmp_path / "small", Tied)
    assert torch.equal(loaded(TOKENS), small(TOKENS))
    assert tied_parameters(loaded) == tied_parameters(small)


def test_a_network_saved_before_ties_were_is_loaded_as_it_was_then(tmp_path):
    ds.save(compressed(untied("head"), "head"), tmp_path / "small")
    path = tmp_path / "small" / "plan.json"
    plan = json.loads(path.read_text())
    del plan["tied"], plan["digest"]
    path.write_text(json.dumps(plan))
    with pytest.raises(FingerprintMismatchError, match="also holds it"):
        ds.load(tmp_path / "small", Tied)


def test_ties_between_some_names_stay():
    net = Tied()
    untie(net, [["embed.weight", "again.weight"]])
    assert net.embed.weight is net.again.weight
    assert net.head.weight is not net.embed.weight
    assert torch.equal(net.head.weight, net.embed.weight)
