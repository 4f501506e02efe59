"""Networks in a wrapper that spreads them over processes, and loaders whose samples are dealt to processes.

Every rank has the whole network and sees all batches: then it runs its own ones alone, and the bits do not depend on
how many ranks there are. What splits a network's tensors over processes is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from dalr_stream.errors import InvalidInputError, UnsupportedLayerError

_SPLIT = ("FullyShardedDataParallel", "FSDPModule")
"""FSDP wraps a module, FSDP2 adds a base to its class."""
_PART = "DTensor"
"""What tensor parallelism makes of a parameter."""


def plain_network(model: nn.Module) -> nn.Module:
    """Return the network inside `DistributedDataParallel`: its layers' names have no `module.` then.

    The wrapper would exchange buffers at each forward pass, and wait for ranks that run none.

    Raises UnsupportedLayerError for a network whose tensors are split over processes.
    """
    if isinstance(model, DistributedDataParallel):
        inner: nn.Module = model.module
        return plain_network(inner)
    for name, module in model.named_modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        split = next((kind for kind in _SPLIT if kind in kinds), None)
        if split is not None:
            where = f"layer '{name}'" if name else "the network"
            raise UnsupportedLayerError(
                f"{where}: is split over processes by {split}, so its tensors are whole nowhere: give every rank the "
                "network unwrapped (ranks share the batches, not the network)"
            )
    return model


def require_for_ranks(model: nn.Module, batches: Iterable[Any], ranks: int) -> None:
    """Raise where ranks that each run their own batches would wait for one another, or would not get the same ones.

    UnsupportedLayerError for a network some of whose tensors are split over processes, also where no watched layer's
    are; InvalidInputError for a loader whose sampler gives each process other samples.
    """
    parallel = next((name for name, weight in model.named_parameters() if type(weight).__name__ == _PART), None)
    if parallel is not None:
        raise UnsupportedLayerError(
            f"layer '{parallel.rpartition('.')[0]}': its tensors are split over processes ({_PART}), which compute "
            "each batch together: give every rank the network before that is done (ranks share the batches, not the "
            "network)"
        )
    sampler = getattr(batches, "sampler", None)
    nested = getattr(getattr(batches, "batch_sampler", None), "sampler", None)
    if any(isinstance(one, DistributedSampler) for one in (sampler, nested)):
        raise InvalidInputError(
            f"batches: the loader has a DistributedSampler, which gives each of {ranks} ranks other samples: give a "
            "DataLoader without it; every rank goes over all batches and runs the network on its own"
        )
