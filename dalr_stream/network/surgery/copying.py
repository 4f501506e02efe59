"""A copy of a network for surgery to change, of whatever the network holds beside its tensors."""

from __future__ import annotations

import copy

from torch import nn

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.surgery.holders import locks_in, own_attributes


def copied(model: nn.Module) -> nn.Module:
    """Copy a network; a lock is the same one in the copy, as it holds nothing.

    Raises UnsupportedLayerError, naming the attribute, for what cannot be copied.
    """
    locks = {id(lock): lock for lock in locks_in(model)}
    try:
        return copy.deepcopy(model, dict(locks))
    except RuntimeError as error:  # of tensors that are results of others, such as a weight under weight_norm
        raise UnsupportedLayerError(f"compress: the network cannot be copied: {error}") from error
    except TypeError as error:  # of a generator, an open file, a pool of threads
        raise UnsupportedLayerError(
            f"compress: the network cannot be copied{_by_what(model, locks)} ({error}): set it to None before, and "
            "again afterwards"
        ) from error


def _by_what(model: nn.Module, locks: dict[int, object]) -> str:
    """Return which attribute of which module cannot be copied, in words; empty where none can be told."""
    for name, module in model.named_modules():
        for attribute, value in own_attributes(module).items():
            try:
                copy.deepcopy(value, {**locks, id(module): module})
            except TypeError:
                return f" for its attribute '{attribute}'" + (f" of '{name}'" if name else "")
    return ""
