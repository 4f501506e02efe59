"""The proof that a group of channels is all that happens to them, on a batch.

The producers' channels are disturbed, some of them at a time, and it is watched where that arrives. What a reader gets
in the place of channel j must not change where j is left alone, whatever others are disturbed, and must be the same
where j is disturbed, whether others are or not. The channels disturbed at a time are those whose number has a certain
bit: any two numbers differ in one, so a channel that arrives in the place of another is found for any permutation, not
only for most. The readers are given what they would have got, and the network's output must then be as it was: nothing
else reads the channels, whatever operations there are.

A disturbance raises the first sample's activations above 0 and lowers the second's below it, so that no ReLU hides it.
What a clamp or a threshold hides on the whole batch stays hidden. Operations that count channels, or number them, show
when the network is narrowed: see `narrowed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NoReturn

import torch
from torch import nn

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.capture.batches import call, first_argument, tensors_in
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.layers.kinds import CARRIERS, CONVOLUTIONS
from dalr_stream.numerics.statistics.channels import ChannelGroup, ChannelSpan

ROUNDING = 1e-5
"""Of what is compared, relative to its largest entry: far above that of float32, far below a disturbance."""


def require_proof(model: nn.Module, name: str, group: ChannelGroup, example: Any) -> None:
    """Raise UnsupportedLayerError where the channels of `name` are mixed on the way to a reader, or read otherwise.

    Cost: two forward passes of `example`, and log2 of the channels more that end at the last reader.
    """
    _Proof(model, name, group, example).require()


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Run the network deterministically with gradients enabled; restore its state afterwards.

    Meanwhile a transformers model returns no cache of keys and values, which is no tensor that could be traced.
    """
    modes = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters() if not parameter.is_inference()}
    configs = [getattr(module, "config", None) for module in modes]
    caching: list[Any] = [config for config in configs if getattr(config, "use_cache", False) is True]
    try:
        model.eval()
        for config in caching:
            config.use_cache = False
        for parameter in wanted:
            parameter.requires_grad_(parameter.is_floating_point())
        yield
    finally:
        for config in caching:
            config.use_cache = True
        for module, training in modes.items():
            module.training = training
        for parameter, required in wanted.items():
            parameter.requires_grad_(required)


def same(actual: torch.Tensor, expected: torch.Tensor, rounding: float = ROUNDING) -> torch.Tensor:
    """Compare entry by entry: equal but for rounding, which a kernel may do otherwise in other memory."""
    scale = float(expected.abs().nan_to_num().max()) if expected.numel() else 0.0
    return torch.isclose(actual, expected, rtol=0.0, atol=rounding * (1 + scale), equal_nan=True)


