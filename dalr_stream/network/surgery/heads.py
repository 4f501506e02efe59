"""Attention with heads of fewer dimensions: the same modules, narrower layers, and smaller numbers where they count.

The modules around the layers have to know of it: most part the features into heads by a number that they keep. Which
of their numbers those are is not read off names. Those that are as large as a head, or as all heads, are changed; and
whether scores are divided by the root of the new size or of the old one is tried, both on stand-ins of half the size
that any mistake would show in. Then the real heads are put in, and the network must compute what the one before does
with P k in the place of every key k, and A T z + offset in the place of what the output layer reads. Where positions
are rotated into queries and keys, P is 0 for the pairs that go, and the tables of positions have entries for the others
alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from dalr_stream.errors import InvalidInputError, UnsupportedLayerError
from dalr_stream.network.layers.identity import require_numbers
from dalr_stream.network.layers.kinds import matrix_of
from dalr_stream.network.layers.obstacles import require_range
from dalr_stream.network.layers.spec import layer_of
from dalr_stream.network.structure.changed import Change, alike, by_head, run_changed
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.structure.heads import Attention
from dalr_stream.network.structure.rotary_tables import RotaryTable
from dalr_stream.network.surgery.copies import require_no_copy_used
from dalr_stream.network.surgery.copying import copied
from dalr_stream.network.surgery.holders import modules_by_name, replaced_modules, require_held_once, require_released
from dalr_stream.network.surgery.kept_rotations import NarrowTable, tables_as_they_are
from dalr_stream.network.surgery.narrowing import fill
from dalr_stream.network.surgery.plan import NarrowHeads
from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.heads.narrowed import NarrowedHeads
from dalr_stream.numerics.heads.pairs import dimensions_of
from dalr_stream.numerics.types import Matrix

_COUNTS = ("num", "heads", "groups", "idx", "index")
"""In the name of an attribute that counts or numbers something, whatever its value."""
_Number = tuple[str, str, int, int]
"""Module, attribute, and what it is: the features of so many heads, and so many times those that are rotated."""


def with_narrowed_heads(
    model: nn.Module, records: Mapping[str, NarrowedHeads], structure: Structure
) -> tuple[nn.Module, list[NarrowHeads]]:
    """Return a copy of `model` with narrower heads, and what was done; `records` by output layer.

    Raises InvalidInputError for a record of another attention, UnsupportedLayerError where the network does not compute
    what it should with them.
    """
    require_numbers(model)
    small = copied(model)
    before, steps = modules_by_name(small), []
    for name, record in records.items():
        attention = structure.attention_of(name)
        if attention.layout != record.layout:
            raise InvalidInputError(
                f"layer '{name}': the heads are for {record.layout}, its attention is {attention.layout}: they were "
                "solved for another layer or network"
            )
        steps.append(_Narrowing(small, attention, structure.example).narrow(record))
    gone = replaced_modules(before, small)
    originals = [(name, model.get_submodule(name)) for name, _ in gone]
    require_released(small, gone)
    require_released(small, originals)
    require_held_once(model, originals)
    return small, steps


@dataclass(frozen=True, slots=True)
class _Way:
    """Which numbers the modules around get, and what queries are multiplied by so that scores keep their scale."""

    attributes: tuple[_Number, ...]
    rescaled: bool

    def step(self, record: NarrowedHeads, tables: Sequence[RotaryTable], *, bias: bool) -> NarrowHeads:
        layout, size = record.layout, record.size
        names = layout.output, layout.queries, layout.keys, layout.values
        rotated = 2 * len(record.pairs)
        known = tuple((module, name, of * size + turned * rotated) for module, name, of, turned in self.attributes)
        kept = tuple(NarrowTable.of(table, record.pairs, layout.rotated) for table in tables if size < layout.size)
        return NarrowHeads(*names, layout.heads, layout.groups, layout.size, size, bias, known, kept)

    def scale(self, layout: HeadLayout, size: int) -> float:
        """Where scores are divided by sqrt(size), queries make up for it."""
        return math.sqrt(size / layout.size) if self.rescaled else 1.0


@dataclass(frozen=True, slots=True)
class _Narrowing:
    """Narrows the heads of one attention in a network, in place, and proves it."""

    model: nn.Module
    attention: Attention
    example: Any

    def narrow(self, record: NarrowedHeads) -> NarrowHeads:
        layout = self.attention.layout
        way = self._way(halved(layout)) if record.size < layout.size else _Way((), rescaled=False)
        step = self._step(way, record)
        failed = self._tried(record, way)
        if failed:
            raise UnsupportedLayerError(self._words(failed))
        return step

    def _way(self, stand_in: NarrowedHeads) -> _Way:
        """Return the first way in which the network with a stand-in computes what it should; it is put back."""
        failed = ""
        for way in self._ways():
            put_back = self._as_it_is(way)
            failed = self._tried(stand_in, way)
            put_back()
            if not failed:
                return way
        raise UnsupportedLayerError(self._words(failed))

    def _ways(self) -> Iterator[_Way]:
        layout = self.attention.layout
        turned = {layout.rotated: (0, 1)} if 0 < layout.rotated < layout.size else {}
        known = {layout.size: (1, 0)}, {layout.size: (1, 0)} | turned, _of_all(layout)
        plain, one, all_heads = ([*self._numbers(numbers)] for numbers in known)
        for attributes in dict.fromkeys(map(tuple, ((), one, plain, [*one, *all_heads], all_heads))):
            for rescaled in (False, True):
                yield _Way(attributes, rescaled)

    def _numbers(self, known: Mapping[int, tuple[int, int]]) -> Iterator[_Number]:
        """Yield the attributes of modules around that are one of these numbers, and what it is."""
        around = self.attention.around
        for name, module in self.model.get_submodule(around).named_modules(prefix=around):
            if name in self.attention.layout.layers:
                continue
            for attribute, value in vars(module).items():
                if type(value) is int and value in known and not any(word in attribute for word in _COUNTS):
                    yield name, attribute, *known[value]

    def _step(self, way: _Way, record: NarrowedHeads) -> NarrowHeads:
        output: Any = layer_of(self.model, record.layout.output)
        bias = output.bias is not None or bool(record.offset.any())
        return way.step(record, self.attention.tables, bias=bias)

    def _tried(self, record: NarrowedHeads, way: _Way) -> str:
        """Put the heads in and return what is wrong with that; nothing where it is right."""
        layout = record.layout
        expected = self._run(record)
        originals = [(name, self.model.get_submodule(name)) for name in layout.layers]
        step = self._step(way, record)
        weights = self._weights(record, way.scale(layout, record.size))
        step.apply(self.model)
        for name, (weight, bias) in weights.items():
            fill(layer_of(self.model, name), torch.from_numpy(weight), None if bias is None else torch.from_numpy(bias))

        def prove() -> None:
            if not alike(self._run(), expected):
                raise UnsupportedLayerError("the network does not compute the same")

        try:
            prove()
        except UnsupportedLayerError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  # the original ran: whatever it is comes of the surgery
            return f"the network fails with them ({type(error).__name__}: {error})"
        require_no_copy_used(self.model, originals, prove)
        return ""

    def _weights(self, record: NarrowedHeads, scale: float) -> dict[str, tuple[Matrix, Matrix | None]]:
        """Return weight and bias of each layer with the heads in it."""
        layout = record.layout
        queries = scale * record.queries.repeat(layout.shared, axis=0)
        maps = {layout.queries: queries, layout.keys: record.keys, layout.values: record.values}
        made: dict[str, tuple[Matrix, Matrix | None]] = {}
        for name, of_heads in maps.items():
            weight, bias = _numbers_of(layer_of(self.model, name))
            made[name] = _mapped(of_heads, weight), None if bias is None else _mapped(of_heads, bias[:, None])[:, 0]
        weight, bias = _numbers_of(layer_of(self.model, layout.output))
        shift = weight @ record.offset + (0.0 if bias is None else bias)
        made[layout.output] = weight @ record.restore, shift
        for name, numbers in made.items():
            require_range(
                name, matrix_of(layer_of(self.model, name)).dtype, *(one for one in numbers if one is not None)
            )
        return made

    def _run(self, record: NarrowedHeads | None = None) -> list[torch.Tensor]:
        """Return what the output layer reads and gives, and the network's outputs, with queries made loud.

        As if it had the heads of a `record`, where one is given: keys are projected, and so is what the layer reads.
        """
        seen: list[torch.Tensor] = []
        loud, layout = self.attention.loud, self.attention.layout

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            seen.append(tensor.clone())
            return tensor

        changes: dict[str, Change] = {layout.queries: lambda tensor: loud * tensor, layout.output: keep}
        reading: Change = keep
        if record is not None:
            keys = torch.from_numpy(np.einsum("grp,grq->gpq", record.queries, record.keys))
            kept = torch.from_numpy(record.values.repeat(layout.shared, axis=0))
            restore, offset = torch.from_numpy(record.restore), torch.from_numpy(record.offset)
            changes[layout.keys] = lambda given: by_head(given, keys)
            reading = lambda given: keep(by_head(given, kept)) @ restore.to(given).mT + offset.to(given)  # noqa: E731
        outputs = run_changed(self.model, self.example, changes, {layout.output: reading})
        return [*seen, *outputs]

    def _as_it_is(self, way: _Way) -> Callable[[], None]:
        """Return what makes the attention what it is now."""
        modules = {name: self.model.get_submodule(name) for name in self.attention.layout.layers}
        known = [(name, own, vars(self.model.get_submodule(name))[own]) for name, own, _, _ in way.attributes]
        tables = tables_as_they_are(self.model, self.attention.tables)

        def put_back() -> None:
            for name, module in modules.items():
                parent, _, child = name.rpartition(".")
                setattr(self.model.get_submodule(parent), child, module)
            tables()
            for name, attribute, value in known:
                setattr(self.model.get_submodule(name), attribute, value)

        return put_back

    def _words(self, reason: str) -> str:
        return (
            f"layer '{self.attention.layout.output}': the heads of its attention cannot be narrowed: {reason}: its "
            "modules have their size written into them, and not as a number that can be set"
        )


def _of_all(layout: HeadLayout) -> dict[int, tuple[int, int]]:
    """Return which widths are those of all heads, and how many."""
    return {layout.size * layout.groups: (layout.groups, 0), layout.size * layout.heads: (layout.heads, 0)}


def halved(layout: HeadLayout) -> NarrowedHeads:
    """Return heads of half the size that keep the first dimensions: to try what does not depend on which.

    Of rotary pairs every second one stays, beginning with the second: which they are must show.
    """
    every = np.arange(layout.rotated // 2)
    pairs, rest = every[1::2] if len(every) > 1 else every, (layout.size - layout.rotated) // 2
    others = layout.rotated + np.arange(rest if len(every) else max(1, rest))
    dimensions = np.append(dimensions_of(pairs, layout), others)
    size, kept = len(dimensions), np.eye(layout.size)
    scores, values = (np.repeat(rows[None], layout.groups, axis=0) for rows in (kept[dimensions], kept[:size]))
    restore = np.asarray(np.kron(np.eye(layout.heads), kept[:, :size]), np.float64)
    offset, stay = np.zeros(len(restore)), tuple(map(int, pairs))
    return NarrowedHeads(layout, scores, scores, values, restore, offset, 0.0, 0.0, stay)


def _mapped(of_heads: Matrix, weight: Matrix) -> Matrix:
    """(G r, d): each head's rows of a weight (G p, d) multiplied by its map (r, p)."""
    groups, size, before = of_heads.shape
    rows = np.einsum("grp,gpd->grd", of_heads, weight.reshape(groups, before, -1))
    return np.asarray(rows.reshape(groups * size, -1))


def _numbers_of(layer: Any) -> tuple[Matrix, Matrix | None]:
    weight = matrix_of(layer).detach().double().cpu().numpy()
    return weight, None if layer.bias is None else layer.bias.detach().double().cpu().numpy()
