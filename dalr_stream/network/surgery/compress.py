"""A smaller network from a network and what was solved for its layers.

The original is not touched. The result is torch's own layers, narrower ones and pairs of them (`FactorPair`, a
Sequential that has the settings of the layer it replaced), so it traces, exports and compiles like any other; its
`compression_plan` says how it came about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.batches import few_samples
from dalr_stream.network.layers.groups import in_order
from dalr_stream.network.layers.identity import require_numbers
from dalr_stream.network.layers.kinds import matrix_of
from dalr_stream.network.layers.obstacles import require_range, require_replaceable
from dalr_stream.network.layers.spec import layer_of
from dalr_stream.network.structure.graph import EXAMPLES, Structure
from dalr_stream.network.surgery.copies import require_no_copy_used
from dalr_stream.network.surgery.copying import copied
from dalr_stream.network.surgery.equivalence import require_as_before
from dalr_stream.network.surgery.heads import with_narrowed_heads
from dalr_stream.network.surgery.holders import (
    modules_by_name,
    replaced_modules,
    require_held_once,
    require_released,
)
from dalr_stream.network.surgery.keeping import Keeper, require_shape
from dalr_stream.network.surgery.narrowing import fill
from dalr_stream.network.surgery.origin import ORIGIN_ATTRIBUTE, Origin
from dalr_stream.network.surgery.plan import SplitLayer, Step, SurgeryPlan
from dalr_stream.network.surgery.refusal import refuse_own_saves
from dalr_stream.numerics.heads.narrowed import NarrowedHeads
from dalr_stream.numerics.lowrank.factors import LowRankLayer
from dalr_stream.numerics.lowrank.grouped import GroupedPair
from dalr_stream.numerics.rows.streams import group_name, module_name
from dalr_stream.numerics.selection.nodes import SelectedNodes

_OfOneLayer = LowRankLayer | GroupedPair | SelectedNodes
Replacement = _OfOneLayer | NarrowedHeads
PLAN_ATTRIBUTE = "compression_plan"


def compress(model: nn.Module, replacements: Mapping[str, Replacement], *, example: Any = None) -> nn.Module:
    """Return a copy of `model` in which each named layer is replaced.

    Parameters
    ----------
    model
        Left as it is. Weights of the copy keep their dtype and device.
    replacements
        Layer name -> `factors.at_rank(k)`, or `selection.at_size(k)` where the selection was solved from the moments
        of what the layer's readers read. For a convolution of several groups, the factors of each, of one rank, by the
        groups' names. Factor pairs come first, so a selection may shrink a pair.
    example
        A batch as `capture` takes it, or a `Structure` of `model`. Selections and heads need it: which layers carry and
        read the same channels shows when a batch goes through. Factor pairs do not; where it is given, it is proved
        that the network calls what takes a layer's place just as it called the layer, and computes the same elsewhere.

    Returns
    -------
    torch.nn.Module
        The smaller network, of the same class and in the same mode.

    Raises
    ------
    InvalidInputError
        Where a replacement's shape is not the layer's.
    NonFiniteError
        Where a replacement does not fit into the layer's dtype.
    LayerNotFoundError, UnsupportedLayerError
        For layers that cannot be replaced: of another kind, of shared weights, held elsewhere than in the module tree,
        or with hooks or parametrisations of others on them.

    See Also
    --------
    compress_sequentially : layer after layer, each making up for the ones before it.
    sizes : chooses the replacements for a budget.
    save : keeps the result.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
    >>> batch = torch.randn(64, 6)
    >>> layers = ds.watch(model, ["0"], example=batch)
    >>> layer = ds.accumulate(model, [batch], layers)["0"]
    >>> ds.compress(model, {"0": ds.dalr(layer).at_rank(2)})[0]
    FactorPair(
      (0): Linear(in_features=6, out_features=2, bias=False)
      (1): Linear(in_features=2, out_features=12, bias=True)
    )
    >>> ds.compress(model, {"0": ds.spectral(layer).at_size(8)}, example=layers.structure)
    Sequential(
      (0): Linear(in_features=6, out_features=8, bias=True)
      (1): ReLU()
      (2): Linear(in_features=8, out_features=3, bias=True)
    )
    """
    for name, record in replacements.items():
        if not isinstance(record, Replacement):
            raise InvalidInputError(
                f"layer '{name}': a replacement is what at_rank or at_size gives, got {type(record).__name__}"
            )
    require_numbers(model)
    heads = {name: record for name, record in replacements.items() if isinstance(record, NarrowedHeads)}
    with torch.inference_mode(mode=False):  # its tensors could not be trained, nor traced
        others = {name: record for name, record in replacements.items() if not isinstance(record, NarrowedHeads)}
        if not heads:
            return compressed(model, others, example)
        _require_apart(heads, others)
        structure = _structure(model, example, next(iter(heads)))
        small, steps = with_narrowed_heads(model, heads, structure)
        mark(small, model, [*_steps_of(model), *steps])
        return compressed(small, others, structure.example) if others else small


def _require_apart(heads: Mapping[str, NarrowedHeads], others: Mapping[str, _OfOneLayer]) -> None:
    """Raise InvalidInputError for a layer that gets narrower with heads and is to be replaced as well."""
    for name, record in heads.items():
        for layer in record.layout.layers:
            if layer in map(module_name, others):
                raise InvalidInputError(
                    f"layer '{layer}': belongs to the attention of '{name}', whose heads get narrower, and is to be "
                    "replaced as well: leave out one of them, or compress the result once more"
                )


@torch.inference_mode(mode=False)
def compressed(
    model: nn.Module, replacements: Mapping[str, _OfOneLayer], example: Any, *, shared: bool = False
) -> nn.Module:
    """Do what `compress` does with factor pairs and selections; `shared` copies no parameter that stays as it is.

    What shares its parameters with the original is for looking at alone. Each of `replacements` is asked for once, and
    a pair let go before the next one: a mapping that makes them has never all of them in memory.
    """
    require_replaceable(model, (module_name(name) for name in replacements))
    small = copied(model, {id(one): one for one in model.parameters()} if shared else None)
    before = modules_by_name(small)
    steps = _steps_of(small)
    selections: dict[str, SelectedNodes] = {}
    for names in _names_by_module(replacements):
        given = {name: replacements[name] for name in names}
        selections |= {name: record for name, record in given.items() if isinstance(record, SelectedNodes)}
        steps += [split(small, name, factors) for name, factors in by_module(given).items()]
        del given
    if selections:
        keeper = Keeper(small, _structure(model, example, next(iter(selections))))
        steps += [keeper.keep(name, record) for name, record in selections.items()]
    gone = replaced_modules(before, small)
    originals = [(name, model.get_submodule(name)) for name, _ in gone]
    require_released(small, gone)
    require_released(small, originals)  # by a function of the copy that was closed over the original
    require_held_once(model, originals)
    prove = None
    if selections:
        prove = partial(keeper.require_as_before, tuple(replacements))
    elif example is not None:
        batch = example.example if isinstance(example, Structure) else few_samples(example, EXAMPLES)
        prove = partial(require_as_before, model, small, tuple(map(module_name, replacements)), {}, batch)
    if prove is not None:
        prove()
        require_no_copy_used(small, originals, prove)
    mark(small, model, steps)
    return small


def _steps_of(model: nn.Module) -> list[Step]:
    """Return what was done to a network that was compressed before."""
    return list(getattr(model, PLAN_ATTRIBUTE, SurgeryPlan()).steps)


def mark(small: nn.Module, model: nn.Module, steps: Sequence[Step]) -> None:
    """Keep with a network how it came about."""
    setattr(small, PLAN_ATTRIBUTE, SurgeryPlan(tuple(steps)))
    setattr(small, ORIGIN_ATTRIBUTE, Origin.of(model))
    if steps:
        refuse_own_saves(small)


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters, each shared one counted once.

    Parameters
    ----------
    model
        Any network.

    Returns
    -------
    int
        Weights and biases, trainable or not; buffers are no parameters.

    See Also
    --------
    dalr_stream.profile : multiply-adds and seconds.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> ds.network.parameter_count(torch.nn.Linear(4, 8))
    40
    """
    return sum(parameter.numel() for parameter in model.parameters())


