"""Whole networks of the papers' shapes with random weights: what finding, proving and narrowing channels costs."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.surgery.compress import parameter_count
from dalr_stream.numerics.selection.nodes import SelectedNodes

sys.path.insert(0, str(Path(__file__).parents[1]))
from architectures import resnet50, vgg19, vit


@dataclass(frozen=True)
class Found:
    """A line of the table."""

    name: str
    parameters: int
    layers: int
    groups: int
    trace: float
    prove: float
    compress: float
    difference: float
    """Largest, of outputs with every channel kept, over the largest output."""


def networks(quick: bool) -> list[Found]:
    """At full size, or narrow."""
    makes: dict[str, tuple[Callable[[], nn.Module], int]] = {
        "VGG19": (lambda: vgg19(1 / 16 if quick else 1.0), 64 if quick else 224),
        "ResNet-50": (lambda: resnet50(1 / 16 if quick else 1.0), 64 if quick else 224),
        "ViT-B/16": (lambda: vit(**({"width": 24, "depth": 2, "heads": 3} if quick else {})), 224),
    }
    return [_of(name, make(), size) for name, (make, size) in makes.items()]


def _of(name: str, net: nn.Module, size: int) -> Found:
    torch.manual_seed(0)
    images = torch.randn(2, 3, size, size)
    layers = [layer for layer, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    begun = time.perf_counter()
    structure = ds.network.Structure.of(net, images)
    traced = time.perf_counter()
    kept: dict[str, SelectedNodes] = {}
    tied: set[str] = set()
    for layer in layers:
        try:
            group = structure.group_of(layer)
        except UnsupportedLayerError:
            continue
        if layer not in tied:
            tied |= set(group.producers)
            every = np.arange(group.channels)
            kept[layer] = SelectedNodes(every, np.eye(group.channels), np.zeros(group.channels), 1.0)
    proved = time.perf_counter()
    with warnings.catch_warnings(), torch.inference_mode():
        same = ds.compress(net, kept, example=structure)
        compressed = time.perf_counter()
        before, after = net(images), same(images)
    gap = float((before - after).abs().max() / before.abs().max())
    seconds = traced - begun, proved - traced, compressed - proved
    return Found(name, parameter_count(net), len(layers), len(kept), *seconds, gap)
