"""A smaller network from a network and what was solved for its layers.

The original is not touched. The result is plain torch, `nn.Sequential(Linear, Linear)` or narrower `Linear` layers,
so it traces, exports and compiles like any other; its `compression_plan` says how it came about.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.graph import consumers_of
from dalr_stream.network.kinds import matrix_of
from dalr_stream.network.layers import layer_of, linear, to_numpy
from dalr_stream.network.origin import ORIGIN_ATTRIBUTE, Origin
from dalr_stream.network.plan import KeepNodes, SplitLayer, Step, SurgeryPlan, first_linear, last_linear
from dalr_stream.numerics.solution import LowRankLayer, SelectedNodes

Replacement = LowRankLayer | SelectedNodes
PLAN_ATTRIBUTE = "compression_plan"


def compress(model: nn.Module, replacements: Mapping[str, Replacement]) -> nn.Module:
    """Return a copy of `model` in which each named layer is replaced.

    Parameters
    ----------
    model
        Left as it is. Weights of the copy keep their dtype and device.
    replacements
        Layer name -> `factors.at_rank(k)`, or `selection.at_size(k)` where the selection was solved from the moments
        of what the layer's consumers read. Factor pairs come first, so a selection may shrink a pair.

    Raises InvalidInputError where a replacement's shape is not the layer's, LayerNotFoundError and
    UnsupportedLayerError for layers that cannot be replaced; the copy is thrown away then.
    """
    for name, record in replacements.items():
        if not isinstance(record, Replacement):
            raise InvalidInputError(
                f"layer '{name}': a replacement is what at_rank or at_size gives, got {type(record).__name__}"
            )
    small = copy.deepcopy(model)
    steps: list[Step] = list(getattr(small, PLAN_ATTRIBUTE, SurgeryPlan()).steps)  # of a network compressed before
    for name, record in replacements.items():
        if isinstance(record, LowRankLayer):
            steps.append(_split(small, name, record))
    for name, record in replacements.items():
        if isinstance(record, SelectedNodes):
            steps.append(_keep(small, name, record, consumers_of(model, name)))
    setattr(small, PLAN_ATTRIBUTE, SurgeryPlan(tuple(steps)))
    setattr(small, ORIGIN_ATTRIBUTE, Origin.of(model))
    return small


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters, each shared one counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def parameter_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _split(model: nn.Module, name: str, record: LowRankLayer) -> SplitLayer:
    old = layer_of(model, name)
    _require_shape(name, (record.up.shape[0], record.down.shape[1]), tuple(matrix_of(old).shape))
    step = SplitLayer(name, record.rank, bias=old.bias is not None or bool(record.bias.any()))
    step.apply(model)
    _fill(layer_of(model, f"{name}.0"), record.down, None)
    _fill(layer_of(model, f"{name}.1"), record.up, record.bias)
    return step


def _keep(model: nn.Module, name: str, record: SelectedNodes, consumers: tuple[str, ...]) -> KeepNodes:
    """Narrow one layer to the kept nodes, and put the restore matrix A_J into its consumers: W A_J."""
    producer = linear(model, last_linear(model, name))
    readers = [linear(model, first_linear(model, consumer)) for consumer in consumers]
    for consumer, reader in zip(consumers, readers, strict=True):
        _require_shape(name, (record.restore.shape[0],), (producer.out_features,))
        _require_shape(consumer, (record.restore.shape[0],), (reader.in_features,))
    moved = bool(record.offset.any())
    step = KeepNodes(name, record.size, consumers, tuple(reader.bias is not None or moved for reader in readers))
    step.apply(model)
    bias = None if producer.bias is None else to_numpy(producer.bias)[record.kept]
    _fill(linear(model, last_linear(model, name)), to_numpy(producer.weight)[record.kept], bias)
    for consumer, reader in zip(consumers, readers, strict=True):
        weight = to_numpy(reader.weight).astype(np.float64)
        shift = weight @ record.offset
        if reader.bias is not None:
            shift = shift + to_numpy(reader.bias)
        _fill(linear(model, first_linear(model, consumer)), weight @ record.restore, shift)
    return step


def _fill(layer: nn.Module, weight: NDArray[np.floating], bias: NDArray[np.floating] | None) -> None:
    own: Any = layer.bias
    with torch.no_grad():
        matrix_of(layer).copy_(torch.from_numpy(np.array(weight)))
        if own is not None and bias is not None:
            own.copy_(torch.from_numpy(np.array(bias)))


def _require_shape(layer: str, got: tuple[int, ...], needed: tuple[int, ...]) -> None:
    if got != needed:
        shape = " x ".join(map(str, got))
        raise InvalidInputError(
            f"layer '{layer}': the solution is for {shape}, the layer has {' x '.join(map(str, needed))}: "
            "it was solved for another layer or network"
        )
