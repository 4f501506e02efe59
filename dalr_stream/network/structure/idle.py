"""Layers that the example does not reach, and other inputs may: heads for training, early exits.

The dependency graph knows what ran. A layer as wide as some channels that did not run would be left as it is when they
are narrowed, and fail on the first input that reaches it. One that runs in train mode is found by running that. One
that some inputs reach is looked for in the code: the nearest module around it that did run names it there, or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping
from contextlib import ExitStack
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn

from dalr_stream.network.capture.batches import call
from dalr_stream.network.capture.reading import same_draws, without_gradients
from dalr_stream.network.layers.kinds import carries_channels, channels_given, channels_read
from dalr_stream.network.structure.proof import quiet


def idle_readers(
    model: nn.Module, example: Any, called: Mapping[str, int], widths: Container[int]
) -> Iterator[tuple[str, str]]:
    """Yield the layers of these widths that the example does not reach and others may, each with when they do."""
    idle = [
        name
        for name, module in model.named_modules()
        if not called.get(name, 0)
        and (channels_given(module) is not None or carries_channels(module))
        and channels_read(module) in widths
    ]
    in_training = _calls_in_training(model, example) if idle else Counter[str]()
    for name in idle:
        if in_training[name]:
            yield name, "runs in training only"
        elif (user := _user_of(model, name, called)) is not None:
            yield name, f"does not run on the example, and is named in the code of '{user}', for other inputs it seems"


def count_calls(model: nn.Module, example: Any) -> Counter[str]:
    """Count the calls of each module in a forward pass; of a scripted one, which takes no hooks, none."""
    calls: Counter[str] = Counter()
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            hook = module.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
            stack.callback(hook.remove)
        call(model, example)
    return calls


def _user_of(model: nn.Module, name: str, called: Mapping[str, int]) -> str | None:
    """Return the class of the nearest module around a layer that ran, where its code names what leads there."""
    inner = name
    while inner:
        outer, _, child = inner.rpartition(".")
        if called.get(outer, 0):
            kind = type(model.get_submodule(outer))
            return kind.__name__ if child in _names_in(kind) else None
        inner = outer
    return None


def _names_in(kind: type) -> set[str]:
    """Return the names and words in a module class's methods, but for its constructor and what torch's base has."""
    functions = [
        value
        for base in kind.__mro__
        if base not in nn.Module.__mro__
        for name, value in vars(base).items()
        if isinstance(value, FunctionType) and name != "__init__"
    ]
    names: set[str] = set()
    waiting = [function.__code__ for function in functions]
    while waiting:
        code = waiting.pop()
        names |= {*code.co_names, *(word for word in code.co_consts if isinstance(word, str))}
        waiting += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
    return names


def _calls_in_training(model: nn.Module, example: Any) -> Counter[str]:
    """Count the calls of each module in train mode; none where the network does not run so on the example."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with quiet(model), same_draws(model), without_gradients():
        model.train()
        try:
            return count_calls(model, example)
        except Exception:  # noqa: BLE001  # a batch norm may want more samples: nothing is known then
            return Counter()
        finally:
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])
