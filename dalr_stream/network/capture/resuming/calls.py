"""The calls of a forward pass: which modules are called within which, in what order, and who uses what they give.

A network that is to run on from some place needs what was given by the modules that are done there, as long as
something that is still to run uses it. That is seen in one forward pass over a few samples.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dalr_stream.network.capture.batches import call, inputs_copied
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.capture.resuming.given import Followed, is_plain, mapped, obstacle_of

Call = tuple[tuple[str, int], ...]
"""The way to a call: modules by name, each with the number of its calls so far within the call of the one before."""
Through = Callable[[Call, Callable[[], Any]], Any]
"""What is done in the place of a module's forward, given the call and a function that does it."""


@contextmanager
def calls_through(model: nn.Module, through: Through) -> Iterator[None]:
    """Send every module's forward through a function; the modules are as they were when the block ends.

    A scripted module is called as it is, and nothing is known of the calls within.
    """
    frames = _Frames(through)
    before = {}
    try:
        for name, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                before[module] = module.__dict__.get("forward")
                module.forward = frames.around(name, module.forward)
        yield
    finally:
        for module, forward in before.items():
            del module.forward
            if forward is not None:
                module.forward = forward


class _Frames:
    """Counts calls within calls."""

    def __init__(self, through: Through) -> None:
        self._through = through
        self._way: Call = ()
        self._counts: Counter[str] = Counter()

    def around(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def called(*arguments: Any, **keywords: Any) -> Any:
            way = (*self._way, (name, self._counts[name]))
            self._counts[name] += 1
            return self._through(way, lambda: self._within(way, functools.partial(forward, *arguments, **keywords)))

        return called

    def _within(self, way: Call, forward: Callable[[], Any]) -> Any:
        outer = self._way, self._counts
        self._way, self._counts = way, Counter()
        try:
            return forward()
        finally:
            self._way, self._counts = outer


@dataclass(slots=True)
class _Span:
    """When a call began and ended, in steps of the pass, and whether what it gave can be kept."""

    begun: int
    ended: int | None = None
    plain: bool = False
    obstacle: str = ""
    """What it gave, where that cannot be kept."""
    uses: set[tuple[Call, tuple[Call, ...]]] = field(default_factory=set)
    """The calls within which what it gave is used, each with those that had passed it on."""


class ForwardCalls:
    """The calls of one forward pass."""

    def __init__(self) -> None:
        self._spans: dict[Call, _Span] = {}
        self._within: dict[Call, list[Call]] = {}
        self._open: list[Call] = [()]
        self._now = 0

    @classmethod
    def of(cls, model: nn.Module, batch: Any) -> ForwardCalls:
        """Watch a forward pass; cost: one."""
        calls = cls()
        with without_gradients(), calls_through(model, calls._followed):
            call(model, inputs_copied(batch))
        return calls

    @property
    def in_order(self) -> Sequence[Call]:
        """All calls, as they began."""
        return list(self._spans)

    def not_kept(self) -> dict[Call, str]:
        """Return the calls that gave what cannot be kept, each with what that is."""
        return {way: span.obstacle for way, span in self._spans.items() if span.obstacle}

    def done_before(self, names: Collection[str]) -> Mapping[Call, bool]:
        """Return the calls that are done when the first of these modules is called, and whether anything uses them.

        The outermost ones: what a module gave stands for all that was called within it. Used counts what is run after
        that, or run again on the way there, within none of them. Raises KeyError where none of them is called.
        """
        begun = min((span.begun for way, span in self._spans.items() if is_in(way[-1][0], names)), default=None)
        if begun is None:
            raise KeyError(", ".join(names))
        done = set(self._done((), begun))
        return {way: self._is_used(way, done) for way in sorted(done, key=lambda way: self._spans[way].begun)}

    def _done(self, within: Call, before: int) -> Iterator[Call]:
        for way in self._within.get(within, ()):
            span = self._spans[way]
            if span.begun >= before:
                return
            if span.ended is not None and span.ended < before and span.plain:
                yield way
            else:
                yield from self._done(way, before)

    def _is_used(self, way: Call, done: Collection[Call]) -> bool:
        return any(
            not any(user[:depth] in done for depth in range(1, len(user) + 1)) and not any(one in done for one in later)
            for user, later in self._spans[way].uses
        )

    def _followed(self, way: Call, forward: Callable[[], Any]) -> Any:
        self._spans[way] = span = _Span(self._step())
        self._within.setdefault(self._open[-1], []).append(way)
        self._open.append(way)
        given = forward()
        self._open.pop()
        span.ended, span.plain = self._step(), is_plain(given)
        span.obstacle = "" if span.plain else obstacle_of(given)
        return mapped(given, lambda tensor: self._following(tensor, way)) if span.plain else given

    def _following(self, tensor: torch.Tensor, way: Call) -> Followed:
        givers = (*(tensor.givers if isinstance(tensor, Followed) else ()), way)

        def told() -> None:
            for number, giver in enumerate(givers):
                self._spans[giver].uses.add((self._open[-1], givers[number + 1 :]))

        followed = Followed.of(tensor, told)
        followed.givers = givers
        return followed

    def _step(self) -> int:
        self._now += 1
        return self._now


def is_in(module: str, names: Collection[str]) -> bool:
    """Tell whether a module is one of those named, or a part of one."""
    return any(module == name or module.startswith(f"{name}.") for name in names)
