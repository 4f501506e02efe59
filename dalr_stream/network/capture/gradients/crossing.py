"""Where one block meets its neighbours in the graph of a forward pass, and the gradients that cross there.

    entering    what was kept of the calls before it: gradients by that are what the block before begins with
    leaving     what later calls use, with the gradients by it that later blocks left

One graph of the whole network would add the gradients by a tensor one after another, those of later calls first. So the
ones that later blocks left come first here, and each of the block's own is added to them: the same sums, to the bit,
also of what several blocks read, an encoder's states say.

Outside of any module the network may overwrite what a call gave, as `x *= 2` does. Its tensor is then another node of
the graph. So the node, and the numbers where they are to be proved, are noted as the call returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.capture.resuming.calls import Call
from dalr_stream.network.capture.resuming.given import AbsentError, UsedError, form_of, is_plain, mapped, tensors_in
from dalr_stream.network.capture.resuming.handing import Copies
from dalr_stream.network.capture.resuming.onward import Done, ForwardRun
from dalr_stream.network.capture.resuming.stored_states import not_used_before
from dalr_stream.network.layers.identity import tensor_digest

Followed = Mapping[Call, Sequence[bool]]
"""Through which of the tensors that a call gave gradients go back."""
Gradients = Mapping[Call, Sequence[Sequence[torch.Tensor | None]]]
"""By what a call gave: of each draw, for each of its tensors; None where nothing leads from there to the loss."""

EDGES_AS_ROOTS = "2.5"
"""The first torch whose backward passes can begin at a place in the graph, not at a tensor alone."""


@dataclass(frozen=True, slots=True)
class Place:
    """What is known of a place between two blocks: the calls whose tensors are used after it."""

    done: Done
    followed: Followed


@dataclass(frozen=True, slots=True)
class Roots:
    """Where a backward pass begins: tensors of the graph, or their places in it, and the gradient by each."""

    tensors: Sequence[Any]
    gradients: Sequence[torch.Tensor]


@dataclass(frozen=True, slots=True)
class Left:
    """A tensor that a call gave and that is used after it, as it was when the call returned."""

    tensor: torch.Tensor
    """It may be overwritten since."""
    edge: GradientEdge | None
    """Its place in the graph; None where no gradients go back from it."""
    digest: str
    """Of its numbers, where they are to be proved."""

    @classmethod
    def of(cls, tensor: torch.Tensor, *, proving: bool) -> Left:
        """Note it now."""
        edge = get_gradient_edge(tensor) if tensor.requires_grad else None
        return cls(tensor, edge, tensor_digest(tensor) if proving else "")

    def root(self, name: str) -> Any:
        """Return the tensor, or its place, for a backward pass to begin at; `name` gave it.

        Raises UnsupportedLayerError where an old torch cannot do that.
        """
        if self.edge is None or get_gradient_edge(self.tensor)[:2] == self.edge[:2]:
            return self.tensor
        if torch.__version__ < EDGES_AS_ROOTS:
            raise UnsupportedLayerError(
                f"gradients: what '{name}' gives is overwritten in place outside of any module, as by `x *= 2`, and "
                f"torch {torch.__version__} cannot go back from what was there before: write `x = x * 2`, install "
                f"torch {EDGES_AS_ROOTS} or later, or run the network whole"
            )
        return self.edge


class Entering(Copies):
    """Hands out what was kept before a block, so that gradients can go back through where some lead there."""

    def __init__(self, given: Mapping[Call, Any], before: Place | None) -> None:
        """`given` was kept of the calls before; `before` is None at the inputs, which need no gradients."""
        super().__init__()
        self.given = given
        followed: Followed = {} if before is None else before.followed
        self._known = {way: list(tensors_in((given[way],))) for way in followed}
        pairs = [pair for way in followed for pair in zip(self._known[way], followed[way], strict=True)]
        self._followed = {id(tensor) for tensor, goes_back in pairs if goes_back}
        self._edges: dict[int, GradientEdge] = {}

    def copy_of(self, kept: torch.Tensor) -> torch.Tensor:
        """Return a copy that has a node of its own in the graph: the network may overwrite it."""
        if id(kept) not in self._followed:
            return kept.clone()
        copy = kept.detach().requires_grad_().clone()
        self._edges[id(kept)] = get_gradient_edge(copy)
        return copy


class Crossing(Entering):
    """One forward pass of a block, from a place to the next, and what crosses both on the way back."""

    def __init__(
        self,
        given: Mapping[Call, Any],
        before: Place | None,
        after: Place | None,
        gradients: Gradients | None = None,
        *,
        proving: bool = False,
    ) -> None:
        """`after` is None at the end of the network; `gradients` by what is used after it come from later blocks.

        With `proving` there are digests of what leaves the block.
        """
        super().__init__(given, before)
        self.after, self._proving = after, proving
        self._gradients = gradients or {}
        self._arrived: list[dict[int, torch.Tensor | None]] = []
        self._leaving: dict[Call, list[Left]] = {}
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

    def keep(self, way: Call, value: Any, source: Any, *, used: bool) -> Any:
        """Note what leaves the block, and keep its form alone: the numbers are known."""
        if used and way in self.given:
            self._leaving[way] = self._left(value)
        elif used:
            self._last[way[-1][0]] = way
        return mapped(value if source is None else source, form_of)

    @property
    def edges(self) -> list[GradientEdge]:
        """Where gradients leave the graph towards the block before."""
        return list(self._edges.values())

    def roots(self, draw: int) -> Roots:
        """Return where a draw's backward pass begins; raises UnsupportedLayerError where a batch goes another way."""
        found: dict[tuple[int, int], tuple[Any, torch.Tensor]] = {}
        for way, leaving in self._leaving.items():
            self._require_followed(way)
            gradients = self._gradients[way][draw] if way in self._gradients else [None] * len(leaving)
            for left, gradient in zip(leaving, gradients, strict=True):
                if gradient is not None and left.edge is not None:
                    found[id(left.tensor), id(gradient)] = left.root(way[-1][0]), gradient
        return Roots([root for root, _ in found.values()], [gradient for _, gradient in found.values()])

    def left(self) -> Mapping[Call, Sequence[Left]]:
        """Return what calls gave that is used after them."""
        return self._leaving

    def arrive(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Take the gradients of the next draw, as `edges` asked for them."""
        self._arrived.append(dict(zip(self._edges, map(_own, gradients), strict=True)))

    def carried(self) -> Gradients:
        """Return the gradients of all draws by what entered."""
        return {
            way: [[one.get(id(tensor)) for tensor in tensors] for one in self._arrived]
            for way, tensors in self._known.items()
        }

    def _leave(self, name: str, output: Any) -> None:
        way = self._last.pop(name, None)
        if way is not None:
            self._leaving[way] = self._left(output)

    def _left(self, value: Any) -> list[Left]:
        return [Left.of(tensor, proving=self._proving) for tensor in tensors_in((value,))]

    def _require_followed(self, way: Call) -> None:
        leaving, nothing = self._leaving[way], [False] * len(self._leaving[way])
        followed = nothing if self.after is None else self.after.followed.get(way, nothing)
        if any(one.edge is not None and not known for one, known in zip(leaving, followed, strict=True)):
            raise UnsupportedLayerError(
                f"gradients: for one of the batches they go back through what '{way[-1][0]}' gives, and for the first "
                "one they did not: batches go different ways through the network; run it whole"
            )


class BlockRun(ForwardRun):
    """A forward pass of one block, and back."""

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
    except AbsentError:
        raise not_used_before() from None
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
