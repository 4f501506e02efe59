"""Rows are the layers' real inputs, whole and finite, and the network is left as it was found."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from dalr_stream.errors import InvalidInputError, NonFiniteError, UnsupportedLayerError
from dalr_stream.network.capture.batches import digest_of_inputs
from dalr_stream.network.capture.hooks import capture_rows
from dalr_stream.network.layers.identity import fingerprint
from dalr_stream.network.layers.spec import select_layers


class Collector:
    """A RowSink that keeps everything, and can claim to hold the first batches."""

    def __init__(self, held=0):
        self.held, self.batches, self.offered, self.finished = held, [], [], False

    def skip(self, batch, samples, digest):
        self.offered.append((batch, samples, digest))
        return batch < self.held

    def write(self, batch):
        self.batches.append(batch)

    def finish(self):
        self.finished = True

    def rows(self, layer):
        return np.concatenate([batch.rows[layer] for batch in self.batches if batch.samples])


class Mlp(nn.Module):
    """Overwrites the input of every layer right after the layer has read it."""

    def __init__(self):
        super().__init__()
        self.fc6, self.fc7, self.fc8 = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = torch.relu(self.fc6(x))
        y = self.fc7(h)
        h.fill_(7.0)
        z = self.fc8(torch.relu_(y))
        y.mul_(-1.0)
        return z


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Mlp().eval()


def data(n=10, *shape, seed=1):
    return torch.randn(n, *(shape or (6,)), generator=torch.Generator().manual_seed(seed))


def capture(net, batches, patterns=("fc6", "fc7", "fc8"), sink=None, **options):
    sink = sink or Collector()
    capture_rows(net, batches, select_layers(net, patterns), sink, **options)
    return sink


# --- the rows -----------------------------------------------------------------------------------------------------


def test_rows_are_what_the_layers_read_though_it_is_overwritten_afterwards(net):
    x = data(10)
    sink = capture(net, x.split(4))
    with torch.no_grad():
        h6 = x
        h7 = torch.relu(net.fc6(h6))
        h8 = torch.relu(net.fc7(h7))
    for name, expected in (("fc6", h6), ("fc7", h7), ("fc8", h8)):
        np.testing.assert_allclose(sink.rows(name), expected.numpy(), rtol=1e-5, atol=1e-6)
        assert sink.rows(name).dtype == np.float32
    assert [batch.samples for batch in sink.batches] == [4, 4, 2]
    assert sink.finished


def test_rows_do_not_change_when_the_loader_reuses_its_buffer(net):
    buffer = torch.empty(2, 6)

    def loader():
        for value in (1.0, 2.0):
            buffer.fill_(value)
            yield buffer

    assert capture(net, loader()).rows("fc6").tolist() == [[1.0] * 6] * 2 + [[2.0] * 6] * 2


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.head = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x, scale=None):
        h = self.mix(input=x)
        return self.head((h if scale is None else h * scale).mean(1))


def test_every_token_is_a_row_and_a_keyword_call_is_seen():
    net, x = Tokens().eval(), data(4, 3, 6)
    sink = capture(net, [x[:1], x[1:]], ["mix", "head"])
    assert np.array_equal(sink.rows("mix"), x.reshape(12, 6).numpy())
    assert sink.rows("head").shape == (4, 5)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, np.float32),
        (torch.float16, np.float32),
        (torch.float32, np.float32),
        (torch.float64, np.float64),
    ],
)
def test_half_precision_widens_without_loss(net, dtype, expected):
    net = net.to(dtype)
    x = data(5).to(dtype)
    sink = capture(net, [x])
    assert sink.rows("fc6").dtype == expected
    assert torch.equal(torch.from_numpy(sink.rows("fc6")).to(dtype), x)
    assert np.array_equal(sink.rows("fc6"), x.to(torch.float64).numpy().astype(expected))


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x, torch.zeros(len(x))), lambda x: [x], lambda x: {"x": x}])
def test_tensors_tuples_lists_and_mappings_give_the_same_rows(net, wrap):
    x = data(6)
    sink = capture(net, [wrap(x[:4]), wrap(x[4:])])
    assert np.array_equal(sink.rows("fc6"), x.numpy())


def test_a_mapping_reaches_the_network_by_keyword():
    net, x = Tokens().eval(), data(2, 3, 6)
    plain = capture(net, [{"x": x}], ["head"])
    scaled = capture(net, [{"x": x, "scale": 2.0}], ["head"])
    np.testing.assert_allclose(scaled.rows("head"), 2 * plain.rows("head"), rtol=1e-5)


def test_digests_are_of_the_input_and_of_nothing_else(net):
    def digests(*batches):
        return [digest for _, _, digest in capture(net, batches).offered]

    x, labels = data(4), torch.arange(4)
    assert digests(x) == digests(x.clone()) == digests((x, labels)) == digests((x, labels + 1))
    assert digests(x) != digests(x.flip(0))
    assert digests({"x": x}) != digests({"x": x + 1})


def test_digests_see_every_number_of_whatever_a_batch_holds():
    """Also where a repr would leave out the middle."""
    long, other = np.arange(5000.0), np.arange(5000.0)
    other[2500] = -1
    ways = [
        lambda array: array,
        lambda array: [torch.from_numpy(array), None],
        lambda array: ({"deep": array}, 1),
        lambda array: np.array([array, "ragged"], dtype=object),
    ]
    for way in ways:
        batches = [{"x": torch.zeros(2, 6), "other": way(array)} for array in (long, long.copy(), other)]
        first, same, changed = map(digest_of_inputs, batches)
        assert first == same != changed


def test_batches_the_sink_holds_are_not_run_again(net):
    runs, done = [], []
    net.register_forward_pre_hook(lambda _, arguments: runs.append(len(arguments[0])))
    sink = capture(net, data(9).split(2), sink=Collector(held=3), batch_done=lambda n, spared: done.append((n, spared)))
    assert runs == [2, 2, 2, 1]  # the first two prove whose rows are whose
    assert done == [(2, True), (2, True), (2, True), (2, False), (1, False)]
    assert [(number, n) for number, n, _ in sink.offered] == [(0, 2), (1, 2), (2, 2), (3, 2), (4, 1)]


def test_batches_of_no_samples_are_passed_on_but_never_run(net):
    runs = []
    net.register_forward_pre_hook(lambda *_: runs.append(1))
    x = data(4)
    sink = capture(net, [x[:0], x[:3], x[:0], x[3:]])
    assert [batch.samples for batch in sink.batches] == [0, 3, 0, 1]
    assert np.array_equal(sink.rows("fc6"), x.numpy())
    assert len(runs) == 2 + 2  # two more prove whose rows are whose


# --- the network is left alone ------------------------------------------------------------------------------------


def state(net):
    hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in net.modules()]
    flags = [module.training for module in net.modules()]
    grads = [(p.requires_grad, p.grad is None) for p in net.parameters()]
    return hooks, flags, grads, fingerprint(net), torch.get_rng_state().tolist(), torch.is_grad_enabled()


def test_a_capture_leaves_no_trace(net):
    net.fc7.weight.requires_grad_(False)
    before = state(net)
    capture(net, data(10).split(3))
    assert state(net) == before


def test_a_capture_that_failed_leaves_no_trace_either(net):
    before = state(net)
    with pytest.raises(InvalidInputError, match=r"batch 1: the network refuses 3 x 9 float32.*cannot be multiplied"):
        capture(net, [data(3), data(3, 9)])
    assert state(net) == before
    with pytest.raises(NonFiniteError):
        capture(net, [data(3) * torch.inf])
    assert state(net) == before


# --- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["", "fc7"])
def test_a_network_in_train_mode_is_refused_and_the_module_named(net, module):
    net.get_submodule(module).train()
    sink = Collector()
    named = module or "the network"
    with pytest.raises(InvalidInputError, match=f"must be in eval mode, '{named}' is in train mode: call model.eval"):
        capture(net, [data(3)], sink=sink)
    assert sink.offered == []
    assert net.get_submodule(module).training


@pytest.mark.parametrize(("bad", "kinds"), [(torch.nan, "2 NaN and 0 Inf"), (-torch.inf, "0 NaN and 2 Inf")])
def test_bad_activations_are_named_and_nothing_of_their_batch_is_committed(net, bad, kinds):
    x = data(6)
    x[4, 1] = x[5, 3] = bad
    sink = Collector()
    with pytest.raises(NonFiniteError, match=f"layer 'fc6', batch 2: .*{kinds} in 2 features, the first in feature 1"):
        capture(net, x.split(2), sink=sink)
    assert [batch.samples for batch in sink.batches] == [2, 2]
    assert not sink.finished


def test_half_precision_that_overflows_between_layers_is_named_at_its_layer(net):
    net = net.to(torch.float16)
    with torch.no_grad():
        net.fc6.weight.fill_(1e4)
    with pytest.raises(NonFiniteError, match=r"layer 'fc7', batch 0: .* 10 Inf in 5 features"):
        capture(net, [torch.full((2, 6), 10.0, dtype=torch.float16)])


def test_rows_are_taken_though_their_squares_overflow(net):
    sink = Collector()
    capture_rows(net, [torch.full((4, 6), 1e30)], select_layers(net, ["fc6"]), sink)
    assert (sink.rows("fc6") == np.float32(1e30)).all()


@pytest.mark.parametrize("batches", [[], [torch.empty(0, 6)]])
def test_a_loader_without_a_sample_is_refused(net, batches):
    sink = Collector()
    with pytest.raises(InvalidInputError, match="the loader gave no sample: check the data set"):
        capture(net, batches, sink=sink)
    assert not sink.finished


@pytest.mark.parametrize("batch", ["text", (), {}, {"x": "text"}, torch.tensor(1.0), [np.zeros((2, 6))]])
def test_what_is_no_batch_is_refused(net, batch):
    with pytest.raises(InvalidInputError, match="a batch "):
        capture(net, [batch])


def test_no_layers_are_refused(net):
    with pytest.raises(InvalidInputError, match="at least one layer"):
        capture_rows(net, [data(2)], (), Collector())


class Odd(Mlp):
    def __init__(self, calls):
        super().__init__()
        self.calls = calls
        self.square = nn.Linear(6, 6)

    def forward(self, x):
        for _ in range(self.calls):
            x = self.square(x)
        return super().forward(x)


def test_a_layer_that_is_never_called_is_refused():
    net = Odd(0).eval()
    with pytest.raises(UnsupportedLayerError, match="layer 'square': is never called"):
        capture(net, [data(2)], ["fc6", "square"])
    assert all(not module._forward_pre_hooks for module in net.modules())


def test_twins_give_the_same_rows_to_the_bit(net):
    twin = copy.deepcopy(net)
    one, other = capture(net, data(9).split(4)), capture(twin, data(9).split(4))
    assert all(np.array_equal(one.rows(name), other.rows(name)) for name in ("fc6", "fc7", "fc8"))
