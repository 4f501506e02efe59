"""Rows whose samples are not known, and networks that are random: refused, each with a network that does so."""

import numpy as np
import pytest
import torch
from token_networks import ARRANGED, WIDTH, Reads, drawn, moments, padded, same_as
from torch import nn
from torch.nn import functional

import dalr_stream as ds
from dalr_stream.errors import InvalidInputError
from dalr_stream.network.layers.spec import select_layers


@pytest.mark.parametrize(
    ("mix", "reason"),
    [
        (lambda x: x - x.mean(0), "rows of others change too"),
        (lambda x: functional.batch_norm(x.mT, None, None, training=True).mT, "rows of others change too"),
        (lambda x: x.repeat(1, 4, 1).unflatten(1, (2, -1)).transpose(0, 1).flatten(0, 2), "rows of others change too"),
        (lambda x: 2 * x[x[..., 0] > 0], "rows are packed, or sent to it by a router|rows of others change too"),
        (lambda x: torch.arange(42.0).reshape(7, 6) + 0 * x.sum(), "none of its rows.* changes with a sample"),
        (lambda x: torch.arange(72.0).reshape(12, 6) + 0 * x.sum(), "none of its rows.* changes with a sample"),
    ],
)
def test_a_layer_whose_rows_belong_to_no_sample_is_refused_by_name(mix, reason):
    with pytest.raises(InvalidInputError, match=rf"layer 'fc': .*({reason}).*prove=False"):
        moments(Reads(mix), [drawn(4, 3, WIDTH)])


@pytest.mark.parametrize("samples", [4, 7])
@pytest.mark.parametrize(
    ("pick", "whose"),
    [
        (lambda x: x.flip(0), lambda x: torch.ones(x.shape[:2], dtype=torch.bool)),
        (lambda x: x[x[..., 0] > 0], lambda x: x[..., 0] > 0),
        (lambda x: x.flatten(0, 1).flip(0)[(x[..., 0] > 0).flatten().flip(0)], lambda x: x[..., 0] > 0),
    ],
    ids=["turned round", "packed", "packed and turned round"],
)
def test_rows_in_any_order_are_looked_up_in_what_a_module_around_reads(pick, whose, samples, tmp_path):
    x = drawn(samples, 3, WIDTH)
    net = Reads(pick).eval()
    store = ds.capture(net, [x], select_layers(net, ["fc"]), tmp_path, domain="t")
    tile = store.read_tile("t", "fc", 0)
    np.testing.assert_array_equal(tile.rows, x[whose(x)])
    np.testing.assert_array_equal(tile.samples, np.repeat(np.arange(samples), whose(x).sum(1)))


def test_a_layer_that_reads_what_is_the_same_for_every_sample_is_watched():
    """As queries that a detector has learnt: a row of each sample all the same."""
    queries = drawn(5, WIDTH)
    same_as(moments(Reads(lambda x: queries.expand(len(x), -1, -1)), [drawn(4, 3, WIDTH)]), queries.repeat(4, 1, 1))


class Counting(nn.Module):
    """Gives something else at every call."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + self.calls


@pytest.mark.parametrize(
    ("inner", "named"),
    [
        (nn.Sequential(nn.ReLU(), Counting()), r"'inner\.1' \(Counting\) gives other outputs for the same inputs"),
        (nn.RReLU().train(), r"'inner' \(RReLU\)"),
        (None, "the network's own code does"),
    ],
)
def test_a_network_that_is_random_or_remembers_is_refused_and_what_does_it_is_named(inner, named):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.fc = inner, nn.Linear(WIDTH, 4)

        def forward(self, x):
            return self.fc(functional.dropout(x, 0.5) if self.inner is None else self.inner(x))

    net = Net().eval()
    if isinstance(inner, nn.RReLU):
        inner.forward = lambda x: functional.rrelu(x, training=True)
    reason = f"the same batch gave other rows the second time: {named}"
    for samples in (1, 4):
        with pytest.raises(InvalidInputError, match=f"layer 'fc': {reason}"):
            moments(net, [drawn(samples, WIDTH)])
    assert moments(net, [drawn(4, WIDTH)], prove=False).count == 4


def test_an_unproved_capture_says_so_and_runs_nothing_more():
    calls = []
    net = Reads(ARRANGED["samples first"])
    net.register_forward_pre_hook(lambda *_: calls.append(1))
    moments(net, [drawn(3, 4, WIDTH)] * 2, prove=False)
    assert len(calls) == 2
    assert ds.RowRule(prove=False).words == "every row, not proved"
    x, mask = drawn(3, 4, WIDTH), padded(3, 4)
    calls.clear()
    moments(net, [{"x": x, "attention_mask": mask.long()}] * 2, mask="attention_mask")
    assert len(calls) == 2 + 3


def test_random_numbers_of_the_caller_are_left_alone():
    net, batch = Reads(ARRANGED["samples first"]), drawn(3, 4, WIDTH)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    moments(net, [batch])
    assert torch.equal(torch.rand(3), expected)
