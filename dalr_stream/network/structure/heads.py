"""Which layers are one attention and how their features are parted into heads, by what a batch shows.

Nothing is read off names or classes. Of the layers called before the output layer, within the module around it:

    values      doubled, what the output layer reads is doubled
    queries     doubled while others are halved, and nothing changes: those are the keys. Adding the same to all keys
                changes nothing either, since softmax takes no notice; to all queries it does. Where positions are
                rotated into keys it changes something too: then queries are what changes its own tokens alone
    heads       what the output layer reads of a query's first dimension is its head

Then every head's dimensions are mixed: queries by B'^-1 and keys by B, values by C and what the output layer reads by
C^-1, with B and C drawn at random. What the network gives must be as it was. That is so where queries and keys enter
through their inner products alone, values through the output layer alone, and heads lie as found; it is not where
these are normalised, or where anything else reads them. Where positions are rotated into queries and keys, B leaves
their pairs apart: see `rotation`.

Freshly initialised networks hardly attend to one token more than to another, and would pass for anything: queries are
made so loud, in all these runs, that it matters which are which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import nn

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.layers.kinds import CONVOLUTIONS, channels_given, matrix_of
from dalr_stream.network.layers.obstacles import require_replaceable
from dalr_stream.network.layers.spec import layer_of
from dalr_stream.network.structure.changed import ROUNDING, Change, alike, by_head, run_changed, same
from dalr_stream.network.structure.mixing import mixing, mixing_but_pairs
from dalr_stream.network.structure.rotary_tables import RotaryTable
from dalr_stream.network.structure.rotation import Rotation, RotationSearch
from dalr_stream.numerics.heads.layout import HeadLayout

LEVELS = 3
"""Modules around the output layer within which the others are looked for: the attention, where it has parts."""
NEEDED = 3
"""Layers before the output layer: queries, keys and values."""
SEEN = 1e-2
"""What a query doubled must change at least, relative to the largest entry: queries are made louder until it does."""
LOUDEST = 4.0**10
SEED = 14
_OTHERWISE = (
    "queries and keys must enter through their inner products alone, or be rotated by their positions in pairs, with "
    "tables that the attention holds or is given: here they are rotated otherwise, normalised, or something else is "
    "done to them"
)


@dataclass(frozen=True, slots=True)
class Attention:
    """What was found."""

    layout: HeadLayout
    around: str
    """The module that holds its layers."""
    loud: float
    """What queries are multiplied by so that it shows which tokens are attended to."""
    tables: tuple[RotaryTable, ...] = ()
    """What positions are rotated by."""


def found_attention(model: nn.Module, example: Any, name: str) -> Attention:
    """Return the attention whose output layer is `name`.

    Raises UnsupportedLayerError with the reason where there is none, or none whose heads could be narrowed. Cost: some
    thirty forward passes of `example`, most of them up to that layer.
    """
    return _Search(model, example, name).found()


@dataclass(slots=True)
class _Search:
    model: nn.Module
    example: Any
    name: str
    around: str = ""

    def found(self) -> Attention:
        layer_of(self.model, self.name)  # of a kind that can be narrowed
        before = self._before()
        plain = self._read({})
        values = self._values(before, plain)
        queries, keys, loud = self._queries_and_keys([one for one in before if one != values], plain)
        layout = self._layout(queries, keys, values, loud)
        require_replaceable(self.model, layout.layers)
        if self._takes_no_notice(queries, keys, loud):
            self._require_mixed(layout, loud)
            return Attention(layout, self.around, loud)
        rotation = self._rotation(layout, loud)
        return Attention(rotation.layout, self.around, loud, rotation.tables)

    def _before(self) -> list[str]:
        """Return the layers that are called before the output layer in the module around it."""
        order = self._order()
        if order.count(self.name) != 1:
            self._refuse(f"it is called {order.count(self.name)} times")
        earlier, self.around = order[: order.index(self.name)], self.name
        within: list[str] = []
        for _ in range(LEVELS):
            self.around = self.around.rpartition(".")[0]
            within = [one for one in earlier if not self.around or one.startswith(f"{self.around}.")]
            if len(set(within)) >= NEEDED or not self.around:
                break
        if len(set(within)) < NEEDED:
            self._refuse(
                f"{' and '.join(map(repr, within)) or 'no layer'} before it where queries, keys and values take three "
                "layers: split one that gives several of them"
            )
        for one, calls in Counter(within).items():
            if calls > 1:
                self._refuse(f"'{one}' is called {calls} times")
            if matrix_of(self.model.get_submodule(one)).dtype not in (torch.float32, torch.float64):
                self._refuse(f"'{one}' has weights too coarse for the proof: make them float32, and coarser afterwards")
        return within

    def _order(self) -> list[str]:
        order: list[str] = []
        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                if channels_given(module) is not None and not isinstance(module, CONVOLUTIONS):
                    stack.callback(module.register_forward_hook(lambda *_, name=name: order.append(name)).remove)
            self._run({}, {})
        return order

    def _values(self, before: Sequence[str], plain: torch.Tensor) -> str:
        doubling = [one for one in before if same(self._read({one: _times(2.0)}), 2.0 * plain)]
        if len(doubling) != 1:
            self._refuse(
                "doubling what a layer gives must double what it reads for one layer, the values', and does for "
                f"{' and '.join(map(repr, doubling)) or 'none'}"
            )
        return doubling[0]

    def _queries_and_keys(self, before: Sequence[str], plain: torch.Tensor) -> tuple[str, str, float]:
        for number, one in enumerate(before):
            for other in before[number + 1 :]:
                loud = self._loud(one, plain)
                if loud is None or not self._balance(one, other, loud):
                    continue
                pairs = (one, other), (other, one)
                for is_right in (self._takes_no_notice, self._change_their_own_tokens):
                    for queries, keys in pairs:
                        if is_right(queries, keys, loud):
                            return queries, keys, loud
        return self._refuse(_OTHERWISE)

    def _takes_no_notice(self, queries: str, keys: str, loud: float) -> bool:
        """Tell whether nothing changes where the same is added to all keys."""
        shifted = {queries: _times(loud), keys: _shifted}
        return same(self._read(shifted), self._read({queries: _times(loud)}))

    def _change_their_own_tokens(self, queries: str, keys: str, loud: float) -> bool:
        """Tell whether other queries at every second token change nothing for the tokens between, and other keys do."""
        if self._read({}).ndim < len(("tokens", "features")):
            return False
        between = [
            self._read({queries: _times(loud), **changes})[..., 1::2, :]
            for changes in ({}, {queries: lambda given: _every_second(loud * given)}, {keys: _every_second})
        ]
        return same(between[1], between[0]) and not same(between[2], between[0])

    def _balance(self, one: str, other: str, loud: float) -> bool:
        """Tell whether doubling one layer and halving another changes nothing."""
        return same(self._read({one: _times(2 * loud), other: _times(0.5)}), self._read({one: _times(loud)}))

    def _loud(self, layer: str, plain: torch.Tensor) -> float | None:
        """Return a factor at which another factor of 2 shows; None where none does."""
        loud, before = 1.0, plain
        while loud <= LOUDEST:
            after = self._read({layer: _times(2 * loud)})
            if not same(after, before, SEEN):
                return loud
            loud *= 4.0
            before = self._read({layer: _times(loud)})
        return None

    def _layout(self, queries: str, keys: str, values: str, loud: float) -> HeadLayout:
        """Return how many heads there are, by what a query's first dimension changes."""
        changes = {queries: _times(loud), values: _noise}
        before = self._read(changes)
        after = self._read({**changes, queries: lambda given: _first_disturbed(given * loud)})
        different = (after - before).abs().reshape(-1, after.shape[-1]).amax(dim=0) > ROUNDING * before.abs().max()
        size, whole = int(different.sum()), after.shape[-1]
        widths = {one: channels_given(self.model.get_submodule(one)) or 0 for one in (queries, keys, values)}
        if not size or not bool(different[:size].all()) or whole % size:
            self._refuse(f"its heads lie in no regular order: a query's first dimension changes {size} of {whole}")
        if widths[queries] != whole or widths[keys] != widths[values] or widths[keys] % size or whole % widths[keys]:
            given = ", ".join(f"'{one}' gives {width}" for one, width in widths.items())
            self._refuse(f"queries, keys and values must have heads of one size, {size} here, and {given}")
        return HeadLayout(queries, keys, values, self.name, whole // size, widths[keys] // size, size)

    def _require_mixed(self, layout: HeadLayout, loud: float) -> None:
        if not self._is_mixed(layout, loud):
            self._refuse(
                f"queries, keys and values of {layout.heads} heads that share {layout.groups} are read by other ways "
                f"than through their inner products and '{self.name}', or lie otherwise than head after head"
            )

    def _rotation(self, layout: HeadLayout, loud: float) -> Rotation:
        search = RotationSearch(
            self.model,
            layout,
            self.around,
            lambda: self._read({layout.queries: _times(loud)}),
            lambda one: self._is_mixed(one, loud),
            lambda one, other: not same(one, other),
        )
        return search.found() or self._refuse(_OTHERWISE)

    def _is_mixed(self, layout: HeadLayout, loud: float) -> bool:
        """Tell whether mixing every head's dimensions, and undoing it on the other side, changes nothing."""
        generator = torch.Generator().manual_seed(SEED)
        b = torch.stack([mixing_but_pairs(layout, generator) for _ in range(layout.groups)])
        c = torch.stack([mixing(layout.size, generator) for _ in range(layout.groups)])
        turned = torch.linalg.inv(b).mT.repeat_interleave(layout.shared, dim=0)
        undone = torch.linalg.inv(c).repeat_interleave(layout.shared, dim=0)
        changes: dict[str, Change] = {
            layout.queries: lambda given: loud * by_head(given, turned),
            layout.keys: lambda given: by_head(given, b),
            layout.values: lambda given: by_head(given, c),
        }
        expected = self._run_to_the_end({layout.queries: _times(loud)}, lambda read: read)
        return alike(self._run_to_the_end(changes, lambda read: by_head(read, undone)), expected)

    def _run_to_the_end(self, changes: Mapping[str, Change], reading: Change) -> list[torch.Tensor]:
        """Return what the output layer reads in the end, of which its weights may show nothing, and the outputs."""
        read: list[torch.Tensor] = []

        def kept(given: torch.Tensor) -> torch.Tensor:
            read.append(reading(given).clone())
            return read[-1]

        outputs = self._run(changes, {self.name: kept})
        return [*read, *outputs]

    def _read(self, changes: Mapping[str, Change]) -> torch.Tensor:
        """Return what the output layer reads, with what layers give changed."""
        taken: list[torch.Tensor] = []
        with suppress(_Read):
            self._run(changes, {self.name: lambda read: _stop(taken, read)})
        return taken[0]

    def _run(self, changes: Mapping[str, Change], reading: Mapping[str, Change]) -> list[torch.Tensor]:
        return run_changed(self.model, self.example, changes, reading)

    def _refuse(self, reason: str) -> NoReturn:
        raise UnsupportedLayerError(f"layer '{self.name}': the heads of its attention cannot be narrowed: {reason}")


class _Read(BaseException):  # no error: the rest of a forward pass is not needed
    """The output layer has been called."""


def _times(factor: float) -> Change:
    return lambda given: factor * given


def _shifted(given: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return given + given.abs().max() * torch.rand(given.shape[-1], generator=generator).to(given)


def _noise(given: torch.Tensor) -> torch.Tensor:
    return torch.randn(given.shape, generator=torch.Generator().manual_seed(SEED)).to(given)


def _first_disturbed(given: torch.Tensor) -> torch.Tensor:
    disturbed = given.clone()
    disturbed[..., 0] += given.abs().max() * (1 + torch.rand(given.shape[:-1], generator=_generator()).to(given))
    return disturbed


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def _every_second(given: torch.Tensor) -> torch.Tensor:
    """Return what a layer gives with noise at every second token, beginning with the first."""
    changed = given.clone()
    changed[..., ::2, :] = given.abs().max() * _noise(given[..., ::2, :])
    return changed


def _stop(taken: list[torch.Tensor], read: torch.Tensor) -> NoReturn:
    taken.append(read.clone())
    raise _Read
