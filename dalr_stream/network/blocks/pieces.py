"""The pieces that a network is read in: each block, and each module beside the blocks, such as an embedding or a head.

A list of blocks is found in the network's structure: the outermost `nn.ModuleList`s and `nn.Sequential`s with several
members. What holds such a list, at whatever distance, is never a piece, and what hangs on it directly (a class token)
stays in memory. A piece's parameters are on the meta device until it is needed, and again afterwards; buffers are small
and always there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from dalr_stream.network.capture.resuming.calls import is_in
from dalr_stream.network.layers.elsewhere import forget_elsewhere, keep_elsewhere, weights_elsewhere
from dalr_stream.network.layers.identity import tensor_digest
from dalr_stream.network.layers.pair import FactorPair
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.network.surgery.copying import copied
from dalr_stream.numerics.rows.streams import module_name

LISTS = (nn.ModuleList, nn.Sequential)


class Tensors(Protocol):
    """What has the numbers of a network's parameters."""

    @property
    def stamp(self) -> list[list[Any]]:
        """What tells the files apart that they are in, at no cost: as they were when they were opened."""

    def tensor(self, name: str) -> torch.Tensor:
        """Return one of them, by the name that it is stored as, in memory of its own."""


def lists_in(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the lists of modules with several members that are within no other, each with its members' names."""
    found: dict[str, tuple[str, ...]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        members = tuple((name and f"{name}.{key}") or key for key in module._modules)  # noqa: SLF001  # a member may recur
        within = any(is_in(name, [one]) for one in found) if found and name else False
        is_list = isinstance(module, LISTS) and not isinstance(module, FactorPair)
        if is_list and len(members) > 1 and not within and "" not in found:
            found[name] = members
    return found


def pieces_of(model: nn.Module, lists: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return the names of the pieces: the children of what holds a list that hold none themselves."""
    above = {""} | {name[:end] for name in lists for end in range(len(name) + 1) if name[end : end + 1] in (".", "")}
    children = [name for name, _ in model.named_modules() if name and name.rpartition(".")[0] in above]
    return tuple(name for name in children if name not in above)


def largest_piece_bytes(model: nn.Module) -> int:
    """Return the bytes of the parameters of the largest piece: what is in memory where pieces are read in turn."""
    pieces = map(model.get_submodule, pieces_of(model, lists_in(model)))
    return max((sum(parameter.nbytes for parameter in piece.parameters()) for piece in pieces), default=0)


@dataclass(frozen=True, slots=True)
class _Absent:
    """A parameter whose numbers are on disk."""

    owner: nn.Module
    attribute: str
    stands_for: nn.Parameter
    """On the meta device; the same object under every name of a tied parameter."""
    stored_as: str


class Pieces:
    """The pieces of a network: a no-op for one that is in memory whole."""

    def __init__(self, model: nn.Module) -> None:
        """See what pieces it has; see `attach` for one that is not in memory."""
        self.lists = lists_in(model)
        self.names = pieces_of(model, self.lists)
        self.device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self._model = model
        self._shards: Tensors | None = None
        self._absent: dict[str, _Absent] = {}
        self._digests: dict[str, tuple[str, list[list[Any]]]] = {}
        """By the tensor's name in the files, with the stamp that they had then."""
        self._held: Counter[str] = Counter()
        self._passing = self._running = False
        self._called = ExitStack()
        self._hooks: list[int] = []

    @classmethod
    def of(cls, model: nn.Module) -> Pieces:
        """Return those of a network."""
        known: Any = weights_elsewhere(model)
        return cls(model) if known is None else known

    def attach(self, shards: Tensors, stored_as: Mapping[str, str], device: torch.device) -> None:
        """Take the numbers of the pieces' parameters from `shards`, each under the name that it is stored as."""
        self._shards, self.device = shards, device
        stands_for: dict[int, nn.Parameter] = {}
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            path, _, attribute = name.rpartition(".")
            owner = self._model.get_submodule(path)
            if self.holding(name) is None:
                continue
            empty = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
            absent = stands_for.setdefault(id(parameter), parameter if parameter.is_meta else empty)
            self._absent[name] = _Absent(owner, attribute, absent, stored_as[name])
            owner._parameters[attribute] = absent  # noqa: SLF001  # the attribute's setter would do more
        keep_elsewhere(self._model, self)
        self._hooks = [
            self._model.register_forward_pre_hook(lambda *_: self._begin()).id,
            self._model.register_forward_hook(lambda *_: self._called.close(), always_call=True).id,
        ]

    def holding(self, name: str) -> str | None:
        """Return the piece that a module or a tensor is part of; None where it is part of none."""
        return next((piece for piece in self.names if is_in(name, [piece])), None)

    def skeleton(self) -> nn.Module:
        """Return the network's shape: a copy of it whose parameters are on the meta device, and stay there."""
        stand_ins = {
            id(one): nn.Parameter(torch.empty_like(one, device="meta"), requires_grad=one.requires_grad)
            for one in self._model.parameters()
        }
        made = copied(self._model, {**stand_ins, id(self): object()})
        forget_elsewhere(made)
        for hook in self._hooks:  # those of this network's pieces
            made._forward_pre_hooks.pop(hook, None)  # noqa: SLF001
            made._forward_hooks.pop(hook, None)  # noqa: SLF001
            made._forward_hooks_always_called.pop(hook, None)  # noqa: SLF001
        return made

    @property
    def stamp(self) -> list[list[Any]]:
        """What tells the files apart that the numbers are in, at no cost; empty where they are in memory."""
        return [] if self._shards is None else self._shards.stamp

    def digest(self, name: str) -> str:
        """Return the digest of the numbers of one parameter; they are read for it once, or not where they are there."""
        absent, stamp = self._absent[name], self.stamp
        if self._digests.get(absent.stored_as, ("", []))[1] != stamp:
            here = absent.owner._parameters[absent.attribute]  # noqa: SLF001
            numbers = self._read(absent) if here is None or here.is_meta else here
            self._digests[absent.stored_as] = tensor_digest(numbers), stamp
        return self._digests[absent.stored_as][0]

    def numbers(self, name: str) -> torch.Tensor:
        """Return the numbers of one parameter, from disk where they are not in memory."""
        if name in self._absent:
            return self._read(self._absent[name])
        return self._model.get_parameter(name).detach()

    @contextmanager
    def present(self, pieces: Collection[str]) -> Iterator[None]:
        """Have the numbers of some pieces in memory, for the length of the block, and of no others."""
        before, self._passing = self._passing, True
        try:
            with ExitStack() as stack:
                for piece in pieces:
                    stack.callback(self._give_up, piece)
                    self._hold(piece)
                yield
        finally:
            self._passing = before

    @contextmanager
    def visiting(self) -> Iterator[None]:
        """Let the network run whole: each piece has its numbers while it runs, and is read anew each time.

        Nothing where pieces are `present`: those are all that is run then.
        """
        if self._passing or self._running or not self._absent:
            yield
            return
        before, self._running = +self._held, True
        try:
            with ExitStack() as stack:
                for piece in self.names:
                    module = self._model.get_submodule(piece)
                    stack.callback(module.register_forward_pre_hook(lambda *_, piece=piece: self._hold(piece)).remove)
                    given_up = module.register_forward_hook(
                        lambda *_, piece=piece: self._give_up(piece), always_call=True
                    )
                    stack.callback(given_up.remove)
                yield
        finally:
            self._running = False
            for piece in [one for one, times in self._held.items() for _ in range(times - before[one])]:
                self._give_up(piece)

    def one_by_one(self, layers: Sequence[LayerSpec]) -> Iterator[list[LayerSpec]]:
        """Yield the layers of each piece while it is in memory; the digests of its parameters are taken meanwhile."""
        by_piece: dict[str | None, list[LayerSpec]] = {}
        for layer in layers:
            by_piece.setdefault(self.holding(module_name(layer.name)), []).append(layer)
        for piece, within in by_piece.items():
            with self.present([] if piece is None else [piece]):
                for name in self._absent if piece is not None else ():
                    if is_in(name, [str(piece)]):
                        self.digest(name)
                yield within

    def _begin(self) -> None:
        """Let the network run whole where it is called by itself."""
        if not (self._passing or self._running):
            self._called.enter_context(self.visiting())

    def _hold(self, piece: str) -> None:
        self._held[piece] += 1
        if self._held[piece] == 1:
            read: dict[int, nn.Parameter] = {}
            for absent in self._of(piece):
                key = id(absent.stands_for)
                if key not in read:
                    needs = absent.stands_for.requires_grad
                    read[key] = nn.Parameter(self._read(absent), requires_grad=needs)
                absent.owner._parameters[absent.attribute] = read[key]  # noqa: SLF001

    def _give_up(self, piece: str) -> None:
        if self._held[piece] == 0:
            return
        self._held[piece] -= 1
        if self._held[piece] == 0:
            for absent in self._of(piece):
                absent.owner._parameters[absent.attribute] = absent.stands_for  # noqa: SLF001

    def _of(self, piece: str) -> list[_Absent]:
        return [absent for name, absent in self._absent.items() if is_in(name, [piece])]

    def _read(self, absent: _Absent) -> torch.Tensor:
        assert self._shards is not None  # noqa: S101  # for the type checker: what is absent came from there
        return self._shards.tensor(absent.stored_as).to(self.device, absent.stands_for.dtype)
