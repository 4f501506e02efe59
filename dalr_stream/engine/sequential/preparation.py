"""What a sequence does before its first pass: which passes there are, towards what, within which memory.

Whatever can be known to fail is refused here, before any pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from dalr_stream.engine.cross import narrowest_pair_load, pair_load
from dalr_stream.engine.fold_passes import direct_plan
from dalr_stream.engine.sequential.onward_passes import KEPT_BYTES
from dalr_stream.engine.sequential.sequential_pass import LayerChoice
from dalr_stream.engine.sequential.targets import StreamTargets, Target
from dalr_stream.errors import InvalidInputError, RankError
from dalr_stream.network.capture.passes import SameEveryPass
from dalr_stream.network.layers.groups import parts_of
from dalr_stream.network.layers.kinds import matrix_of
from dalr_stream.network.layers.spec import layer_of, select_layers
from dalr_stream.network.structure.graph import Structure
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.rows.streams import module_name
from dalr_stream.numerics.statistics.channels import ChannelGroup
from dalr_stream.streaming.folding import Folding


def passes_of(order: Sequence[Sequence[str]], choices: Mapping[str, LayerChoice]) -> tuple[tuple[str, ...], ...]:
    """Return the layers of each pass. A selection has one of its own: what reads its nodes comes later, after others.

    The order within a group is that of execution, and the layers on either side of a selection read the same tensor
    still: they may share a pass before it.
    """
    passes: list[tuple[str, ...]] = []
    for group in order:
        together = tuple(name for name in group if not choices[name].selects)
        passes += [together] if together else []
        passes += [(name,) for name in group if choices[name].selects]
    return tuple(passes)


def room_of(
    model: nn.Module,
    passes: Sequence[Sequence[str]],
    choices: Mapping[str, LayerChoice],
    targets: StreamTargets,
    folding: Folding,
) -> int:
    """Return how much the memory limit leaves for what is kept between passes.

    Raises MemoryLimitError where the cross moments of one layer alone do not fit, before the passes that lead to it.

    Those of the first pass are moments of inputs alone. An earlier selection may narrow a layer: this is at most.
    """
    later = [name for group in passes[1:] for name in group if not choices[name].selects]
    if not later:
        return KEPT_BYTES
    loads = [
        pair_load(layer) if targets.mends(module_name(layer.name)) else narrowest_pair_load(layer)
        for layer in select_layers(model, later)
    ]
    needed = direct_plan(loads, folding)
    needed.require()
    limit = folding.memory_limit_bytes
    return KEPT_BYTES if limit is None else min(KEPT_BYTES, limit - needed.peak_bytes)


def targets_of(
    model: nn.Module,
    example: Any,
    choices: Mapping[str, LayerChoice],
    groups: Mapping[str, ChannelGroup],
    target: Target,
) -> StreamTargets:
    """Return which layers are solved towards a stream: none where outputs are the target, nor by what sees no data."""
    if target is Target.OUTPUTS:
        return StreamTargets()
    factored = [name for name in choices if name not in groups and choices[name].by is not Method.SVD]
    restored = {name: group for name, group in groups.items() if choices[name].by.restores}
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
        raise InvalidInputError(f"cross moments are kept whole: leave out shards={folding.shards}")
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
        if choice.by.needs_source and not has_source:
            raise InvalidInputError(f"layer '{name}': {choice.by.value} compares two domains: give source=")


def require_prunable(
    model: nn.Module, choices: Mapping[str, LayerChoice], target: SameEveryPass
) -> dict[str, ChannelGroup]:
    """Return the group of each layer whose nodes are selected; raises where one cannot be pruned."""
    selected = [name for name, choice in choices.items() if choice.selects]
    structure = Structure.of(model, target.first()) if selected else None
    return {} if structure is None else {name: structure.group_of(name) for name in selected}


def _require_size(name: str, choice: LayerChoice, layer: nn.Module) -> None:
    outputs, inputs = matrix_of(layer).shape
    most = outputs if choice.selects else min(outputs // len(parts_of(name, layer)), inputs)
    if not isinstance(choice.size, int) or isinstance(choice.size, bool) or not 1 <= choice.size <= most:
        what = "number of kept nodes" if choice.selects else "rank"
        raise RankError(f"layer '{name}': {what} must lie in 1..{most}, got {choice.size}")
