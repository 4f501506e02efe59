"""Which layers write into a residual stream, however a network adds them, and why others do not."""

import gc
import itertools
import re
import weakref

import pytest
import torch
from torch import nn

from dalr_stream.errors import LayerNotFoundError
from dalr_stream.network.capture.additions import SMALLEST_SCALE, Additions, Before
from dalr_stream.network.structure.stream import not_into_a_stream


class Adds(nn.Module):
    """A layer, and whatever becomes of what it gives: `then(self, z, x)`."""

    def __init__(self, then, layer=None):
        super().__init__()
        self.layer = layer or nn.Linear(5, 5)
        self.other, self.norm, self.drop = nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Dropout(0.5)
        self.shift = nn.Parameter(torch.randn(5))
        self.then = then

    def forward(self, x):
        return self.then(self, self.layer(x), x)


def made(then, layer=None, dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Adds(then, layer)
        for name in ("running_mean", "running_var", "weight", "bias"):
            nn.init.uniform_(getattr(model.norm, name).detach(), 0.5, 2.0)
        return model.to(dtype).eval()


def reason(model, x=None):
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).to(model.shift.dtype) if x is None else x
    return not_into_a_stream(model, x, ["layer"])["layer"]


def in_place(_, z, x):
    z += x
    return z


def in_place_of_the_stream(_, z, x):
    x = x * 1.0
    x += z
    return x


INTO = {
    "first": lambda _, z, x: z + x,
    "last": lambda _, z, x: x + z,
    "function": lambda _, z, x: torch.add(x, z),
    "named": lambda _, z, x: torch.add(z, other=x),
    "method": lambda _, z, x: z.add(x),
    "in place": in_place,
    "in place of the stream": in_place_of_the_stream,
    "dropout": lambda m, z, x: m.drop(z) + x,
    "functional dropout": lambda _, z, x: nn.functional.dropout(z, 0.3, training=False) + x,
    "copies and casts": lambda _, z, x: z.contiguous().clone().to(torch.float64) + x.double(),
    "views": lambda _, z, x: z.view(4, 5).reshape_as(x) + x if len(x) == 4 else z.view_as(x) + x,
    "batch norm": lambda m, z, x: m.norm(z) + x,
    "two batch norms": lambda m, z, x: m.norm(m.norm(z)) + x,
    "with another layer": lambda m, z, x: z + m.other(x),
    "then normed": lambda m, z, x: m.norm(m.drop(z) + x),
    "shape asked for": lambda _, z, x: (z + x).reshape(z.shape[0], z.size(1)),
}


@pytest.mark.parametrize("how", INTO)
def test_an_addition_is_found_however_it_is_written(how):
    assert reason(made(INTO[how])) == ""


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_types_whose_sums_are_coarser_are_proved_within_their_own_rounding(dtype):
    assert reason(made(INTO["dropout"], dtype=dtype)) == ""


NOT_INTO = {
    "nonlinearity": (lambda _, z, x: torch.relu(z) + x, "added to nothing of its shape: relu reads it"),
    "scaled": (lambda _, z, x: 0.5 * z + x, "added to nothing of its shape: mul reads it"),
    "alpha": (lambda _, z, x: torch.add(x, z, alpha=2), "added to nothing of its shape: add reads it"),
    "subtracted": (lambda _, z, x: x - z, "added to nothing of its shape: r?sub reads it"),
    "a row": (lambda m, z, x: z + m.shift + x, "added to nothing of its shape: add reads it"),
    "a number": (lambda _, z, x: z + 1.0 + x, "added to nothing of its shape: add reads it"),
    "itself": (lambda _, z, __: z + z, "added to nothing of its shape: add reads it"),
    "twice": (lambda _, z, x: (z + x) * (x + z), "is added 2 times in 1 calls"),
    "read besides": (lambda _, z, x: (z + x) * z.sigmoid(), "is read by sigmoid besides the addition"),
    "the output": (lambda _, z, __: z, "added to nothing of its shape: nothing of torch reads it"),
    "batch norm in training": (
        lambda _, z, x: nn.functional.batch_norm(z, None, None, training=True) + x,
        "added to nothing of its shape: batch_norm reads it",
    ),
    "a ReLU that hides nothing here": (lambda _, z, x: torch.relu(z + 100.0) + x, "add reads it"),
}


