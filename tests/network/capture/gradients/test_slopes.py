"""Gradients that are not what the outputs change by are refused, by the layer; and those that are never are."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.gradient_rule import GradientRule
from dalr_stream.network.capture.gradients.ends import End
from dalr_stream.network.capture.gradients.slopes import require_slopes
from dalr_stream.network.capture.hooks import capture_rows
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.spec import select_layers


class Nowhere:
    """A RowSink that takes anything."""

    held = ()

    def skip(self, *_):
        return False

    def write(self, _):
        pass

    def finish(self):
        pass


class Gated(nn.Module):
    """h of a layer, and `then(net, h)` of it, on to the scores."""

    def __init__(self, then):
        super().__init__()
        self.a, self.gate, self.c = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.then = then

    def forward(self, x):
        return self.c(self.then(self, torch.relu(self.a(x))))


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(_, gradient):
        return -gradient


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return (4 * x).round() / 4

    @staticmethod
    def backward(_, gradient):
        return gradient


def overwritten(_, h):
    h.data.mul_(2.0)
    return h


def some_under_no_grad(net, h):
    with torch.no_grad():
        factor = torch.sigmoid(4 * net.gate(h))
    return h * factor


PARTLY = {
    "detached": lambda net, h: h * torch.sigmoid(4 * net.gate(h.detach())),
    "detached addition": lambda net, h: h + net.gate(h).detach(),
    "under no_grad": some_under_no_grad,
    "by numpy": lambda _, h: h * torch.from_numpy(h.detach().numpy() + 1.0),
    "overwritten behind torch's back": overwritten,
    "a gradient that is reversed": lambda _, h: Reversed.apply(h),
    "straight through": lambda _, h: h + (h.tanh().sign() - h).detach(),
}


def seeded(model, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
        parameter.data = drawn.to(dtype)
    return model.eval()


def take(model, x, names=("*",), **options):
    prove = options.pop("prove", True)
    rule = RowRule(prove=prove, most_patches=None, gradients=GradientRule(**options))
    capture_rows(model, x.split(3), select_layers(model, names, side="gradients"), Nowhere(), rows=rule)


def data(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", ["classes", "values"])
@pytest.mark.parametrize("how", PARTLY)
def test_gradients_that_miss_a_part_are_refused_and_the_layer_is_named(how, metric, dtype):
    model = seeded(Gated(PARTLY[how]), dtype)
    with pytest.raises(
        InvalidInputError, match=r"layer 'a@gradients': gradients are not what the network's output"
    ) as e:
        take(model, data(7, 5, dtype=dtype), ["a", "c"], metric=metric)
    assert "\n" not in str(e.value)
    take(model, data(7, 5, dtype=dtype), ["c"], metric=metric)
    take(model, data(7, 5, dtype=dtype), ["a", "c"], metric=metric, prove=False)


class Pictures(nn.Module):
    def __init__(self, *, bias):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 6, 3, padding=1, bias=bias), nn.Conv2d(6, 8, 3, padding=1, groups=2, bias=bias)
        self.c = nn.Linear(8 * 9, 4)

    def forward(self, x):
        for layer in (self.a, self.b):
            x = functional.max_pool2d(torch.relu_(layer(x)), 2)
        return self.c(x.flatten(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.i, self.h, self.o = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = torch.zeros(len(x), 5)
        for step in range(x.shape[1]):
            h = torch.tanh(self.i(x[:, step]) + self.h(h))
        return self.o(h)


def black_but_for_a_spot():
    x = torch.zeros(7, 1, 12, 12)
    x[:, :, 4:7, 4:6] = data(7, 1, 3, 2).abs()
    return x


def plain(_, h):
    return h


WHOLE = {
    "zeros and equal numbers": lambda seed: (Pictures(bias=bool(seed % 2)), black_but_for_a_spot()),
    "called often": lambda _: (Recurrent(), data(7, 6, 4)),
    "deep": lambda _: (nn.Sequential(*[one for _ in range(12) for one in (nn.Linear(8, 8), nn.ReLU())]), data(7, 8)),
    "a layer that comes to nothing": lambda _: (Gated(lambda net, h: h + 0.0 * net.gate(h)), data(7, 5)),
    "certain": lambda _: (Gated(lambda _, h: 1e4 * h), data(7, 5)),
    "hardly any": lambda _: (Gated(lambda _, h: 1e-12 * h), data(7, 5)),
    "tokens": lambda _: (nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 5)), data(7, 4, 6)),
    "zeros alone": lambda _: (Gated(plain), torch.zeros(7, 5)),
    "half": lambda _: (Gated(plain).bfloat16(), data(7, 5, dtype=torch.bfloat16)),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", WHOLE)
def test_gradients_that_are_whole_are_taken(kind, seed):
    model, x = WHOLE[kind](seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = (torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5).to(x.dtype)
    take(model.eval(), x, ["a", "c"] if isinstance(model, Gated) else ["*"])


@pytest.mark.parametrize("own", [False, True])
def test_a_loss_that_is_next_to_nothing_is_taken(own):
    """Of scores that are certain: it is exp(-score), and none of its changes is seen beside 1."""
    model, x = seeded(Gated(lambda _, h: 40.0 * h)), data(7, 5)
    labels = model(x).argmax(1)
    loss = (lambda o, batch: functional.cross_entropy(o, batch[1], reduction="none")) if own else None
    batches, rule = list(zip(x.split(3), labels.split(3), strict=True)), GradientRule(estimator="labels", loss=loss)
    layers = select_layers(model, ["a", "c"], side="gradients")
    capture_rows(model, batches, layers, Nowhere(), rows=RowRule(gradients=rule))


@pytest.mark.parametrize("loss", [None, lambda o, batch: functional.cross_entropy(o, batch[1], reduction="none")])
def test_labels_are_told_by_outputs_or_by_the_loss_itself(loss):
    model, x = seeded(Gated(PARTLY["detached"])), data(7, 5)
    layers = select_layers(model, ["a", "c"], side="gradients")
    rule = GradientRule(estimator="labels", loss=loss)
    with pytest.raises(InvalidInputError, match=r"layer 'a@gradients': gradients are not what"):
        capture_rows(model, [(x, torch.arange(7) % 3)], layers, Nowhere(), rows=RowRule(gradients=rule))


def test_rounding_in_small_steps_tells_nothing_and_is_taken():
    """As of quantised activations: differences are 0, or far too large."""
    take(seeded(Gated(lambda _, h: Rounded.apply(64 * h) / 64)), data(7, 5), ["a", "c"])


def test_a_network_that_takes_no_two_samples_is_taken():
    class OfThree(Gated):
        def forward(self, x):
            return super().forward(x).reshape(3, 3)

    model = seeded(OfThree(PARTLY["detached"]))
    require_slopes(model, select_layers(model, ["a"], side="gradients"), GradientRule(), End(None, data(3, 5), 3))


def test_the_network_and_the_callers_random_numbers_are_left_alone():
    model, x = seeded(Gated(plain)), data(7, 5)
    before, state = {name: one.clone() for name, one in model.state_dict().items()}, torch.get_rng_state()
    require_slopes(model, select_layers(model, ["*"], side="gradients"), GradientRule(), End(None, x, 7))
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
