"""One block as a network of its own, which begins with what the blocks before it gave.

It holds the pieces that one pass runs, under the names that they have in the whole network, and takes the same batches.
Called on one, it runs the network that it is part of from where the pass before left that batch, with its own pieces in
their places, to what the next pass begins with. So whatever looks at a network, changes it or takes its rows does the
same with a block, and no other block's weights are there.

A copy has modules of its own and shares the tensors: a block that is compressed holds what is new of it.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from dalr_stream.errors import FingerprintMismatchError
from dalr_stream.network.blocks.passes import BlockPasses
from dalr_stream.network.capture.batches import digest_of_inputs
from dalr_stream.network.capture.resuming.calls import Call, is_in
from dalr_stream.network.capture.resuming.given import Spent, tensors_in
from dalr_stream.network.capture.resuming.kept_states import KeptStream
from dalr_stream.network.capture.resuming.onward import EnoughError, ForwardRun

Given = Mapping[Call, Any]
T = TypeVar("T")


class Left(Protocol):
    """Where the pass before left each batch."""

    def given(self, inputs: Any) -> Given:
        """Return what the calls gave that are done by then; raises FingerprintMismatchError for an unknown batch."""


@dataclass(frozen=True, slots=True)
class LeftInMemory:
    """What a few batches gave, by their digests."""

    by_digest: Mapping[str, Given]

    def given(self, inputs: Any) -> Given:
        """Return what is known of a batch."""
        return _of_known(self.by_digest, inputs)


@dataclass(frozen=True, slots=True)
class LeftInStore:
    """What all batches gave, in a store, by their digests."""

    stream: KeptStream
    keys: Mapping[str, int]

    def given(self, inputs: Any) -> Given:
        """Read the record of a batch."""
        state = self.stream.state(_of_known(self.keys, inputs))
        return {} if state is None else state.given


class BlockNetwork(nn.Module):
    """The pieces of one pass; see the module."""

    def __init__(self, host: nn.Module, passes: BlockPasses, number: int, left: Left, after: str = "") -> None:
        """Take the pieces of pass `number` of `host`, as they are; `left` says where each batch begins.

        `after` identifies what comes before, in words: blocks that read something else are other networks.
        """
        super().__init__()
        self.after = after
        self._place = _Place(weakref.ref(host), passes, number, left)
        for piece in passes.pieces[number]:
            put(self, piece, host.get_submodule(piece))
        self.eval()

    def forward(self, *arguments: Any, **keywords: Any) -> list[torch.Tensor]:
        """Return what the next pass begins with and this one gives; of the last pass, what the network gives."""
        place, seen = self._place, dict[str, list[torch.Tensor]]()
        with self._watching(seen):
            run, outputs = self._run(keywords or arguments[0])
        if place.is_last:
            return [tensor for tensor in tensors_in(_plain(outputs)) if not isinstance(tensor, Spent)]
        if not run.is_complete:  # whoever has all that is wanted has ended it
            raise EnoughError
        kept = [seen.get(way[-1][0], run.kept[way]) for way in place.new]
        return list(tensors_in(kept))

    @contextmanager
    def _watching(self, seen: dict[str, list[torch.Tensor]]) -> Iterator[None]:
        """Note what the last of the pieces give, their hooks included: what is kept is without, as they run again."""

        def note(name: str, output: Any) -> None:
            seen[name] = [one.clone() for one in tensors_in((output,)) if not isinstance(one, Spent)]

        own = dict(self.named_modules())
        with ExitStack() as stack:
            for name in dict.fromkeys(way[-1][0] for way in self._place.new):
                if name in own and is_in(name, self.pieces):
                    hook = own[name].register_forward_hook(lambda _, __, output, name=name: note(name, output))
                    stack.callback(hook.remove)
            yield

    def onward(self, inputs: Any) -> Given | None:
        """Return what the next pass needs of a batch; None where not all of it came to be."""
        run, _ = self._run(inputs)
        return run.kept if run.is_complete else None

    def beside(self, left: Left, after: str) -> BlockNetwork:
        """Return the same pieces in another network, which gave something else before them."""
        return self._with(left, after, {name: self.get_submodule(name) for name in self.pieces})

    def own_copy(self) -> BlockNetwork:
        """Return a copy that shares no tensor with this one."""
        copies = {name: copy.deepcopy(self.get_submodule(name)) for name in self.pieces}
        return self._with(self._place.left, self.after, copies)

    @property
    def left(self) -> Left:
        """Where each batch begins."""
        return self._place.left

    @property
    def pieces(self) -> tuple[str, ...]:
        """Their names."""
        place = self._place
        return place.passes.pieces[place.number]

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockNetwork:
        """Copy the modules, and share the tensors."""
        memo |= {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
        memo[id(self._place)] = self._place
        made: BlockNetwork = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__dict__ = copy.deepcopy(self.__dict__, memo)
        return made

    def _with(self, left: Left, after: str, pieces: Mapping[str, nn.Module]) -> BlockNetwork:
        place = self._place
        made = BlockNetwork(place.host, place.passes, place.number, left, after)
        for name, piece in pieces.items():
            put(made, name, piece)
        return made.eval()

    def _run(self, inputs: Any) -> tuple[ForwardRun, Any]:
        place = self._place
        given = {} if place.number == 0 else place.left.given(inputs)
        run = ForwardRun(given, {} if place.is_last else place.passes.done[place.number], until_kept=True)
        with in_place(place.host, {name: self.get_submodule(name) for name in self.pieces}):
            return run, run(place.host, inputs)


class _Place:
    """Where a block stands; the same one for all copies of it, and no part of what they hold."""

    def __init__(self, host: weakref.ref[nn.Module], passes: BlockPasses, number: int, left: Left) -> None:
        self.passes, self.number, self.left = passes, number, left
        self._host = host

    @property
    def host(self) -> nn.Module:
        host = self._host()
        assert host is not None  # noqa: S101  # for the type checker: whoever runs a block holds the network
        return host

    @property
    def new(self) -> list[Call]:
        """The calls of this pass that gave what a later one uses."""
        if self.is_last:
            return []
        number, done = self.number, self.passes.done[self.number]
        return [way for way, given_in in self.passes.places[number].items() if given_in == number and done[way]]

    @property
    def is_last(self) -> bool:
        return self.number == len(self.passes) - 1


def put(network: nn.Module, name: str, piece: nn.Module) -> None:
    """Let a network have a module under a name that it has in another one, whatever is around it there."""
    parent = network
    *above, key = name.split(".")
    for part in above:
        if part not in parent._modules:  # noqa: SLF001  # an attribute of that name may be something else
            parent.add_module(part, nn.Module())
        parent = parent.get_submodule(part)
    parent._modules[key] = piece  # noqa: SLF001  # in the place of another one, as setattr would


@contextmanager
def in_place(host: nn.Module, pieces: Mapping[str, nn.Module]) -> Iterator[None]:
    """Let a whole network call these in the places of its own; on leaving it has its own again."""
    before: list[tuple[Any, str, Any]] = []
    try:
        for name, piece in pieces.items():
            above, _, key = name.rpartition(".")
            modules = host.get_submodule(above)._modules  # noqa: SLF001  # setattr would do more
            before.append((modules, key, modules[key]))
            modules[key] = piece
        yield
    finally:
        for modules, key, own in before:
            modules[key] = own


def _plain(outputs: Any) -> Any:
    return dict(outputs) if hasattr(outputs, "items") else outputs


def _of_known(known: Mapping[str, T], inputs: Any) -> T:
    digest = digest_of_inputs(inputs)
    if digest not in known:
        raise FingerprintMismatchError(
            "batches: one is not any of the first pass: every pass needs the same batches, so turn off random "
            "augmentation"
        )
    return known[digest]
