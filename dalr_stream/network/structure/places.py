"""Where channels lie in what the members of their group read, as a batch shows it.

Operations between two layers lay channels out anew: flattened, an image has its channels one after the other, or,
where they came last before, all of them for each pixel. The dependency graph knows the first of these alone. So each
channel is disturbed at the layers that give it, in as many passes as its number has bits, and a feature is the channel
whose number is spelt by the passes in which it changed. What comes of it is only read off: the proof decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dalr_stream.network.capture.batches import call, first_argument
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.layers.kinds import CONVOLUTIONS, carries_channels, channels_given, channels_read
from dalr_stream.network.structure.proof import channels_last, disturbing_hook, quiet, same
from dalr_stream.numerics.statistics.channels import ChannelSpan
from dalr_stream.numerics.types import Indices

Reads = dict[str, list[torch.Tensor]]


def spans_seen(
    model: nn.Module, channels: int, producers: Iterable[str], members: Mapping[str, ChannelSpan], example: Any
) -> dict[str, ChannelSpan] | None:
    """Return where each of `members` holds the channels that `producers` give; None where in no regular order.

    None as well where no member but convolutions is wider than the channels: there is nothing to lay out then. Cost:
    two forward passes of `example`, and log2 of the channels more.
    """
    modules = {name: model.get_submodule(name) for name in members}
    if not any(channels_read(m) > channels for m in modules.values() if not isinstance(m, CONVOLUTIONS)):
        return None
    givers = sorted(producers)
    numbers = torch.arange(channels)
    clean = _reads(model, givers, modules, numbers < 0, example)

    def changed(disturbing: torch.Tensor) -> dict[str, NDArray[np.bool_]]:
        reads = _reads(model, givers, modules, disturbing, example)
        return {name: _changed(reads.get(name, []), clean.get(name, [])) for name in modules}

    at_all = changed(numbers >= 0)
    if not all(features.any() and features.sum() % channels == 0 for features in at_all.values()):  # not all of each
        return None
    bits = [changed(numbers.bitwise_and(1 << bit).bool()) for bit in range((channels - 1).bit_length())]
    spans: dict[str, ChannelSpan] = {}
    for name, features in at_all.items():
        here = np.flatnonzero(features)
        owners = sum((bit[name][here].astype(np.int64) << place for place, bit in enumerate(bits)), 0 * here)
        span = _span(name, here, owners, channels)
        if span is None:
            return None
        spans[name] = span
    return spans


def members_seen(model: nn.Module, producer: str, example: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return which modules carry what `producer` gives, and which layers read it: what they get changes with it.

    Layers get what they would have got, so that nothing behind them changes. Cost: two forward passes of `example`.
    """
    known = {name: module for name, module in model.named_modules() if name != producer and _is_member(module)}
    clean = _reads(model, (), known, torch.zeros(0), example)
    seen: dict[str, bool] = {}

    def reading(name: str) -> Any:
        expected = iter(clean.get(name, ()))

        def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            got, before = channels_last(module, first_argument(arguments, keywords)), next(expected, None)
            if before is None or (got.shape == before.shape and bool(same(got, before).all())):
                return None
            seen[name] = carries_channels(module)
            if seen[name]:
                return None
            own = before.movedim(-1, 1) if isinstance(module, CONVOLUTIONS) else before
            return ((own, *arguments[1:]), keywords) if arguments else ((), {**keywords, next(iter(keywords)): own})

        return hook

    with ExitStack() as stack:
        stack.enter_context(quiet(model))
        for name, module in known.items():
            stack.callback(module.register_forward_pre_hook(reading(name), with_kwargs=True).remove)
        giver = model.get_submodule(producer)
        every = torch.ones(channels_given(giver) or 0, dtype=torch.bool)
        stack.callback(giver.register_forward_hook(disturbing_hook(every, 0)).remove)
        with without_gradients():
            call(model, example)
    carriers, readers = (tuple(name for name, carries in seen.items() if carries is kind) for kind in (True, False))
    return carriers, readers


def _is_member(module: nn.Module) -> bool:
    return channels_given(module) is not None or carries_channels(module)


def _span(name: str, features: Indices, owners: Indices, channels: int) -> ChannelSpan | None:
    each = len(features) // channels
    order = np.argsort(owners, kind="stable")
    if not np.array_equal(owners[order], np.arange(channels).repeat(each)):
        return None
    return ChannelSpan.at(name, features[order].reshape(channels, each))


def _reads(
    model: nn.Module, producers: Iterable[str], members: Mapping[str, nn.Module], disturbing: torch.Tensor, example: Any
) -> Reads:
    """Return what the members read, call after call, with some channels disturbed."""
    reads: Reads = {}

    def reading(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            reads.setdefault(name, []).append(channels_last(module, first_argument(arguments, keywords)).clone())

        return hook

    with ExitStack() as stack:
        stack.enter_context(quiet(model))
        for name, module in members.items():
            stack.callback(module.register_forward_pre_hook(reading(name), with_kwargs=True).remove)
        for seed, producer in enumerate(producers):
            hook = disturbing_hook(disturbing, seed)
            stack.callback(model.get_submodule(producer).register_forward_hook(hook).remove)
        with without_gradients():
            call(model, example)
    return reads


def _changed(reads: list[torch.Tensor], clean: list[torch.Tensor]) -> NDArray[np.bool_]:
    """(d,): the features that are not what they were, anywhere in the batch, at any call; none where calls differ."""
    if not clean or [read.shape for read in reads] != [read.shape for read in clean]:
        return np.zeros(1, np.bool_)
    different = [~same(a, b).reshape(-1, a.shape[-1]) for a, b in zip(reads, clean, strict=True)]
    features: NDArray[np.bool_] = torch.cat(different).any(dim=0).cpu().numpy()
    return features
