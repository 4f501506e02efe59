"""Where one block meets its neighbours in the graph of a forward pass, and the gradients that cross there.

    entering    what was kept of the calls before it: gradients by that are what the block before begins with
    leaving     what later calls use, with the gradients by it that later blocks left

One graph of the whole network would add the gradients by a tensor one after another, those of later calls first. So the
ones that later blocks left come first here, and each of the block's own is added to them: the same sums, to the bit,
also of what several blocks read, an encoder's states say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.capture.resuming.calls import Call
from dalr_stream.network.capture.resuming.given import Form, Spent, UsedError, form_of, is_plain, mapped, tensors_in
from dalr_stream.network.capture.resuming.onward import Done, ForwardRun

Followed = Mapping[Call, Sequence[bool]]
"""Through which of the tensors that a call gave gradients go back."""
Gradients = Mapping[Call, Sequence[Sequence[torch.Tensor | None]]]
"""By what a call gave: of each draw, for each of its tensors; None where nothing leads from there to the loss."""


@dataclass(frozen=True, slots=True)
class Place:
    """What is known of a place between two blocks: the calls whose tensors are used after it."""

    done: Done
    followed: Followed


@dataclass(frozen=True, slots=True)
class Roots:
    """Where a backward pass begins: tensors of the graph, and the gradient by each."""

    tensors: Sequence[torch.Tensor]
    gradients: Sequence[torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Handed:
    kept: torch.Tensor
    """Held, so that no other tensor has its identity meanwhile."""
    tensor: torch.Tensor
    edge: GradientEdge | None


@dataclass(frozen=True, slots=True)
class _Left:
    tensor: torch.Tensor
    version: int
    """How often it was overwritten by then."""

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Left:
        return cls(tensor, tensor._version)  # noqa: SLF001  # torch has no public name for it


@dataclass
class Crossing:
    """One forward pass of a block, from a place to the next: a `Handing`, whose copies gradients go back through."""

    given: Mapping[Call, Any]
    """What was kept of the calls before."""
    before: Place | None
    """None at the inputs, which need no gradients."""
    after: Place | None
    """None at the end of the network."""
    gradients: Gradients = field(default_factory=dict)
    """By what the calls gave that are used after it."""
    held_bytes: int = 0
    arrived: list[dict[int, torch.Tensor | None]] = field(default_factory=list)
    """Of each draw, the gradient by each tensor that was kept, by its identity."""

    def __post_init__(self) -> None:
        followed = {} if self.before is None else self.before.followed
        tensors = ((one, way, number) for way in followed for number, one in enumerate(tensors_in((self.given[way],))))
        self._followed = {id(tensor) for tensor, way, number in tensors if followed[way][number]}
        self._handed: dict[int, _Handed] = {}
        self._leaving: dict[Call, list[_Left]] = {}
        self._last: dict[str, Call] = {}

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """See what the last calls give once the hooks of their modules have seen, and changed, it."""
        done = {} if self.after is None else self.after.done
        names = {way[-1][0] for way, used in done.items() if used and way not in self.given}
        with ExitStack() as stack:
            for name in names:
                hook = model.get_submodule(name).register_forward_hook(
                    lambda _, __, output, name=name: self._leave(name, output)
                )
                stack.callback(hook.remove)
            yield

    def out(self, kept: torch.Tensor | Form) -> torch.Tensor:
        """Return a copy, which gradients go back through where some lead there."""
        if isinstance(kept, Form):
            return Spent.of(kept)
        if id(kept) not in self._handed:
            if id(kept) in self._followed:
                copy = kept.detach().requires_grad_().clone()
                self._handed[id(kept)] = _Handed(kept, copy, get_gradient_edge(copy))
            else:
                self._handed[id(kept)] = _Handed(kept, kept.clone(), None)
        return self._handed[id(kept)].tensor

    def keep(self, way: Call, value: Any, source: Any, *, used: bool) -> Any:
        """Note what leaves the block, and keep its form alone: the numbers are known."""
        if used and way in self.given:
            self._leaving[way] = [_Left.of(tensor) for tensor in tensors_in((value,))]
        elif used:
            self._last[way[-1][0]] = way
        return mapped(value if source is None else source, form_of)

    def give_up(self) -> None:
        """Do nothing: no copies are kept."""

    @property
    def edges(self) -> list[GradientEdge]:
        """Where gradients leave the graph towards the block before."""
        return [handed.edge for handed in self._entering]

    def roots(self, draw: int) -> Roots:
        """Return where a draw's backward pass begins; raises UnsupportedLayerError where that is not known any more."""
        found: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        for way, leaving in self._leaving.items():
            by_draw = self.gradients.get(way)
            for number, left in enumerate(leaving):
                gradient = None if by_draw is None else by_draw[draw][number]
                self._require_followed(way, number, left)
                if gradient is not None and left.tensor.requires_grad:
                    found[id(left.tensor), id(gradient)] = left.tensor, gradient
        return Roots([tensor for tensor, _ in found.values()], [gradient for _, gradient in found.values()])

    def left(self) -> dict[Call, list[torch.Tensor]]:
        """Return what calls gave that is used after them."""
        return {way: [left.tensor for left in leaving] for way, leaving in self._leaving.items()}

    def arrive(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Take the gradients of the next draw, as `edges` asked for them."""
        self.arrived.append({id(handed.kept): _own(one) for handed, one in zip(self._entering, gradients, strict=True)})

    def carried(self) -> Gradients:
        """Return the gradients of all draws by what entered."""
        known = {} if self.before is None else self.before.followed
        return {
            way: [[one.get(id(tensor)) for tensor in tensors_in((self.given[way],))] for one in self.arrived]
            for way in known
        }

    @property
    def _entering(self) -> list[Any]:
        return [handed for handed in self._handed.values() if handed.edge is not None]

    def _leave(self, name: str, output: Any) -> None:
        way = self._last.pop(name, None)
        if way is not None:
            self._leaving[way] = [_Left.of(tensor) for tensor in tensors_in((output,))]

    def _require_followed(self, way: Call, number: int, left: _Left) -> None:
        assert self.after is not None  # noqa: S101  # for the type checker: nothing leaves at the end of the network
        followed, name = self.after.followed.get(way, ()), way[-1][0]
        if left.tensor.requires_grad and not (number < len(followed) and followed[number]):
            raise UnsupportedLayerError(
                f"gradients: for one of the batches they go back through what '{name}' gives, and for the first one "
                "they did not: batches go different ways through the network; run it whole"
            )
        if left.version != left.tensor._version:  # noqa: SLF001
            raise UnsupportedLayerError(
                f"gradients: what '{name}' gives is overwritten in place before the next block begins, outside of any "
                "module: write that operation without a trailing underscore or +=, or run the network whole"
            )


class BlockRun(ForwardRun):
    """A forward pass of one block that gradients can go back through."""

    def __init__(self, crossing: Crossing) -> None:
        """Run it from the place before to the one after."""
        done = {} if crossing.after is None else crossing.after.done
        super().__init__(crossing.given, done, until_kept=True, handing=crossing)
        self.crossing = crossing


@contextmanager
def needing_the_last_block_alone() -> Iterator[None]:
    """Raise UnsupportedLayerError where the loss needs what earlier blocks gave and did not hand on."""
    try:
        yield
    except UsedError:
        raise UnsupportedLayerError(
            "gradients: the loss, or the output that it is of, uses what an earlier block gave, which no later one "
            "does: name an output of the last block as gradients.outputs, or run the network whole"
        ) from None


def _own(gradient: torch.Tensor | None) -> torch.Tensor | None:
    """Return a gradient that fills its memory: an expanded one does not."""
    if gradient is None or is_plain(gradient):
        return gradient
    return gradient.clone(memory_format=torch.contiguous_format)
