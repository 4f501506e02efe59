"""Networks of pictures written by hand in plain torch: as people write them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class UNet(nn.Module):
    """Down, up by transposed convolutions, and skips that are concatenated."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2 = block(3, 8), block(8, 12)
        self.middle = block(12, 16)
        self.up2, self.up1 = nn.ConvTranspose2d(16, 12, 2, 2), nn.ConvTranspose2d(12, 8, 2, 2)
        self.mix2, self.mix1, self.out = block(24, 12), block(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        one = self.down1(x)
        two = self.down2(functional.max_pool2d(one, 2))
        h = self.middle(functional.max_pool2d(two, 2))
        h = self.mix2(torch.cat([self.up2(h), two], 1))
        return self.out(self.mix1(torch.cat([self.up1(h), one], 1)))


def block(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
    )  # fmt: skip


class UNetOfTime(nn.Module):
    """In one dimension, as diffusion has it: interpolated, and modulated by an embedding of the step."""

    def __init__(self):
        super().__init__()
        self.step = nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, 16))
        self.first, self.down = nn.Conv1d(2, 8, 3, padding=1), nn.Conv1d(8, 8, 3, 2, padding=1)
        self.up, self.out = nn.Conv1d(8, 8, 3, padding=1, padding_mode="circular"), nn.Conv1d(16, 2, 1)

    def forward(self, x, t):
        scale, shift = self.step(t[:, None])[..., None].chunk(2, 1)
        first = functional.silu(self.first(x))
        h = functional.silu(self.down(first)) * (1 + scale) + shift
        h = self.up(functional.interpolate(h, scale_factor=2.0))
        return self.out(torch.cat([h, first], 1))


class Detector(nn.Module):
    """A pyramid of features whose heads are shared by all of its levels, as RetinaNet has it."""

    def __init__(self):
        super().__init__()
        self.stem, self.two = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 12, 3, 2, 1)
        self.three = nn.Conv2d(12, 16, 3, 2, 1)
        self.lateral = nn.ModuleList([nn.Conv2d(12, 8, 1), nn.Conv2d(16, 8, 1)])
        self.tower, self.classes = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 6, 3, 1, 1)
        self.boxes = nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, x):
        two = torch.relu(self.two(torch.relu(self.stem(x))))
        three = torch.relu(self.three(two))
        top = self.lateral[1](three)
        levels = [self.lateral[0](two) + functional.interpolate(top, scale_factor=2.0), top]
        found = [torch.relu(self.tower(level)) for level in levels]
        flat = [head(h).permute(0, 2, 3, 1).flatten(1) for h in found for head in (self.classes, self.boxes)]
        return torch.cat(flat, 1)


class SingleShot(nn.Module):
    """Heads of their own on two levels, anchors last, as SSD and YOLO have it."""

    def __init__(self):
        super().__init__()
        self.one, self.two = block(3, 8), block(8, 12)
        self.heads = nn.ModuleList([nn.Conv2d(8, 2 * 7, 1), nn.Conv2d(12, 2 * 7, 1)])

    def forward(self, x):
        one = self.one(x)
        two = self.two(functional.max_pool2d(one, 2))
        shaped = [
            head(h).unflatten(1, (2, 7)).permute(0, 1, 3, 4, 2) for head, h in zip(self.heads, (one, two), strict=True)
        ]
        return torch.cat([h.sigmoid().flatten(1, 3) for h in shaped], 1)


