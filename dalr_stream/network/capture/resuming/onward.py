"""Passes over the same batches, each resuming the network where the pass before left it.

A pass that needs a layer's rows runs the network from its inputs to that layer, and no further. The next one needs a
later layer's. So what the modules before the first of them gave is kept of each batch, as long as there is room, and
takes the place of running them: the same operations on the same values, so the rows are the same to the bit.

It is tried, before the first pass, on a few samples at every place where a pass will begin, after other samples have
gone through (a module may leave something behind for later ones), and on the whole first batch of some passes.
Where it does not hold, every pass begins at the inputs, and that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.capture.batches import call, few_samples, first_argument, inputs_copied, samples_in
from dalr_stream.network.capture.order import Orders
from dalr_stream.network.capture.proofs.disturbed import with_sample_replaced
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.capture.resuming.calls import Call, ForwardCalls, calls_through, is_in
from dalr_stream.network.capture.resuming.given import AbsentError, UsedError, form_of, is_plain, mapped, tensors_in
from dalr_stream.network.capture.resuming.handing import Copies, Handing
from dalr_stream.network.capture.resuming.kept_states import KeptStream
from dalr_stream.network.capture.resuming.overwriting import overwriting, spoiling
from dalr_stream.network.capture.taken import Taken
from dalr_stream.network.layers.elsewhere import weights_elsewhere

SAMPLES = 2
"""Of the first batch, that a network is tried on."""
Done = Mapping[Call, bool]
"""Calls that are done at some place, and whether what they gave is used after it."""


class EnoughError(BaseException):
    """All rows that are wanted are taken: the rest of a forward pass is not needed."""


class ResumedPass(Protocol):
    """A pass of a network over the batches that begins where another one left them."""

    orders: Orders | None
    """What is proved of the order of the rows."""
    by_blocks: bool
    """Whether all rows are taken by the time that all to be kept is there, or else at the end of the network."""

    def take(self, rows: Callable[[ForwardRun], dict[str, Taken]], key: int) -> dict[str, Taken]:
        """Return the rows of the batch that begins with sample `key`; `rows` takes them from a forward pass."""


@dataclass(slots=True)
class OnwardPass:
    """One pass of a network over the batches, to the rows of some layers."""

    layers: Collection[str]
    """Whose rows are wanted."""
    stream: KeptStream
    keep: Done | None
    """What is kept for the next pass; None for nothing."""
    orders: Orders | None
    note: Callable[[str], None]
    tried: bool = False
    by_blocks: bool = False

    def take(self, rows: Callable[[ForwardRun], dict[str, Taken]], key: int) -> dict[str, Taken]:
        """Do what `ResumedPass` says."""
        state = self.stream.state(key)
        given = state.given if state is not None and state.reaches(self.layers) else {}
        try:
            onward = self._rows(rows, key, given)
        except UsedError:
            return self._from_the_inputs(rows, key, "what was not kept is used in one of the batches")
        if self.tried or not given:
            return onward
        self.tried = True
        whole = self._rows(rows, key, {})
        if onward.keys() != whole.keys() or not all(_same(one.rows, whole[name].rows) for name, one in onward.items()):
            return self._from_the_inputs(rows, key, "from what was kept it gives other rows")
        return whole

    def _rows(
        self, rows: Callable[[ForwardRun], dict[str, Taken]], key: int, given: Mapping[Call, Any]
    ) -> dict[str, Taken]:
        room = self.stream.room
        run = ForwardRun(given, self.keep or {}, room.spare_bytes, until_kept=self.by_blocks)
        taken = rows(run)
        room.refused |= run.is_full
        self.stream.keep(key, run.kept if self.keep is not None and run.is_complete else None)
        return taken

    def _from_the_inputs(
        self, rows: Callable[[ForwardRun], dict[str, Taken]], key: int, reason: str
    ) -> dict[str, Taken]:
        self.note(f"rows of {', '.join(self.layers)}: the network runs from its inputs again: {reason}")
        self.stream.forget()
        self.keep = None
        return self._rows(rows, key, {})


class ForwardRun:
    """Runs a network on one batch, as far as is needed: some calls give what is known, and others are remembered."""

    def __init__(
        self,
        given: Mapping[Call, Any],
        keep: Done,
        room_bytes: int | None = None,
        *,
        until_kept: bool = False,
        ran: Callable[[str, Any], None] | None = None,
        handing: Handing | None = None,
    ) -> None:
        """`room_bytes` is what copies may take beside what was given: with more to keep, nothing is kept.

        `until_kept` ends the forward pass as soon as all that is to be kept is there: when the next module is called,
        as hooks of the last one see what it gives only once it is done. `ran` is told of each module that was run, and
        what it gave. `handing` makes copies by default.
        """
        self.kept: dict[Call, Any] = {}
        self.is_full = False
        self._given, self._keep, self._room, self._ran = given, keep, room_bytes, ran
        self._handing: Handing = handing or Copies()
        self._rows_taken = until_kept and bool(keep)
        self._model: nn.Module | None = None
        """The network that is run, where its weights are not all in memory."""

    @property
    def is_complete(self) -> bool:
        """Whether all that is to be kept is there."""
        return not self.is_full and len(self.kept) == len(self._keep)

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """Run it, and return what it gives where it is run to its end; the batch is left as it is."""
        return self.called(model, lambda: call(model, inputs_copied(batch)))

    def called(self, model: nn.Module, forward: Callable[[], Any]) -> Any:
        """Do the same in a call of one's own: `forward` calls the network."""
        self._model = model if weights_elsewhere(model) is not None else None
        watched = self._given or self._keep or self._ran is not None
        through = calls_through(model, self._through) if watched else nullcontext()
        with self._handing.watching(model), suppress(EnoughError), through:
            return forward()

    def rows_taken(self) -> None:
        """End the forward pass, now or as soon as what is to be kept is there too."""
        self._rows_taken = True
        self._end_where_complete()

    def _through(self, way: Call, forward: Callable[[], Any]) -> Any:
        self._end_where_complete()
        given = way in self._given
        if not given:
            self._require_weights(way)
        value = mapped(self._given[way], self._handing.out) if given else forward()
        if not given and self._ran is not None:
            self._ran(way[-1][0], value)
        if way in self._keep and not self.is_full and (given or is_plain(value)):
            self.kept[way] = self._handing.keep(way, value, self._given.get(way), used=self._keep[way])
            if self._room is not None and self._handing.held_bytes > self._room:
                self.kept, self.is_full = {}, True
                self._handing.give_up()
        return value

    def _require_weights(self, way: Call) -> None:
        """Raise AbsentError for a module that is run where its weights are not there."""
        module = None if self._model is None else self._model.get_submodule(way[-1][0])
        if module is not None and any(one is not None and one.is_meta for one in module._parameters.values()):  # noqa: SLF001
            raise AbsentError

    def _end_where_complete(self) -> None:
        if self._rows_taken and (self.is_complete or self.is_full):
            raise EnoughError


