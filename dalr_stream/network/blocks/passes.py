"""The passes that a network is run in, block by block, as one forward pass of one batch shows them.

    pass 0      what comes before the blocks, and the first block
    pass i      block i
    the last    the last block, and what comes after it

Between two of them stands a place: the calls that are done there, and which of them gave something that is used after
it. What a block gives may be used by the next block alone; what comes before them (masks, position embeddings, encoder
states) by every one. Members of a list without weights go with the block before them.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from dalr_stream.errors import InvalidInputError, LayerNotFoundError, UnsupportedLayerError
from dalr_stream.network.blocks.pieces import LISTS, Pieces, lists_in
from dalr_stream.network.capture.resuming.calls import Call, ForwardCalls, is_in
from dalr_stream.network.capture.resuming.onward import Done
from dalr_stream.network.layers.patterns import nearest

Blocks = bool | str | Sequence[str]
"""True to find them: all lists, or the longest alone where all together are none; or the names of lists."""


@dataclass(frozen=True, slots=True)
class BlockPasses:
    """What each pass runs and keeps."""

    blocks: tuple[tuple[str, ...], ...]
    """The modules of each block, in order."""
    done: tuple[Done, ...]
    """For each place between two passes."""
    places: tuple[Mapping[Call, int | None], ...]
    """The same calls, each with the pass that it is run in; None where nothing uses what it gave any more."""
    pieces: tuple[tuple[str, ...], ...]
    """What has to be in memory in each pass."""
    run_in: Mapping[str, tuple[int, ...]]
    """The passes in which each module is called."""

    @classmethod
    def of(cls, model: nn.Module, batch: Any, pieces: Pieces, blocks: Blocks) -> BlockPasses:
        """Run the network on a batch and see which blocks it has; cost: a forward pass.

        Raises LayerNotFoundError and InvalidInputError for a list that is not there, or is none, and
        UnsupportedLayerError where there are no blocks, or they are not alone in their order.
        """
        named = _named(blocks)
        for name in named:
            _require_list(model, name, pieces)
        calls = ForwardCalls.of(model, batch)
        if named:
            return cls._of_lists(model, calls, pieces, named)
        lists = _longest_first(model, [way[-1][0] for way in calls.in_order], pieces)
        try:
            return cls._of_lists(model, calls, pieces, lists)
        except UnsupportedLayerError:  # several heads beside each other, say
            return cls._of_lists(model, calls, pieces, lists[:1])

    @classmethod
    def _of_lists(cls, model: nn.Module, calls: ForwardCalls, pieces: Pieces, lists: Sequence[str]) -> BlockPasses:
        order = [way[-1][0] for way in calls.in_order]
        groups = _in_order(model, order, lists)
        begins = [_begin(order, group) for group in groups[1:]]
        done = tuple(calls.done_before([group[0]]) for group in groups[1:])
        run_in: dict[str, list[int]] = {}
        for number, name in enumerate(order):
            run_in.setdefault(name, []).append(bisect.bisect_right(begins, number))
        called = {name: tuple(dict.fromkeys(passes)) for name, passes in run_in.items()}
        needed: list[dict[str, None]] = [{} for _ in groups]
        for name, passes in called.items():
            piece = pieces.holding(name)
            for number in passes if piece is not None else ():
                needed[number][str(piece)] = None
        found = cls(groups, done, tuple(_places(done)), tuple(map(tuple, needed)), called)
        found.require_alone({way[-1][0]: kind for way, kind in calls.not_kept().items()})
        return found

    def __len__(self) -> int:
        return len(self.blocks)

    def pass_of(self, layer: str) -> int:
        """Return the pass in which a layer is run; raises UnsupportedLayerError where there are none or several."""
        within = next((number for number, block in enumerate(self.blocks) if is_in(layer, block)), None)
        passes = self.run_in.get(layer, ()) if within is None else (within,)
        if len(passes) != 1:
            where = " and ".join(f"'{self.blocks[number][0]}'" for number in passes[:2])
            reason = f"is called by several blocks, {where} for two" if passes else "is never called in a forward pass"
            raise UnsupportedLayerError(f"layer '{layer}': {reason}: leave it out, or run the network whole")
        return passes[0]

    def require_alone(self, not_kept: Mapping[str, str]) -> None:
        """Raise UnsupportedLayerError where what one block gives is used beyond the next.

        `not_kept` has modules that give what cannot be kept, each with what that is: calls within stand for theirs.
        """
        for number, place in enumerate(self.places):
            for way, run_in in place.items():
                if run_in is not None and run_in < number and is_in(way[-1][0], self.blocks[run_in]):
                    giver, user = way[-1][0], self.blocks[number + 1][0]
                    within = [name for name, _ in way if is_in(name, self.blocks[run_in])]
                    outer = next((name for name in within if name in not_kept), None)
                    if outer is not None:
                        raise UnsupportedLayerError(
                            f"blocks: '{outer}' gives {not_kept[outer]}, which is not kept between blocks: let it give "
                            "tensors that fill their memory (`.clone()` of a part, say), in tuples, lists and dicts of "
                            "Python's own, or run the network whole"
                        )
                    raise UnsupportedLayerError(
                        f"blocks: what '{giver}' gives is used beyond the block after it, by '{user}' or later: a "
                        "connection that skips blocks would have every generation kept, and what is computed between "
                        "blocks outside of any module is done for each of them again: put that into a module, name a "
                        "list whose members follow one another, or run the network whole"
                    )


def _named(blocks: Blocks) -> list[str]:
    """Return the names of lists, each once; none where blocks are to be found. Raises InvalidInputError for others."""
    if isinstance(blocks, bool):
        return []
    names: list[Any] = [blocks] if isinstance(blocks, str) or not isinstance(blocks, Iterable) else list(blocks)
    if not all(isinstance(name, str) for name in names):
        raise InvalidInputError(
            f"blocks: got {blocks!r}: give True, the name of a list of modules such as 'model.layers', or several names"
        )
    return list(dict.fromkeys(names))


def _places(done: Sequence[Done]) -> Iterator[dict[Call, int | None]]:
    run_in: dict[Call, int] = {}
    for number, place in enumerate(done):
        for way in place:
            run_in.setdefault(way, number)
        yield {way: run_in[way] if used else None for way, used in place.items()}


def _require_list(model: nn.Module, name: str, pieces: Pieces) -> None:
    modules = dict(model.named_modules())
    if name not in modules:
        raise LayerNotFoundError(f"blocks: there is no module '{name}'; nearest: {nearest(name, list(modules))}")
    if not isinstance(modules[name], LISTS):
        raise InvalidInputError(
            f"blocks: '{name}' is a {type(modules[name]).__name__}: name an nn.ModuleList or an nn.Sequential, whose "
            f"members are the blocks; there are {', '.join(map(repr, pieces.lists)) or 'none'}"
        )
    if name not in pieces.lists:
        raise InvalidInputError(
            f"blocks: '{name}' has one member, or lies within another list: there are "
            f"{', '.join(map(repr, pieces.lists)) or 'none'}"
        )


def _longest_first(model: nn.Module, order: Sequence[str], pieces: Pieces) -> list[str]:
    """Return the lists whose members are called once each, in order, those with more members first."""
    lists = sorted(pieces.lists, key=lambda name: -len(pieces.lists[name]))
    found = [name for name in lists if not _why_not(model, name, order)]
    if not found:
        reasons = "; ".join(_why_not(model, name, order) for name in lists)
        raise UnsupportedLayerError(
            f"blocks: the network has no nn.ModuleList or nn.Sequential whose members are called once each, in order"
            f"{f' ({reasons})' if reasons else ''}: run it whole"
        )
    return found


def _in_order(model: nn.Module, order: Sequence[str], lists: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the modules of each block of some lists, as they are called; raises UnsupportedLayerError."""
    members: list[str] = []
    for name in lists:
        reason = _why_not(model, name, order)
        if reason:
            raise UnsupportedLayerError(f"blocks: {reason}: name another list, or run the network whole")
        members += lists_in(model)[name]
    groups: list[list[str]] = []
    for member in sorted(members, key=order.index):
        empty = next(iter(model.get_submodule(member).parameters()), None) is None
        if groups and (empty or (len(groups) == 1 and not _has_weights(model, groups[0]))):
            groups[-1].append(member)
        else:
            groups.append([member])
    return tuple(map(tuple, groups))


def _has_weights(model: nn.Module, names: Sequence[str]) -> bool:
    return any(next(iter(model.get_submodule(name).parameters()), None) is not None for name in names)


def _why_not(model: nn.Module, name: str, order: Sequence[str]) -> str:
    """Return why the members of a list are no blocks; nothing where they are."""
    members = lists_in(model)[name]
    distinct = {id(model.get_submodule(member)) for member in members}
    if len(distinct) < len(members):
        return f"members of '{name}' are one and the same module: blocks may not be shared"
    for member in members:
        times = order.count(member)
        if times != 1:
            return f"'{member}' is called {times} times in a forward pass, and a block is called once"
    places = [order.index(member) for member in members]
    return f"members of '{name}' are called in another order than they stand in" if places != sorted(places) else ""


def _begin(order: Sequence[str], group: Sequence[str]) -> int:
    """Return where the first call of a block, or of a part of it, stands."""
    return next(number for number, name in enumerate(order) if is_in(name, [group[0]]))
