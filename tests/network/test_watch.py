"""One call names all that is to be recorded: layers, readers of their channels, outputs."""

import numpy as np
import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.errors import LayerNotFoundError
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.structure.readers import with_readers
from dalr_stream.network.watch import watch

X = torch.randn(64, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(16, 3)
    ).eval()


def test_without_an_example_the_layers_alone_are_watched():
    layers = watch(build(), ["0", "5"])
    assert tuple(layers) == ds.network.select_layers(build(), ["0", "5"])
    assert layers.structure is None


def test_with_an_example_the_readers_are_watched_too_and_groups_are_known():
    net = build()
    layers = watch(net, ["0", "3"], example=X[:2])
    assert layers.streams == ("0", "3", "3@channels", "5@channels")
    assert tuple(layers) == with_readers(ds.network.select_layers(net, ["0", "3"]), layers.structure)
    assert [spec.group.producers for spec in layers[:2]] == [("0",), ("3",)]
    assert len(layers) == 4


def test_a_structure_may_stand_for_the_example():
    net = build()
    structure = Structure.of(net, X[:2])
    assert watch(net, "0", example=structure).structure is structure


@pytest.mark.parametrize("outputs", ["5", ["5"], nn.Linear, [nn.Linear]])
def test_outputs_are_watched_beside_the_inputs(outputs):
    assert watch(build(), [nn.Conv2d], outputs=outputs).streams == ("0", "3", "5@outputs")


def test_a_pattern_of_outputs_that_matches_nothing_is_an_error():
    with pytest.raises(LayerNotFoundError, match="'fc' matches no layer"):
        watch(build(), ["0"], outputs=["fc"])


def test_what_is_watched_is_accumulated_solved_and_compressed():
    net = build()
    layers = watch(net, ["0"], example=X[:2])
    moments = accumulate_stream(net, [X], layers, rows=ds.RowRule(most_patches=None))
    selection = ds.spectral(layers[0].group.joint(moments))
    small = ds.compress(net, {"0": selection.at_size(6)}, example=layers.structure)
    with torch.no_grad():
        np.testing.assert_allclose(small(X), net(X), rtol=1e-4, atol=1e-4)
    assert ds.compress(net, {"0": selection.at_size(3)}, example=layers.structure)[0].out_channels == 3
