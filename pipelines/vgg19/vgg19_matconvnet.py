"""Reads VGG19 from a MATLAB file of MatConvNet: the DALR authors' network for birds, or MatConvNet's own of ImageNet.

`birds_vgg19_net.mat` holds a DagNN as `saveobj` writes it: `net.layers` name their parameters, `net.params` hold them.
`imagenet-vgg-verydeep-19.mat` holds a SimpleNN: `layers` is a cell array, each with its own `weights`. In both every
layer is a convolution, filters as height x width x inputs x outputs, and fc6 is one of 7 x 7 x 512: what it reads is
ordered by row, column, channel, in torch by channel, row, column. Pictures are RGB of 0..255 less the mean by channel
(`normalise = "mean"`), not torchvision's. Nothing in the file is executed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import loadmat
from torch import nn

from dalr_stream.errors import InvalidInputError
from vgg19_network import VGG

Filters = tuple[NDArray[np.float32], NDArray[np.float32]]
"""(height, width, inputs, outputs), and (outputs,)."""


def read(path: Path, convolutions: tuple[int, ...]) -> dict[str, Filters]:
    """Return filters and biases by the layer's name in MatConvNet, in the order conv1_1, ..., fc6, fc7, the classifier.

    The classifier is the one layer that is left, whatever it is called. `convolutions` are their numbers by block.
    """
    try:
        content = loadmat(path, struct_as_record=False)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise InvalidInputError(
            f"'{path}' cannot be read as a MATLAB file ({error}): one of version 7.3 must be saved again by MATLAB's "
            "save with '-v7'"
        ) from None
    found = dict(_of_dagnn(content["net"].item()) if "net" in content else _of_simplenn(content.get("layers", ())))
    names = [f"conv{block}_{n}" for block, count in enumerate(convolutions, 1) for n in range(1, count + 1)]
    names += ["fc6", "fc7"]
    last = [name for name in found if name not in names]
    missing = [name for name in names if name not in found]
    if missing or len(last) != 1:
        wrong = f"there is no '{missing[0]}'" if missing else f"{len(last)} layers could be the classifier"
        raise InvalidInputError(f"'{path}' does not hold VGG19 as MatConvNet saves it: {wrong}")
    return {name: found[name] for name in (*names, *last)}


def load(model: VGG, layers: dict[str, Filters], path: Path) -> None:
    """Fill the network; raises InvalidInputError that names the layer of another shape."""
    modules = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for (name, (filters, biases)), module in zip(layers.items(), modules, strict=True):
        weight = filters.transpose(3, 2, 0, 1)
        flat = weight.reshape(len(weight), -1) if isinstance(module, nn.Linear) else weight
        if flat.shape != module.weight.shape or biases.shape != module.bias.shape:
            raise InvalidInputError(
                f"'{path}': '{name}' has filters of {' x '.join(map(str, filters.shape))} and {len(biases)} biases, "
                f"where the network has a weight of {' x '.join(map(str, module.weight.shape))}"
            )
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(np.ascontiguousarray(flat)))
            module.bias.copy_(torch.from_numpy(biases))


def _of_dagnn(net: Any) -> Iterator[tuple[str, Filters]]:
    values = {_text(param.name): param.value for param in np.ravel(net.params)}
    for layer in np.ravel(net.layers):
        names = [_text(name) for name in np.ravel(layer.params)]
        if len(names) == 2:
            yield _text(layer.name), _filters(*(values[name] for name in names))


def _of_simplenn(layers: Any) -> Iterator[tuple[str, Filters]]:
    for cell in np.ravel(layers):
        layer = np.ravel(cell)[0]
        weights = np.ravel(getattr(layer, "weights", ()))
        if len(weights) == 2:
            yield _text(layer.name), _filters(*weights)


def _filters(filters: NDArray[np.float32], biases: NDArray[np.float32]) -> Filters:
    """Give filters their four dimensions back: MATLAB drops the last ones where they are 1."""
    whole = filters.reshape(filters.shape + (1,) * (4 - filters.ndim))
    return whole.astype(np.float32), biases.astype(np.float32).ravel()


def _text(value: Any) -> str:
    return str(np.ravel(value)[0]) if np.size(value) else ""
