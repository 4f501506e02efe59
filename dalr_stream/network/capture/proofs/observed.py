"""What one forward pass shows of the rows of some layers: four random projections of each, at each call of a layer.

Nothing as large as the activations is kept, and a row that differs from another pass's is found all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dalr_stream.network.capture.batches import first_argument
from dalr_stream.network.layers.groups import channels_of, part_of
from dalr_stream.network.layers.kinds import (
    CONVOLUTIONS,
    LayerRows,
    rows_entering,
    rows_leaving,
    rows_of_channels,
)
from dalr_stream.network.layers.readable import require_readable
from dalr_stream.network.layers.spec import LayerSpec, module_of
from dalr_stream.numerics.rows.streams import Side, module_name

PROJECTIONS = 4
ROUNDING = 1e-5
"""Of the largest projection: far above that of float32, far below what another token changes."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one call showed of a layer's rows."""

    leading: tuple[int, ...]
    """Their dimensions, without the features."""
    projections: torch.Tensor
    """(rows, 4)"""

    def changed(self, other: Seen) -> NDArray[np.bool_]:
        """(rows,): which rows are not those of another pass."""
        scale = float(self.projections.abs().nan_to_num(posinf=0.0, neginf=0.0).max()) if len(self.projections) else 0.0
        same = torch.isclose(other.projections, self.projections, rtol=0.0, atol=ROUNDING * scale, equal_nan=True)
        differs: NDArray[np.bool_] = (~same).any(dim=1).cpu().numpy()
        return differs


Calls = Sequence[Seen]
"""Of one layer, in their order."""
Observed = dict[str, list[Seen]]
"""By stream."""


def differ(one: Calls, other: Calls) -> bool:
    """Tell whether two passes gave a layer other rows."""
    return len(one) != len(other) or any(
        a.leading != b.leading or bool(b.changed(a).any()) for a, b in zip(one, other, strict=True)
    )


@contextmanager
def observed_pass(model: nn.Module, layers: Sequence[LayerSpec]) -> Iterator[Observed]:
    """Collect the projections of each layer's rows in one forward pass, call after call; none of one never called."""
    observed: Observed = {}
    with ExitStack() as stack:
        for layer in layers:
            module = module_of(model, module_name(layer.name))
            hook = _hook(layer, module, observed)
            if layer.at_outputs:
                stack.callback(module.register_forward_hook(hook).remove)
            else:
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield observed


def _hook(layer: LayerSpec, module: nn.Module, observed: Observed) -> Any:
    part = part_of(layer.name, module)

    def see(tensor: torch.Tensor) -> None:
        require_readable(layer.stream, tensor)
        rows = _rows(layer, part, channels_of(layer.name, module, tensor))
        observed.setdefault(layer.stream, []).append(Seen(rows.leading, projections(rows)))

    if layer.at_outputs:
        return lambda _module, _arguments, outputs: see(outputs)
    return lambda _module, arguments, keywords: see(first_argument(arguments, keywords))


def _rows(layer: LayerSpec, part: nn.Module, tensor: torch.Tensor) -> LayerRows:
    """Return a layer's rows; in place of patches, which overlap, the pixels that they are made of."""
    if layer.at_outputs:
        return rows_leaving(part, tensor)
    if layer.side is Side.CHANNELS:
        return rows_of_channels(layer.name, part, tensor, layer.channels, layer.repeats)
    if isinstance(part, CONVOLUTIONS) and tensor.ndim == len(part.kernel_size) + 2:
        return LayerRows(tensor.detach().movedim(1, -1), tensor.ndim - 1)
    return rows_entering(layer.name, part, tensor)


def projections(rows: LayerRows) -> torch.Tensor:
    """(rows, 4): random projections of rows."""
    flat = rows.tensor.reshape(int(np.prod(rows.leading)), -1)
    wide = flat if flat.dtype == torch.float64 else flat.float()
    generator = torch.Generator().manual_seed(flat.shape[1])
    directions = torch.randn(flat.shape[1], PROJECTIONS, generator=generator, dtype=wide.dtype)
    return wide @ directions.to(wide.device)
