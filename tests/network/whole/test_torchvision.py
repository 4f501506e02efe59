"""torchvision's own networks, where its compiled operators are there; elsewhere `architectures` stands in for them."""

import numpy as np
import pytest
import torch

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.network.structure.readers import with_readers

try:
    from torchvision import models
except (ImportError, RuntimeError) as error:  # without its operators torchvision raises when it is imported
    pytest.skip(f"torchvision does not run here: {error}", allow_module_level=True)


@pytest.mark.parametrize(
    ("build", "size", "layer", "readers"),
    [
        (models.vgg11, 64, "features.18", ["classifier.0"]),
        (models.vgg11_bn, 64, "features.0", ["features.4"]),
        (models.resnet18, 64, "layer4.1.conv2", ["layer4.1.conv1", "fc"]),
        (models.resnet50, 64, "layer3.2.conv2", ["layer3.2.conv3"]),
        (models.mobilenet_v2, 64, "features.2.conv.0.0", ["features.2.conv.2"]),
        (models.vit_b_16, 224, "encoder.layers.encoder_layer_0.mlp.0", ["encoder.layers.encoder_layer_0.mlp.3"]),
    ],
)
def test_groups_are_found_and_every_channel_kept_is_the_network(build, size, layer, readers):
    torch.manual_seed(0)
    net, images = build(weights=None).eval(), torch.randn(2, 3, size, size)
    structure = ds.network.Structure.of(net, images)
    group = structure.group_of(layer)
    assert [reader.span.layer for reader in group.readers] == readers
    watched = with_readers(ds.network.select_layers(net, [layer]), structure)
    moments = accumulate_stream(net, [images], watched, folding=ds.Folding(ds.HoldoutRule(0)))
    selection = ds.spectral(group.joint(moments), limit=8)
    small = ds.compress(net, {layer: selection.at_size(8)}, example=structure)
    with torch.no_grad():
        assert small(images).shape == (2, 1000)
    every = ds.spectral(group.joint(moments)).at_size(group.channels, ridge=1e-3)
    with torch.no_grad():
        same = ds.compress(net, {layer: every}, example=structure)(images).numpy()
        np.testing.assert_allclose(same, net(images).numpy(), rtol=1e-3, atol=1e-4)