def channels_last(module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """View what a layer, or what carries its channels, reads or gives: channels or features as the last dimension."""
    return tensor.movedim(1, -1) if isinstance(module, (*CONVOLUTIONS, *CARRIERS)) else tensor


Reads = dict[str, list[torch.Tensor]]
"""What the readers got, call after call."""


class _AllRead(Exception):  # noqa: N818  # no error: the rest of a forward pass is not needed
    """Every reader has been called."""


class _Proof:
    """Disturbs the producers' channels, and watches where that arrives."""

    def __init__(self, model: nn.Module, name: str, group: ChannelGroup, example: Any) -> None:
        self._model = model
        self._name = name
        self._group = group
        self._example = example
        self._clean: Reads = {}
        self._disturbed: Reads = {}
        """What the readers got with every channel disturbed."""

    def require(self) -> None:
        """Raise UnsupportedLayerError where the group is not all that happens to the channels."""
        numbers = torch.arange(self._group.channels)
        expected = self._run(numbers < 0, self._clean)
        disturbed = self._run(numbers >= 0, self._disturbed)
        if not all(bool(same(a, b).all()) for a, b in zip(disturbed, expected, strict=True)):
            readers = ", ".join(f"'{reader.span.layer}'" for reader in self._group.readers)
            self._refuse(f"the network's output depends on them by other ways than through {readers}")
        for reader in self._group.readers:
            self._require_read_each_time(reader.span)
        for bit in range((self._group.channels - 1).bit_length()):
            self._run(numbers.bitwise_and(1 << bit).bool(), {}, to_readers=True)

    def _require_read_each_time(self, span: ChannelSpan) -> None:
        """Raise UnsupportedLayerError where a reader is called several times, and not always on the channels."""
        module, here = self._model.get_submodule(span.layer), span.places(self._group.channels).ravel()
        clean, disturbed = (
            [channels_last(module, read)[..., here] for read in known[span.layer]]
            for known in (self._clean, self._disturbed)
        )
        arrives = [not bool(same(a, b).all()) for a, b in zip(disturbed, clean, strict=True)]
        if len(arrives) > 1 and not all(arrives):
            number = arrives.index(False) + 1
            self._refuse(f"'{span.layer}' is called {len(arrives)} times, and call {number} does not read them")

    def _run(self, disturbing: torch.Tensor, reads: Reads, *, to_readers: bool = False) -> list[torch.Tensor]:
        """Disturb the channels marked in `disturbing`; fill `reads`; return the network's outputs, none if stopped."""
        model = self._model
        with ExitStack() as stack:
            stack.enter_context(quiet(model))
            for reader in self._group.readers:
                hook = self._reading(reader.span, disturbing, reads, to_readers=to_readers)
                module = model.get_submodule(reader.span.layer)
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            for seed, producer in enumerate(self._group.producers):
                hook = disturbing_hook(disturbing, seed)
                stack.callback(model.get_submodule(producer).register_forward_hook(hook).remove)
            with without_gradients(), suppress(_AllRead):
                return [tensor.clone() for tensor in tensors_in(call(model, self._example))]
        return []

    def _reading(self, span: ChannelSpan, disturbing: torch.Tensor, reads: Reads, *, to_readers: bool) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            calls = reads.setdefault(span.layer, [])
            calls.append(first_argument(arguments, keywords).clone())
            self._require_unmixed(span, module, calls, disturbing)
            if to_readers and all(len(reads.get(name, ())) == len(clean) for name, clean in self._clean.items()):
                raise _AllRead
            clean = self._clean[span.layer][len(calls) - 1].clone()
            if arguments:
                return (clean, *arguments[1:]), keywords
            return arguments, {**keywords, next(iter(keywords)): clean}

        return hook

    def _require_unmixed(
        self, span: ChannelSpan, module: nn.Module, calls: Sequence[torch.Tensor], disturbing: torch.Tensor
    ) -> None:
        """Raise UnsupportedLayerError where a place does not hold what its own channel alone decides.

        The last of `calls` is looked at. A reader is called as often as in the first pass, whatever is disturbed.
        """
        before = [known.get(span.layer, calls) for known in (self._clean, self._disturbed)]
        if any(len(known) < len(calls) for known in before):
            self._refuse(f"how often '{span.layer}' is called depends on them")
        features, clean, all_disturbed = (channels_last(module, known[len(calls) - 1]) for known in (calls, *before))
        disturbed = torch.zeros(features.shape[-1], dtype=torch.bool)
        disturbed[torch.from_numpy(span.places(self._group.channels))] = disturbing[:, None]
        disturbed = disturbed.to(features.device)
        if not bool(torch.where(disturbed, same(features, all_disturbed), same(features, clean)).all()):
            self._refuse(f"on the way to '{span.layer}' they are mixed with others")

    def _refuse(self, reason: str) -> NoReturn:
        raise UnsupportedLayerError(f"layer '{self._name}': its channels cannot be pruned: {reason}")


def disturbing_hook(channels: torch.Tensor, seed: int) -> Any:
    """Return a hook that moves the marked `channels` beyond 0: up in even samples, down in odd ones."""

    def hook(module: nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        disturbed = channels_last(module, output).clone()
        random = torch.rand(disturbed.shape, generator=generator).to(output)
        sides = torch.tensor([1, -1]).repeat(len(output))[: len(output)].to(output)
        sides = sides.reshape(-1, *(1 for _ in disturbed.shape[1:]))
        disturbed += channels.to(output) * sides * (1 + random) * (1 + output.abs().max())
        return disturbed.movedim(-1, 1) if isinstance(module, CONVOLUTIONS) else disturbed

    return hook
