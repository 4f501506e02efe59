"""Which layers read the very tensor that another one reads, as one forward pass shows: their rows are folded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

from dalr_stream.network.capture.batches import call, first_argument, inputs_copied
from dalr_stream.network.capture.reading import Reading, without_gradients
from dalr_stream.network.layers.groups import channels_of, part_of
from dalr_stream.network.layers.kinds import way_of_reading
from dalr_stream.network.layers.spec import LayerSpec, module_of
from dalr_stream.numerics.rows.streams import Side, module_name


def shared_readings(
    model: nn.Module, batch: Any, layers: Sequence[LayerSpec], passes: Mapping[str, int]
) -> dict[str, str]:
    """Return, for each stream of inputs that an earlier one of the same pass has too, that one.

    `passes` has the number of each stream's pass. Cost: a forward pass.
    """
    readings: dict[str, list[Reading]] = {layer.stream: [] for layer in layers if layer.side is Side.INPUTS}
    with ExitStack() as stack, without_gradients():
        for layer in layers:
            if layer.side is Side.INPUTS:
                module = module_of(model, module_name(layer.name))
                hook = _hook(layer, module, readings[layer.stream])
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        call(model, inputs_copied(batch))
    homes: dict[tuple[Any, ...], str] = {}
    shared = {stream: homes.setdefault((passes[stream], *seen), stream) for stream, seen in readings.items()}
    return {stream: home for stream, home in shared.items() if stream != home}


def _hook(layer: LayerSpec, module: nn.Module, readings: list[Reading]) -> Any:
    way = way_of_reading(part_of(layer.name, module))

    def entering(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        tensor = channels_of(layer.name, module, first_argument(arguments, keywords))
        readings.append(Reading.of(tensor, way))

    return entering
