"""Whether layers can be replaced, tried before anything is measured: with pairs of rank 1, on a batch.

What stands in the way of surgery, a layer held elsewhere or a parent that wants the old one's class, does not depend on
the numbers. So all layers are replaced at once by the smallest pairs there are, and the result is proved as any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import nn

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.layers.groups import parts_of
from dalr_stream.network.layers.kinds import matrix_of
from dalr_stream.network.layers.spec import layer_of
from dalr_stream.network.surgery.compress import compress
from dalr_stream.numerics.lowrank.factors import LowRankLayer
from dalr_stream.numerics.rows.streams import module_name


def require_replaceable_by_pairs(model: nn.Module, layers: Iterable[str], example: Any) -> None:
    """Raise UnsupportedLayerError for the first of `layers` in whose place the network would not take a factor pair.

    `example` is a batch or a `Structure`, as `compress` takes it. Cost: a copy of the network and two forward passes of
    two samples; of each layer by itself where all of them together fail.
    """
    names = list(dict.fromkeys(map(module_name, layers)))
    try:
        _replace(model, names, example)
    except UnsupportedLayerError:
        for name in names:
            _replace(model, [name], example)
        raise


def _replace(model: nn.Module, names: Iterable[str], example: Any) -> None:
    parts = [part for name in names for part in parts_of(name, layer_of(model, name))]
    pairs = {part: _smallest_pair(layer_of(model, part)) for part in parts}
    compress(model, pairs, example=example)


def _smallest_pair(layer: nn.Module) -> LowRankLayer:
    outputs, inputs = matrix_of(layer).shape
    return LowRankLayer(np.zeros((1, inputs)), np.zeros((outputs, 1)), np.zeros(outputs))
