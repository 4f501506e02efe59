"""Rows are those that a layer read: what lies in one memory at two times, and what is no real number."""

import pytest
import torch
from token_networks import ALL_ROWS, WIDTH, drawn, same_as
from torch import nn

from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.layers.spec import select_layers


class Overwritten(nn.Module):
    """Two layers read one memory; it changes in between, and torch takes no note of that."""

    def __init__(self, overwrite):
        super().__init__()
        self.a, self.b, self.overwrite = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 3), overwrite

    def forward(self, x):
        x = x.clone()
        first = self.a(x)
        self.overwrite(x)
        return first + self.b(x)


def double_by_numpy(x):
    array = x.numpy()
    array *= 2


@pytest.mark.parametrize("overwrite", [lambda x: x.data.mul_(2), double_by_numpy])
def test_layers_that_read_one_memory_at_two_times_have_rows_of_their_own(overwrite):
    x = drawn(8, WIDTH)
    net = Overwritten(overwrite).eval()
    layers = select_layers(net, ["a", "b"])
    found = accumulate_stream(net, [x], layers, folding=ALL_ROWS)
    same_as(found["a"], x)
    same_as(found["b"], 2 * x)
    unchanged = accumulate_stream(Overwritten(lambda _x: None).eval(), [x], layers, folding=ALL_ROWS)
    assert unchanged["a"] is unchanged["b"]


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_complex_numbers_are_refused_by_name(side):
    class Spectrum(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            for name, parameter in self.fc.named_parameters():  # only now: such a layer is not selected
                setattr(self.fc, name, nn.Parameter(parameter.to(torch.complex64)))
            return self.fc(torch.fft.rfft(x))

    with pytest.raises(UnsupportedLayerError, match=r"layer 'fc.*complex"):
        accumulate_stream(
            Spectrum().eval(), [drawn(5, WIDTH)], select_layers(Spectrum(), ["fc"], side=side), folding=ALL_ROWS
        )


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_rows_that_a_transform_of_torch_func_hides_are_refused_by_name(side):
    class Mapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.last = nn.Linear(5, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(torch.func.vmap(self.fc)(x))

    model, batches = Mapped().eval(), [torch.randn(8, 5)]
    with pytest.raises(UnsupportedLayerError, match=r"layer 'fc.*: is called inside a transform of torch\.func"):
        accumulate_stream(model, batches, select_layers(model, ["fc"], side=side), folding=ALL_ROWS)
    assert accumulate_stream(model, batches, select_layers(model, ["last"]), folding=ALL_ROWS)["last"].count == 8
