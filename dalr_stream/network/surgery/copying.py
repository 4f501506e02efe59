"""A copy of a network for surgery to change, of whatever the network holds beside its tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.surgery.holders import locks_in, own_attributes

_WRAPPERS = {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}
"""By their names: torch may have been built without them."""


def copied(model: nn.Module, in_place_of: Mapping[int, Any] | None = None) -> nn.Module:
    """Copy a network; a lock is the same one in the copy, as it holds nothing.

    `in_place_of` has what the copy holds in place of objects, by their `id`.

    Raises UnsupportedLayerError, naming the attribute, for what cannot be copied.
    """
    for name, module in model.named_modules():
        if not _WRAPPERS.isdisjoint(base.__name__ for base in type(module).__mro__):
            raise UnsupportedLayerError(
                f"compress: the network is wrapped in {type(module).__name__}{f' as {name!r}' if name else ''}, which "
                "holds its parameters in a form of its own: compress the network inside, before it is wrapped"
            )
    locks = {id(lock): lock for lock in locks_in(model)}
    try:
        return copy.deepcopy(model, {**locks, **(in_place_of or {})})
    except TypeError as error:  # of a generator, an open file, a pool of threads
        raise UnsupportedLayerError(
            f"compress: the network cannot be copied{_by_what(model, locks)} ({error}): set it to None before, and "
            "again afterwards"
        ) from error
    except Exception as error:  # of tensors that are results of others, such as a weight under weight_norm, or sharded
        raise UnsupportedLayerError(f"compress: the network cannot be copied: {error}") from error


def _by_what(model: nn.Module, locks: dict[int, object]) -> str:
    """Return which attribute of which module cannot be copied, in words; empty where none can be told."""
    for name, module in model.named_modules():
        for attribute, value in own_attributes(module).items():
            try:
                copy.deepcopy(value, {**locks, id(module): module})
            except TypeError:
                return f" for its attribute '{attribute}'" + (f" of '{name}'" if name else "")
    return ""