def require_onward(model: nn.Module, batch: Any, places: Sequence[Collection[str]]) -> list[Done]:
    """Return, for each place, the calls that are done before the first of its layers, and whether they are used later.

    `places` follow one another; each names all layers whose rows are taken from it on, or that change. Raises
    UnsupportedLayerError, with the reason, where the network cannot be run on from one of them to the same numbers.
    Cost: three forward passes of two samples, four where modules overwrite their inputs, and for each place what comes
    after it.
    """
    few = few_samples(batch, SAMPLES)
    try:
        calls = ForwardCalls.of(model, few)
        done = [calls.done_before(names) for names in places]
        reason = _differs(model, few, places, done)
    except UsedError:
        reason = "one asks for numbers that were not kept"
    except Exception as error:  # noqa: BLE001  # whatever a network does when it is called so is a reason not to
        reason = f"{type(error).__name__}: {error}"
    if reason:
        raise UnsupportedLayerError(reason)
    return done


def held_of_sample(model: nn.Module, batch: Any, places: Sequence[Collection[str]]) -> list[int]:
    """Return, for each place, the bytes of one sample that are kept there; raises as `require_onward` does."""
    done, few = require_onward(model, batch, places), few_samples(batch, SAMPLES)
    _, kept = _numbers_at(model, few, (), {}, dict.fromkeys({way for one in done for way in one}, True))
    sizes = {way: sum(tensor.nbytes for tensor in tensors_in((value,))) for way, value in kept.items()}
    return [sum(sizes[way] for way, used in one.items() if used) // samples_in(few) for one in done]


def _differs(model: nn.Module, few: Any, places: Sequence[Collection[str]], done: Sequence[Done]) -> str:
    """Return what comes out otherwise; nothing where all is the same.

    From the last place to the first: what modules before a place may leave behind is then of the other samples still.
    """
    keep: dict[Call, bool] = {}
    for one in done:
        keep |= {way: used or keep.get(way, False) for way, used in one.items()}
    with overwriting(model, {way[-1][0] for way in keep}) as overwriters:
        expected, kept = _numbers_at(model, few, places[0], {}, keep)
    if overwriters:
        with spoiling(model, overwriters):
            spoilt, _ = _numbers_at(model, few, places[0], {}, {})
        if not _all_same(spoilt, expected):
            return f"'{next(iter(overwriters))}' overwrites in place what others use after it"
    other = with_sample_replaced(few, samples_in(few))
    if other is not None:
        _numbers_at(model, other.batch, (), {}, {})
    for names, one in reversed(list(zip(places, done, strict=True))):
        given = {way: kept[way] if used else mapped(kept[way], form_of) for way, used in one.items()}
        found, _ = _numbers_at(model, few, names, given, {})
        for name in found.keys() | {key for key in expected if is_in(key[0], names)}:
            if name not in found or name not in expected or not _same(found[name], expected[name]):
                return f"'{name[0]}' comes out otherwise"
    return ""


Numbers = dict[tuple[str, int], torch.Tensor]
"""What a layer reads and gives in each of its calls."""


def _numbers_at(
    model: nn.Module, batch: Any, names: Collection[str], given: Mapping[Call, Any], keep: Done
) -> tuple[Numbers, dict[Call, Any]]:
    numbers: Numbers = {}

    def note(name: str, tensor: torch.Tensor) -> None:
        numbers[name, sum(known == name for known, _ in numbers)] = tensor.clone()

    with ExitStack() as stack, without_gradients():
        for name in names:
            module = model.get_submodule(name)
            stack.callback(
                module.register_forward_pre_hook(
                    lambda _, args, kwargs, name=name: note(name, first_argument(args, kwargs)), with_kwargs=True
                ).remove
            )
            stack.callback(module.register_forward_hook(lambda _, __, out, name=name: note(name, out)).remove)
        run = ForwardRun(given, keep)
        run(model, batch)
    return numbers, run.kept


def _all_same(some: Numbers, others: Numbers) -> bool:
    return some.keys() == others.keys() and all(_same(one, others[key]) for key, one in some.items())


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether two tensors are the same to the bit, but for which NaN it is."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
