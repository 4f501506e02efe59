"""The networks that people bring, in plain torch with random weights: VGG19, ResNet-50 and a ViT, at any width.

Shapes and connections are those of the papers at `width=1`; blocks are named as torchvision names them.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional

VGG19 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512, 0)
"""Channels of the convolutions; 0 is max pooling."""


def vgg19(width=1.0, classes=1000):
    layers, channels = [], 3
    for size in VGG19:
        if size == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, int(size * width), 3, padding=1), nn.ReLU(inplace=True)]
        channels = int(size * width)
    hidden = int(4096 * width)
    head = [nn.Linear(channels * 49, hidden), nn.ReLU(inplace=True), nn.Dropout()]
    head += [nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(hidden, classes)]
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*layers),
            avgpool=nn.AdaptiveAvgPool2d(7),
            flat=nn.Flatten(),
            classifier=nn.Sequential(*head),
        )
    ).eval()


class Bottleneck(nn.Module):
    def __init__(self, inputs, channels, stride):
        super().__init__()
        outputs = 4 * channels
        self.conv1, self.bn1 = nn.Conv2d(inputs, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = nn.Conv2d(channels, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        h = self.relu(self.bn1(self.conv1(x)))
        h = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(h)))))
        return self.relu(h + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    def __init__(self, width=1.0, classes=1000):
        super().__init__()
        stem, channels = int(64 * width), [int(size * width) for size in (64, 128, 256, 512)]
        self.conv1, self.bn1 = nn.Conv2d(3, stem, 7, 2, padding=3, bias=False), nn.BatchNorm2d(stem)
        inputs = stem
        for number, (size, blocks) in enumerate(zip(channels, (3, 4, 6, 3), strict=True), start=1):
            stage = []
            for block in range(blocks):
                stage.append(Bottleneck(inputs, size, 2 if block == 0 and number > 1 else 1))
                inputs = 4 * size
            setattr(self, f"layer{number}", nn.Sequential(*stage))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        h = functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, padding=1)
        h = self.layer4(self.layer3(self.layer2(self.layer1(h))))
        return self.fc(functional.adaptive_avg_pool2d(h, 1).flatten(1))


def resnet50(width=1.0, classes=1000):
    """With statistics of batch norm that are not those of its beginning."""
    net = ResNet50(width, classes)
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return net.eval()


class Encoder(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x):
        h = self.ln_1(x)
        split = [
            layer(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        ]
        x = x + self.out(functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))
        return x + self.fc2(functional.gelu(self.fc1(self.ln_2(x))))


class ViT(nn.Module):
    def __init__(self, width=768, depth=12, heads=12, patch=16, image=224, classes=1000):
        super().__init__()
        self.conv_proj = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embedding = nn.Parameter(torch.randn(1, (image // patch) ** 2 + 1, width) * 0.02)
        self.layers = nn.Sequential(*(Encoder(width, heads) for _ in range(depth)))
        self.ln, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x):
        h = self.conv_proj(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.class_token.expand(len(h), -1, -1), h], 1) + self.pos_embedding
        return self.head(self.ln(self.layers(h))[:, 0])


def vit(**options):
    return ViT(**options).eval()
