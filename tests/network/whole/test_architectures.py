"""VGG19, ResNet-50 and a ViT whole, narrow ones here: every layer by some method, at full size and smaller."""

import numpy as np
import pytest
import torch
from architectures import resnet50, vgg19, vit
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.structure.readers import with_readers

FOLDING = ds.Folding(ds.HoldoutRule(0))


def made(build, size, **options):
    torch.manual_seed(0)
    images = torch.randn(6, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return build(**options).double(), images


def solved(net, images, layers):
    """Selections of all these layers that can be; the others' reasons."""
    structure = Structure.of(net, images)
    watched = with_readers(ds.network.select_layers(net, layers), structure)
    moments = accumulate_stream(net, [images], watched, folding=FOLDING)
    found, refused = {}, {}
    for layer in watched:
        if layer.group is not None:
            joint = layer.group.joint(moments)
            found[layer.name] = ds.spectral(joint)
        elif layer.unprunable:
            refused[layer.name] = layer.unprunable
    return found, refused, structure


def at_share(found, share):
    return {name: one.at_size(max(1, int(share * one.nodes)), ridge=1e-6) for name, one in found.items()}


def run(net, images):
    with torch.no_grad():
        return net(images).numpy()


def test_vgg19_whole_by_selections():
    net, images = made(vgg19, 64, width=1 / 16, classes=5)
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    found, refused, structure = solved(net, images, layers)
    assert list(found) == layers[:-1]
    assert "no layer reads them" in refused["classifier.6"]
    small = ds.compress(net, at_share(found, 0.5), example=structure)
    assert small.features[2].in_channels == small.features[0].out_channels == 2
    assert small.classifier[0].in_features == 16 * 49
    assert run(small, images).shape == (6, 5)
    np.testing.assert_allclose(
        run(ds.compress(net, at_share(found, 1.0), example=structure), images), run(net, images), rtol=1e-6
    )


def test_resnet50_whole_by_selections():
    net, images = made(resnet50, 64, width=1 / 16, classes=5)
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    found, refused, structure = solved(net, images, layers)
    stages = [structure.group_of(f"layer{number}.0.conv3") for number in (1, 2, 3, 4)]
    assert [len(stage.producers) for stage in stages] == [4, 5, 7, 4]  # the blocks' last layers and the shortcut
    assert stages[3].readers[-1].span.layer == "fc"
    assert sorted(found) == sorted({structure.group_of(layer).producers[0] for layer in layers})
    assert all("tied by an addition" in reason for reason in refused.values())
    assert len(found) == 1 + 2 * 16 + 4
    assert len(found) + len(refused) == len(layers) == 53
    small = ds.compress(net, at_share(found, 0.5), example=structure)
    assert small.layer1[0].conv1.in_channels == 2
    assert small.fc.in_features == 64
    np.testing.assert_allclose(
        run(ds.compress(net, at_share(found, 1.0), example=structure), images), run(net, images), rtol=1e-6
    )


def test_a_vit_by_factor_pairs_and_selections():
    net, images = made(vit, 32, width=24, depth=2, heads=3, patch=8, image=32, classes=5)
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    found, refused, structure = solved(net, images, layers)
    assert sorted(found) == ["layers.0.fc1", "layers.1.fc1"]
    assert set(refused) == set(layers) - set(found)
    assert "the parameter 'pos_embedding'" in refused["conv_proj"] or "class_token" in refused["conv_proj"]
    moments = accumulate_stream(net, [images], ds.network.select_layers(net, layers), folding=FOLDING)
    pairs = {}
    for layer in set(layers) - set(found) - {"head"}:
        weight, bias = ds.network.weights_of(net, layer)
        pairs[layer] = ds.dalr(weight, bias, moments[layer]).at_rank(min(weight.shape) // 3)
    small = ds.compress(net, {**pairs, **at_share(found, 0.5)}, example=structure)
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in net.parameters())
    assert run(small, images).shape == (6, 5)


@pytest.mark.filterwarnings("ignore::dalr_stream.errors.ParameterIncreaseWarning")  # full rank is the point here
@pytest.mark.parametrize(
    ("build", "options"),
    [
        (vgg19, {"width": 1 / 32}),
        (resnet50, {"width": 1 / 16}),
        (vit, {"width": 12, "depth": 2, "heads": 3, "patch": 8, "image": 64}),
    ],
)
def test_anchored_at_full_rank_is_the_network(build, options):
    net, images = made(build, 64, classes=5, **options)
    layers = ds.network.select_layers(net, [nn.Linear, nn.Conv2d])
    moments = accumulate_stream(net, [images], layers, folding=FOLDING)
    pairs = {}
    for layer in layers:
        weight, bias = ds.network.weights_of(net, layer.name)
        pairs[layer.name] = ds.dalr(weight, bias, moments[layer.name]).at_rank(min(weight.shape))
    np.testing.assert_allclose(run(ds.compress(net, pairs), images), run(net, images), rtol=1e-7, atol=1e-9)
