"""Who reads a layer's nodes: found through operations on single nodes, refused, with the reason, elsewhere."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.graph import consumers_of


class Net(nn.Module):
    """Four square layers; `body` says how they are put together."""

    def __init__(self, body):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))
        self.norm, self.drop = nn.LayerNorm(4), nn.Dropout()
        self.body = body

    def forward(self, x):
        return self.body(self, x)


def test_the_next_linear_layer_of_a_sequential():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))
    assert consumers_of(net, "0") == ("3",)
    assert consumers_of(net, "3") == ("5",)


def test_layers_of_nested_modules_are_named_in_full():
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 5), nn.ReLU()), nn.Sequential(nn.Identity(), nn.Linear(5, 6)))
    assert consumers_of(net, "0.0") == ("1.1",)


@pytest.mark.parametrize(
    "body",
    [
        lambda net, x: net.b(functional.relu(net.a(x))),
        lambda net, x: net.b(net.a(x)),
        lambda net, x: net.b(torch.relu(net.a(x))),
        lambda net, x: net.b(net.a(x).relu()),
        lambda net, x: net.b(functional.dropout(functional.gelu(net.a(x)), training=net.training)),
        lambda net, x: net.b(net.drop(net.a(x).sigmoid().contiguous())),
    ],
)
def test_functions_methods_and_dropout_on_the_way_are_passed(body):
    assert consumers_of(Net(body), "a") == ("b",)


def branch(net, x):
    h = torch.relu(net.a(x))
    return net.b(h), net.c(h)


def test_a_branch_has_two_consumers():
    assert set(consumers_of(Net(branch), "a")) == {"b", "c"}


def residual(net, x):
    h = net.a(x)
    return net.b(torch.relu(h)) + h


def two_tensors(net, x):
    h = net.a(x)
    return net.b(torch.relu(h)) + net.c(torch.tanh(h))


def consumer_called_twice(net, x):
    return net.b(torch.relu(net.a(x))) + net.b(net.c(x))


def called_twice(net, x):
    return net.b(net.a(net.a(x)))


def data_dependent(net, x):
    return net.b(net.a(x)) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (residual, "its nodes cannot be pruned, because the operation 'add' reads them"),
        (lambda net, x: net.a(x), "because the network's own output reads them"),
        (lambda net, x: (net.b(h := net.a(x)), h), "because the network's own output reads them"),
        (lambda net, x: net.b(net.norm(net.a(x))), r"because 'norm' \(LayerNorm\) reads them"),
        (lambda net, x: net.b(net.a(x).flatten(1)), "because the operation 'flatten' reads them"),
        (lambda net, x: net.b(functional.linear(net.a(x), net.c.weight)), "the operation 'linear' reads them"),
        (lambda net, x: net.b(functional.softmax(net.a(x), 1)), "the operation 'softmax' reads them"),
        (two_tensors, "read through 2 different tensors"),
        (consumer_called_twice, "because 'b', which reads them, is called 2 times"),
        (called_twice, "needs it called once, it is called 2 times"),
        (lambda net, x: net.b(x), "needs it called once, it is called 0 times"),
        (data_dependent, "torch.fx .*control flow.*low-rank methods need no tracing"),
        (lambda net, x: (net.b(x), net.a(x))[0], "read through 0 different tensors"),
    ],
)
def test_whatever_else_reads_the_nodes_is_named(body, reason):
    with pytest.raises(UnsupportedLayerError, match=f"layer 'a': .*{reason}"):
        consumers_of(Net(body), "a")


def test_tracing_leaves_the_network_as_it_was():
    net = Net(branch).train()
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    consumers_of(net, "a")
    assert net.training
    assert all(torch.equal(weights[name], value) for name, value in net.state_dict().items())