def parameter_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _structure(model: nn.Module, example: Any, layer: str) -> Structure:
    if isinstance(example, Structure):
        if example.model is not model:
            raise InvalidInputError(
                f"layer '{layer}': the structure must be of the network that is compressed, and is of another one: "
                "give Structure.of(model, batch), or the batch"
            )
        return example
    if example is None:
        raise InvalidInputError(
            f"layer '{layer}': which layers are narrowed with it shows when a batch goes through the network: give "
            "one, example=batch"
        )
    return Structure.of(model, example)


def _names_by_module(names: Iterable[str]) -> Iterable[list[str]]:
    """Return names of layers, those of the groups of one convolution together."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(module_name(name), []).append(name)
    return found.values()


def by_module(replacements: Mapping[str, Replacement]) -> dict[str, dict[str, LowRankLayer]]:
    """Return the factor pairs, those of a layer's groups together."""
    pairs: dict[str, dict[str, LowRankLayer]] = {}
    for name, record in replacements.items():
        if isinstance(record, GroupedPair):
            pairs[name] = {group_name(name, number): part for number, part in enumerate(record.parts)}
        elif isinstance(record, LowRankLayer):
            pairs.setdefault(module_name(name), {})[name] = record
    return pairs


def split(model: nn.Module, name: str, given: Mapping[str, LowRankLayer]) -> SplitLayer:
    """Put a pair in a layer's place; `given` are the factors of the layer, or of each of its groups."""
    old = layer_of(model, name)
    factors = in_order(name, old, given)
    down, up, bias = (np.concatenate([getattr(one, part) for one in factors]) for part in ("down", "up", "bias"))
    require_shape(name, (up.shape[0], down.shape[1]), tuple(matrix_of(old).shape))
    require_range(name, matrix_of(old).dtype, down, up, bias)
    step = SplitLayer(name, factors[0].rank, bias=old.bias is not None or bool(bias.any()))
    step.apply(model)
    fill(model.get_submodule(f"{name}.0"), torch.from_numpy(down), None)
    fill(model.get_submodule(f"{name}.1"), torch.from_numpy(up), torch.from_numpy(bias))
    return step
