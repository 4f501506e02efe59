"""The passes of a sequence over the batches: each solves the layers whose turn it is and puts them in their place."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dalr_stream.engine.sequential.layer_choice import LayerChoice
from dalr_stream.engine.sequential.onward_passes import OnwardPasses
from dalr_stream.engine.sequential.pass_moments import KnownMoments, PassMoments
from dalr_stream.engine.sequential.preparation import (
    passes_of,
    planned,
    require_attentions,
    require_heads,
    require_prunable,
    require_sound,
    targets_of,
)
from dalr_stream.engine.sequential.sequential_pass import LayerOutcome, SequentialPass, Solved
from dalr_stream.engine.sequential.targets import Target, require_a_stream
from dalr_stream.network.capture.passes import SameEveryPass, order_of_execution
from dalr_stream.network.capture.resuming.kept_states import Room
from dalr_stream.network.capture.row_rule import RowRule, rule_of
from dalr_stream.network.surgery.compress import compress
from dalr_stream.network.surgery.refitting import refit
from dalr_stream.numerics.options import parse_choice
from dalr_stream.progress import Progress, Silent
from dalr_stream.storage.places.place import Place, place_of
from dalr_stream.streaming.folding import Folding


@dataclass(frozen=True, slots=True, eq=False)
class SequentialCompression:
    """A network of which some of the named layers, from the first on, are compressed; in the end all of them."""

    network: nn.Module
    passes: tuple[tuple[str, ...], ...]
    """The layers of each planned pass, in order."""
    layers: Mapping[str, LayerOutcome] = field(default_factory=dict)
    """Those that are done, in order."""

    @property
    def left(self) -> tuple[tuple[str, ...], ...]:
        """The passes that are not done."""
        return tuple(group for group in self.passes if not set(group) <= self.layers.keys())


def last_of(passes: Iterator[SequentialCompression]) -> SequentialCompression:
    """Go through all passes and return what there is in the end; no network of an earlier one is kept."""
    return deque(passes, maxlen=1).pop()


def sequential_passes(  # noqa: PLR0913  # those of compress_sequentially
    model: nn.Module,
    batches: Iterable[Any],
    choices: Mapping[str, LayerChoice],
    *,
    target: Target | str = Target.OUTPUTS,
    source: Iterable[Any] | None = None,
    store: str | Place | None = None,
    rows: RowRule | None = None,
    folding: Folding | None = None,
    begun: SequentialCompression | None = None,
    known: KnownMoments | None = None,
    progress: Progress | None = None,
) -> Iterator[SequentialCompression]:
    """Yield what there is at the start and after each pass; arguments and errors as for `compress_sequentially`.

    Anything yielded may be kept and given back as `begun`: what it has is not done again, and the rest comes out the
    same. `known` is where moments of what the original reads may lie already: the first pass takes those.
    """
    folding, progress = folding or Folding(), progress or Silent()
    seen = SameEveryPass(batches)
    require_sound(model, choices, folding, has_source=source is not None)
    methods = {name: choice.by for name, choice in choices.items()}
    groups, heads = require_prunable(model, methods, seen), require_attentions(model, methods, seen)
    require_heads(choices, heads)
    first, rule = seen.first(), rule_of(rows).of_layers(())
    towards = parse_choice(Target, target, "target")
    targets = targets_of(model, first, methods, groups, towards)
    if towards is Target.STREAM:
        require_a_stream([targets])
    passes = passes_of(order_of_execution(model, first, list(methods)), methods)
    plan, batch = planned(model, passes, methods, targets, folding, rule, first, attentions=heads)
    onward = OnwardPasses(
        model, seen, passes, list(groups), targets.layers, rule, Room(plan.room_bytes), progress.note, attentions=heads
    )
    moments = PassMoments(model, rule, progress, onward, None if store is None else place_of(store), known, batch)
    one_pass = SequentialPass(
        model,
        choices,
        seen,
        None if source is None else SameEveryPass(source, "source"),
        folding,
        moments,
        targets,
        heads,
    )
    state, resumed = begun or SequentialCompression(model, passes), begun is not None
    del begun  # a network that is held here is held through all passes
    progress.note(f"layer after layer: {in_words(state.left)}")
    for words in targets.words:
        progress.note(words)
    yield state
    while state.left:
        state = after_a_pass(state, one_pass, onward, first, progress)
        if not state.left and not resumed:
            moments.drop_others()
        yield state


def after_a_pass(
    state: SequentialCompression, one_pass: SequentialPass, onward: OnwardPasses, example: Any, progress: Progress
) -> SequentialCompression:
    """Do the next pass: what it was solved from and the factors are gone before the one after it."""
    group = state.left[0]
    onward.begin(group)
    solved = one_pass.solve(group, state.network)
    for name, one in solved.items():
        progress.note(f"layer '{name}': {one.outcome}")
    small = _with(state.network, solved, example)
    onward.end(state.network, small)
    done = {**state.layers, **{name: one.outcome for name, one in solved.items()}}
    return SequentialCompression(small, state.passes, done)


def _with(network: nn.Module, solved: Mapping[str, Solved], example: Any) -> nn.Module:
    """Return a copy of the network with what was solved in place."""
    small = compress(network, {name: one.replacement for name, one in solved.items()}, example=example)
    for reader, fit in [pair for one in solved.values() for pair in one.refitted.items()]:
        refit(small, reader, fit.weight, fit.bias)
    return small


def in_words(passes: Sequence[Sequence[str]]) -> str:
    """Return the number of passes and what each is for: `2 passes over the data: fc6; fc7 + fc8`."""
    named = "; ".join(" + ".join(group) for group in passes)
    return f"{len(passes)} pass{'' if len(passes) == 1 else 'es'} over the data{f': {named}' if named else ''}"
