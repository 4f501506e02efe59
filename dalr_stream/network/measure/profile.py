"""Measures a compressed network beside its original: multiply-adds and seconds, layer by layer and as a whole.

Each replaced layer is timed alone, on inputs of the shapes that it really gets in its own network at each batch size,
and so is what replaces it: a factor pair, or a narrower layer. The two take turns, and the one that begins alternates.
Networks are left as they are: same device, same threads, no compilation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.batches import call, samples_in
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.measure.macs import Call, Calls, watched_calls
from dalr_stream.numerics.latency import WHOLE, LayerProfile, NetworkProfile, Turns, macs_below

Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """How times are taken."""

    turns: int = 15
    warm_up: int = 3
    """Calls of each side before the clock starts."""
    least_seconds: float = 0.002
    """Of one turn: short work is repeated until it takes so long, or the clock would be what is measured."""
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        if self.turns < 3 or self.warm_up < 1:
            raise InvalidInputError(
                f"profile: quartiles need 3 turns and a warm-up of 1 at least, got {self.turns} and {self.warm_up}"
            )

    def compare(self, before: Work, after: Work) -> Turns:
        """Time two pieces of work in turns."""
        works = before, after
        repeats = [self._repeats(work) for work in works]
        seconds: tuple[list[float], list[float]] = [], []
        for turn in range(self.turns):
            for side in (0, 1) if turn % 2 == 0 else (1, 0):
                seconds[side].append(self._time(works[side], repeats[side]))
        return Turns(tuple(seconds[0]), tuple(seconds[1]))

    def _repeats(self, work: Work) -> int:
        """Warm up, and return how many calls make a turn, by the fastest of these: a slow one was disturbed."""
        once = min(self._time(work, 1) for _ in range(self.warm_up))
        return max(1, round(self.least_seconds / max(once, 1e-9)))

    def _time(self, work: Work, repeats: int) -> float:
        start = self.clock()
        for _ in range(repeats):
            work()
        return (self.clock() - start) / repeats


def profile(
    model: nn.Module,
    small: nn.Module,
    batch: Any,
    *,
    batch_sizes: Sequence[int] = (1, 8, 64),
    stopwatch: Stopwatch | None = None,
) -> NetworkProfile:
    """Return the multiply-adds and the measured seconds of `small` beside `model`, from which it was made.

    Parameters
    ----------
    model, small
        The original and what `compress` made of it, in eval mode and on one device, where they are timed.
    batch
        A batch as `capture` takes it; its samples are repeated, or left out, to make each of `batch_sizes`.
    batch_sizes
        Samples a batch, each 1 or more; every one is timed.
    stopwatch
        How many turns, and by which clock.

    Returns
    -------
    NetworkProfile
        `.layers`, one record for each replaced layer and batch size; `.whole`, one for each batch size.

    Raises
    ------
    InvalidInputError
        For batch sizes below 1 and networks in train mode.

    Notes
    -----
    The seconds are measurements of this machine as it is now: compare them within one profile only.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
    >>> statistics = ds.accumulate(model, [torch.randn(32, 6)], ds.watch(model, ["0"]))
    >>> small = ds.compress(model, {"0": ds.dalr(statistics["0"]).at_rank(2)})
    >>> profile = ds.profile(model, small, torch.randn(1, 6), batch_sizes=[1])
    >>> profile.whole[0].macs_before, profile.whole[0].macs_after
    (108, 72)
    """
    if not batch_sizes or min(batch_sizes) < 1:
        raise InvalidInputError(f"profile: batch sizes must be 1 or more, got {', '.join(map(str, batch_sizes))}")
    if model.training or small.training:
        raise InvalidInputError("profile: the networks must be in eval mode: call .eval() on both")
    watch = stopwatch or Stopwatch()
    layers: list[LayerProfile] = []
    whole: list[LayerProfile] = []
    with without_gradients():
        for size in sorted(set(batch_sizes)):
            sized = of_size(batch, size)
            calls = _probe(model, sized), _probe(small, sized)
            layers += _layers((model, small), calls, size, watch)
            before, after = (_finished(net, partial(call, net, sized)) for net in (model, small))
            macs = [sum(one.macs.values()) for one in calls]
            whole.append(watch.compare(before, after).profile(WHOLE, size, macs[0], macs[1]))
    return NetworkProfile(tuple(layers), tuple(whole), _device_of(model).type, torch.get_num_threads())


def of_size(batch: Any, size: int) -> Any:
    """Return a batch of `size` samples made of a batch's own, over and over; what is no sample stays as it is."""
    count = samples_in(batch)
    if not count:
        raise InvalidInputError("profile: the batch must hold a sample")
    rows = torch.arange(size) % count
    if isinstance(batch, Mapping):
        return {key: _rows_of(value, rows, count) for key, value in batch.items()}
    return _rows_of(batch[0] if isinstance(batch, tuple | list) else batch, rows, count)


def replaced(model: nn.Module, small: nn.Module) -> Iterator[str]:
    """Yield the layers of `model` in place of which `small` has something of another kind or shape."""
    modules = dict(small.named_modules())
    for name, module in model.named_modules():
        weight, other = getattr(module, "weight", None), modules.get(name)
        if isinstance(weight, torch.Tensor) and other is not None:
            own = getattr(other, "weight", None)
            if type(other) is not type(module) or not isinstance(own, torch.Tensor) or own.shape != weight.shape:
                yield name


def _layers(
    pair: tuple[nn.Module, nn.Module], calls: tuple[Calls, Calls], size: int, watch: Stopwatch
) -> Iterator[LayerProfile]:
    names = [name for name in replaced(*pair) if name in calls[0].layers and _entry(calls[1], name)]
    macs = calls[0].macs, calls[1].macs
    for name in names:
        works = [
            _finished(net.get_submodule(name), _on(net.get_submodule(name), _entry(one, name)))
            for net, one in zip(pair, calls, strict=True)
        ]
        counts = [int(macs_below(one, name)) for one in macs]
        yield watch.compare(*works).profile(name, size, counts[0], counts[1])


def _entry(calls: Calls, name: str) -> list[Call]:
    """Return the calls of the layer, or of the first part of what replaces it."""
    return next(
        (entries for layer, entries in calls.layers.items() if layer == name or layer.startswith(f"{name}.")), []
    )


def _on(module: nn.Module, calls: Sequence[Call]) -> Work:
    inputs = [one.inputs() for one in calls]
    return lambda: [module(one) for one in inputs]


def _finished(module: nn.Module, work: Work) -> Work:
    """Return work that ends when the device has done it: CUDA only queues."""
    device = _device_of(module)
    if device.type != "cuda":
        return work

    def waited() -> None:
        work()
        torch.cuda.synchronize(device)

    return waited


def _probe(model: nn.Module, batch: Any) -> Calls:
    with watched_calls(model) as calls:
        call(model, batch)
    return calls


def _device_of(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def _rows_of(value: Any, rows: torch.Tensor, count: int) -> Any:
    samples = isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == count
    return value[rows.to(value.device)] if samples else value
