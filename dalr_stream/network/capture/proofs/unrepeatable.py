"""Which module of a network gives other outputs for the same inputs: looked for when rows turn out not to repeat."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from dalr_stream.network.capture.batches import call, inputs_copied
from dalr_stream.network.layers.identity import digest_of_member

Calls = list[tuple[str, str, str]]
"""Of each call that ended, in order: the module's name, and the digests of what it was given and what it gave."""


def what_differs(model: nn.Module, batch: Any) -> str:
    """Return, in words, what gives other outputs for the same inputs, from two more passes over the batch."""
    for one, other in zip(_calls(model, batch), _calls(model, batch), strict=False):
        name = one[0]
        if name and one[:2] == other[:2] and one[2] != other[2]:
            return f"'{name}' ({type(model.get_submodule(name)).__name__}) gives other outputs for the same inputs"
    return "the network's own code does"


def _calls(model: nn.Module, batch: Any) -> Calls:
    calls: Calls = []
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # it takes no hooks
                continue

            def ended(_: nn.Module, given: Any, keywords: Any, outputs: Any, name: str = name) -> None:
                calls.append((name, _digest([given, keywords]), _digest(outputs)))

            stack.callback(module.register_forward_hook(ended, with_kwargs=True).remove)
        call(model, inputs_copied(batch))
    return calls


def _digest(value: Any) -> str:
    """Return the digest of the tensors in a module's arguments or outputs."""
    return digest_of_member(dict(value) if hasattr(value, "items") else value)