@pytest.mark.parametrize("how", NOT_INTO)
def test_why_a_layer_writes_into_no_stream_is_said(how):
    then, message = NOT_INTO[how]
    assert reason(made(then)).startswith("what it gives ")
    assert re.search(message, reason(made(then)))


def test_what_is_added_in_some_passes_alone_is_not_taken_for_a_stream():
    passes = itertools.count()
    assert "not the same in every forward pass" in reason(
        made(lambda _, z, x: torch.relu(z) if next(passes) else z + x)
    )


def test_an_operation_that_passes_for_none_is_found_out_by_what_arrives():
    class Strange(nn.Module):
        """Copies, to torch; and yet other numbers."""

        def forward(self, z):
            copied = z.clone()
            copied.data.mul_(2.0)
            return copied

    strange = Strange()
    assert reason(made(lambda _, z, x: strange(z) + x)) != ""


def test_a_layer_of_several_calls_is_taken_in_each_time_or_not_at_all():
    assert reason(made(lambda m, z, x: m.layer(z + x) + x)) == ""
    assert "added 1 times in 2 calls" in reason(made(lambda m, z, x: torch.relu(m.layer(torch.tanh(z + x)))))


def test_convolutions_and_what_goes_around_them_write_into_one_stream():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, 2, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
            self.norm, self.around = nn.BatchNorm2d(4), nn.Conv2d(3, 4, 1, 2)

        def forward(self, x):
            return self.norm(self.second(torch.relu(self.first(x)))) + self.around(x)

    reasons = not_into_a_stream(Block().eval(), torch.randn(4, 3, 6, 6), ["first", "second", "around"])
    assert "relu reads it" in reasons["first"]
    assert (reasons["second"], reasons["around"]) == ("", "")


def test_a_scripted_module_cannot_be_followed_and_an_unknown_layer_is_named():
    model = made(lambda m, z, x: m.inner(z, x))

    class Inner(nn.Module):
        def forward(self, z, x):
            return z + x

    model.inner = torch.jit.script(Inner())
    assert "added to nothing of its shape" in reason(model)
    with pytest.raises(LayerNotFoundError, match="there is no layer 'layers'"):
        not_into_a_stream(model, torch.randn(4, 5), ["layers"])


# --- in whose units -------------------------------------------------------------------------------------------------


def test_the_stream_is_told_in_the_layers_units_and_where_no_output_reaches_it_as_nothing():
    norm = nn.BatchNorm2d(3).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, -0.5, SMALLEST_SCALE / 10]))
        norm.running_var.copy_(torch.tensor([4.0, 1.0, 1.0]))
        z, r, told = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), []
        additions = Additions()
        with additions:
            additions.follow(z, Before(told.append))
            norm(z) + r
        expected = r / torch.tensor([2.0 / 2.0, -0.5, torch.inf]).reshape(3, 1, 1)
        torch.testing.assert_close(told, [expected], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close((norm(z + told[0]) - norm(z))[:, :2], r[:, :2], rtol=1e-4, atol=1e-4)


def test_outside_its_block_nothing_is_followed():
    told, additions, z = [], Additions(), torch.randn(2, 3)
    with additions:
        additions.follow(z, Before(told.append))
    z + z.clone()
    assert not told


def test_nothing_of_a_pass_is_kept_once_it_is_over():
    additions, z = Additions(), torch.randn(2, 3)
    with additions:
        additions.follow(z, Before(lambda other, mine=additions: (mine, other)))  # a circle, as hooks make it
        z.clone()
    gone = weakref.ref(z)
    gc.disable()
    try:
        del z
        assert gone() is None
    finally:
        gc.enable()