class ChannelsLast(nn.Module):
    """Flattened with its channels last, as torchcrepe and MTCNN do."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 12, 3, 2)
        self.dense, self.head = nn.Linear(12 * 3 * 3, 16), nn.Linear(16, 4)

    def forward(self, x):
        h = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.head(torch.relu(self.dense(h.permute(0, 2, 3, 1).reshape(len(h), -1))))


class Shuffled(nn.Module):
    """Convolutions of groups whose channels are shuffled between, and a gate of each channel."""

    def __init__(self):
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 12, 1, groups=3)
        self.depthwise, self.second = nn.Conv2d(12, 12, 3, 1, 1, groups=12), nn.Conv2d(12, 12, 1, groups=3)
        self.squeeze, self.excite, self.head = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1), nn.Linear(12, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        h = self.first(x).unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)
        h = self.second(self.depthwise(torch.relu(h)))
        h = h * self.excite(torch.relu(self.squeeze(h.mean((2, 3), keepdim=True)))).sigmoid()
        return self.head((x + h).mean((2, 3)))


class Mixer(nn.Module):
    """Dense layers over positions and over channels, in turn."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.tokens = nn.Sequential(nn.Linear(9, 16), nn.GELU(), nn.Linear(16, 9))
        self.channels = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        h = self.patches(x).flatten(2)
        h = (h + self.tokens(h)).transpose(1, 2)
        return self.head((h + self.channels(h)).mean(1))


class Temporal(nn.Module):
    """Causal convolutions with gates and skips, dilated, as WaveNet has them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(2, 8, 1)
        self.gated = nn.ModuleList(nn.Conv1d(8, 16, 2, dilation=2**n) for n in range(3))
        self.skips, self.out = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(3)), nn.Conv1d(8, 4, 1)

    def forward(self, x):
        h, total = self.first(x), 0
        for gated, skip in zip(self.gated, self.skips, strict=True):
            value, gate = gated(functional.pad(h, (gated.dilation[0], 0))).chunk(2, 1)
            z = torch.tanh(value) * torch.sigmoid(gate)
            total, h = total + skip(z), h + z
        return self.out(torch.relu(total))


class Dense(nn.Module):
    """Each layer reads all that came before it, as DenseNet has it."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4 + 4 * n, 4, 3, padding=1) for n in range(4))
        self.norms, self.head = nn.ModuleList(nn.BatchNorm2d(4 + 4 * n) for n in range(4)), nn.Linear(20, 3)

    def forward(self, x):
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(torch.relu(norm(x)))], 1)
        return self.head(x.mean((2, 3)))


class Inception(nn.Module):
    """Branches of other kernels side by side, one of them 1 x 3 then 3 x 1."""

    def __init__(self):
        super().__init__()
        self.one, self.five, self.pool = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 5, padding=2), nn.Conv2d(4, 2, 1)
        self.wide, self.tall = nn.Conv2d(4, 4, (1, 3), padding=(0, 1)), nn.Conv2d(4, 4, (3, 1), padding="same")
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        parts = [self.one(x), self.five(x), self.tall(self.wide(x)), self.pool(functional.avg_pool2d(x, 3, 1, 1))]
        return self.head(torch.relu(torch.cat(parts, 1)).amax((2, 3)))


class Siamese(nn.Module):
    """One tower for two pictures."""

    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(nn.Conv2d(1, 6, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 9, 8))
        self.head = nn.Linear(8, 1)

    def forward(self, one, two):
        return self.head((self.tower(one) - self.tower(two)).abs())


class Autoencoder(nn.Module):
    """Strided convolutions down, transposed ones up; the mean of the code, with no draw in eval mode."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 6, 4, 2, 1), nn.LeakyReLU(), nn.Conv2d(6, 8, 4, 2, 1), nn.Flatten())
        self.mean, self.spread, self.back = nn.Linear(32, 5), nn.Linear(32, 5), nn.Linear(5, 32)
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(6, 1, 4, 2, 1))

    def forward(self, x):
        h = self.down(x)
        code, spread = self.mean(h), self.spread(h)
        if self.training:
            code = code + torch.randn_like(code) * spread.exp()
        return self.up(self.back(code).unflatten(1, (8, 2, 2))), code, spread


def vgg():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(108, 16), nn.ReLU(inplace=True),
        nn.Dropout(), nn.Linear(16, 4),
    )  # fmt: skip
