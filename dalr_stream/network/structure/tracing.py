"""Torch-Pruning's dependency graph of a network, from one pass of an example; the network is left as it was."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from dalr_stream.network.capture.batches import call, tensors_in
from dalr_stream.network.layers.kinds import channels_given, channels_read, is_transposed
from dalr_stream.network.structure.proof import quiet


def dependencies_of(model: nn.Module, example: Any) -> tuple[tp.DependencyGraph | None, str]:
    """Return the graph; or None, and why there is none."""
    with (
        quiet(model), _hooks_kept(model), torch.inference_mode(mode=False), torch.enable_grad(),
        warnings.catch_warnings(),
    ):  # fmt: skip
        warnings.filterwarnings("ignore", message="Unwrapped parameters detected")  # they are refused by name
        graph = tp.DependencyGraph()
        try:
            graph.build_dependency(
                model, example, forward_fn=lambda network, batch: tensors_in(call(network, batch)), verbose=False,
                customized_pruners={type(m): _TransposedLinear() for m in model.modules() if is_transposed(m)},
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001  # the network itself ran: whatever it is comes of tracing
            return None, f"tracing the network failed ({type(error).__name__}: {error}); low-rank methods need none"
    return graph, ""


@contextmanager
def _hooks_kept(model: nn.Module) -> Iterator[None]:
    """Take away the hooks that tracing leaves on a network where it fails."""
    before = [(module._forward_hooks, set(module._forward_hooks)) for module in model.modules()]  # noqa: SLF001
    try:
        yield
    finally:
        for hooks, own in before:
            for key in hooks.keys() - own:
                del hooks[key]


class _TransposedLinear(tp.BasePruningFunc):  # type: ignore[misc]  # the library is not typed
    """What the graph must know of a Conv1D of transformers."""

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        raise NotImplementedError  # `narrow` does it

    def prune_in_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        raise NotImplementedError

    def get_out_channels(self, layer: nn.Module) -> int | None:
        return channels_given(layer)

    def get_in_channels(self, layer: nn.Module) -> int | None:
        return channels_read(layer)
