"""What a sequence does before its first pass: which passes there are, towards what, within which memory.

Whatever can be known to fail is refused here, before any pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from dalr_stream.engine.cross.cost import PairMemory
from dalr_stream.engine.own_weights import require_own_weights
from dalr_stream.engine.sequential.layer_choice import LayerChoice
from dalr_stream.engine.sequential.pass_plan import PassesOf, SequencePlan, plan_passes, watched_in_passes
from dalr_stream.engine.sequential.targets import StreamTargets, Target
from dalr_stream.errors import InvalidInputError, RankError, UnsupportedLayerError
from dalr_stream.network.capture.passes import SameEveryPass
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.groups import parts_of
from dalr_stream.network.layers.kinds import matrix_of
from dalr_stream.network.layers.spec import layer_of
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.surgery.rehearsal import try_heads
from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.rows.streams import module_name
from dalr_stream.numerics.statistics.channels import ChannelGroup
from dalr_stream.streaming.folding import Folding


def passes_of(order: Sequence[Sequence[str]], methods: Mapping[str, Method]) -> tuple[tuple[str, ...], ...]:
    """Return the layers of each pass. A selection has one of its own: what reads its nodes comes later, after others.

    So do the heads of an attention, under its output layer. The order within a group is that of execution, and the
    layers on either side of a selection read the same tensor still: they may share a pass before it.
    """
    passes: list[tuple[str, ...]] = []
    for group in order:
        factored = [name for name in group if methods[name].family is Family.LOW_RANK]
        passes += [tuple(factored)] if factored else []
        passes += [(name,) for name in group if name not in factored]
    return tuple(passes)


def planned(  # noqa: PLR0913  # all that decides what the passes hold
    model: nn.Module,
    passes: Sequence[Sequence[str]],
    methods: Mapping[str, Method],
    targets: StreamTargets,
    folding: Folding,
    rule: RowRule,
    example: Any,
    *,
    attentions: Mapping[str, HeadLayout] | None = None,
) -> tuple[SequencePlan, PairMemory | None]:
    """Return what the passes hold, and what a batch takes where a limit asks for it.

    Raises MemoryLimitError where a layer does not fit, before the passes that lead to it.
    """
    selected = [name for name, method in methods.items() if method.family is Family.SELECTION]
    structure = Structure.of(model, example) if selected else None
    batch, heads = None, attentions or {}
    if folding.memory_limit_bytes is not None:
        mended = [name for name in selected if targets.layers and methods[name].restores]
        names = [*methods, *(name for layout in heads.values() for name in layout.layers[:-1])]
        watched = watched_in_passes(model, names, selected, structure, mended)
        batch = PairMemory.of([model], example, watched, rule)
    readers = {name: structure.group_of(name).reader_names for name in selected} if structure is not None else {}
    restored = [name for name, method in methods.items() if method.restores or name not in selected]
    mending = [name for name in restored if targets.mends(name, readers.get(name, ()))]
    of = PassesOf(model, passes, {name: (one,) for name, one in methods.items()}, structure, mending, heads)
    plan = plan_passes(of, folding, batch)
    plan.require()
    return plan, batch


def targets_of(
    model: nn.Module,
    example: Any,
    methods: Mapping[str, Method],
    groups: Mapping[str, ChannelGroup],
    target: Target,
) -> StreamTargets:
    """Return which layers are solved towards a stream: none where outputs are the target, nor by what sees no data."""
    if target is Target.OUTPUTS:
        return StreamTargets()
    factored = [name for name in methods if name not in groups and methods[name] is not Method.SVD]
    restored = {name: group for name, group in groups.items() if methods[name].restores}
    return StreamTargets.found(model, example, factored, restored)


def require_sound(model: nn.Module, choices: Mapping[str, LayerChoice], folding: Folding, *, has_source: bool) -> None:
    """Raise for whatever can be known to fail without a batch."""
    training = [name or "the network" for name, module in model.named_modules() if module.training]
    if training:
        raise InvalidInputError(
            f"the network must be in eval mode, '{training[0]}' is in train mode: call model.eval()"
        )
    if not choices:
        raise InvalidInputError("layer after layer: needs at least one layer, got none")
    if folding.shards > 1:
        raise InvalidInputError(
            f"folding.shards: passes of layer after layer keep their moments whole, got shards={folding.shards}: leave "
            "it out; accumulate_cross keeps shards of cross moments"
        )
    for name, choice in choices.items():
        if not isinstance(choice, LayerChoice):
            raise InvalidInputError(
                f"layer '{name}': takes one LayerChoice(method, size), a factor pair or a selection and not both, got "
                f"{choice!r}"
            )
        if module_name(name) != name:
            raise InvalidInputError(
                f"layer '{name}': it is a group of a convolution: choose for '{module_name(name)}', all of its groups "
                "together"
            )
        _require_size(name, choice, layer_of(model, name))
        if choice.layer is not None:
            require_own_weights(model, name, choice.layer, "layer after layer")
        if choice.by.needs_source and not has_source:
            raise InvalidInputError(
                f"layer '{name}': {choice.by.value} compares two domains: give source= (solve.source)"
            )


def require_prunable(model: nn.Module, methods: Mapping[str, Method], target: SameEveryPass) -> dict[str, ChannelGroup]:
    """Return the group of each layer whose nodes are selected; raises where one cannot be pruned."""
    selected = [name for name, method in methods.items() if method.family is Family.SELECTION]
    structure = Structure.of(model, target.first()) if selected else None
    return {} if structure is None else {name: structure.group_of(name) for name in selected}


def require_attentions(model: nn.Module, methods: Mapping[str, Method], target: SameEveryPass) -> dict[str, HeadLayout]:
    """Return the attention of each layer whose heads get narrower; raises UnsupportedLayerError where they cannot."""
    named = [name for name, method in methods.items() if method.family is Family.HEADS]
    if not named:
        return {}
    structure = Structure.of(model, target.first())
    found = {name: structure.heads_of(name) for name in named}
    for reason in try_heads(structure, found).values():
        if isinstance(reason, str):
            raise UnsupportedLayerError(reason)
    return found


def require_heads(choices: Mapping[str, LayerChoice], attentions: Mapping[str, HeadLayout]) -> None:
    """Raise for what heads do not have: RankError for a size, InvalidInputError for gradients that are to weigh them.

    And where another layer of an attention is to be compressed as well.
    """
    for name, layout in attentions.items():
        size = choices[name].size
        if size not in layout.sizes:
            even = f", in steps of {layout.step}" if layout.step > 1 else ""
            raise RankError(
                f"layer '{name}': size of a head must lie in {layout.step}..{layout.size}{even}, got {size}"
            )
        for layer in layout.layers[:-1]:
            if layer in choices:
                raise InvalidInputError(
                    f"layer '{layer}': belongs to the attention of '{name}', whose heads get narrower: leave out one "
                    "of them, or compress the result once more"
                )
        choices[name].gradients_of(layout)  # read again at its turn: those of all attentions are not held


def _require_size(name: str, choice: LayerChoice, layer: nn.Module) -> None:
    outputs, inputs = matrix_of(layer).shape
    if choice.by.family is Family.HEADS:
        outputs = inputs  # how many heads there are shows when a batch goes through
    most = outputs if choice.selects else min(outputs // len(parts_of(name, layer)), inputs)
    if not isinstance(choice.size, int) or isinstance(choice.size, bool) or not 1 <= choice.size <= most:
        what = {Family.SELECTION: "number of kept nodes", Family.HEADS: "size of a head"}.get(choice.by.family, "rank")
        raise RankError(f"layer '{name}': {what} must lie in 1..{most}, got {choice.size}")
