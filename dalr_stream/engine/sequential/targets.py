"""What the layers of a sequence are solved towards, and which of them write into a residual stream.

outputs    z, what the layer gives in the original
stream     z' = z + (r - r~): besides, what the stream that takes its output in has lost by then, where there is one
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from torch import nn

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.layers.kinds import channels_read
from dalr_stream.network.layers.spec import layer_of
from dalr_stream.network.structure.stream import not_into_a_stream
from dalr_stream.numerics.statistics.channels import ChannelGroup


class Target(StrEnum):
    """Towards what layers are solved one after the other."""

    OUTPUTS = "outputs"
    """What each layer gives in the original."""
    STREAM = "stream"
    """That, and what the residual stream that takes it in has lost by then; of other layers what they give."""


@dataclass(frozen=True, slots=True)
class StreamTargets:
    """Which layers of a sequence are solved towards the stream, those that read a selection's nodes among them."""

    layers: frozenset[str] = frozenset()
    """Whose output a stream takes in: layers with factors, and readers of nodes that are selected."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why the others are solved towards their own outputs, or nodes, alone."""
    mend: bool = False
    """Whether any layer is solved towards a stream."""

    @classmethod
    def found(
        cls, model: nn.Module, example: Any, factored: Sequence[str], restored: Mapping[str, ChannelGroup]
    ) -> StreamTargets:
        """Look at layers that get factors, and at those that read the nodes of the selections `restored`."""
        readers = [name for group in restored.values() for name in group.reader_names]
        reasons = not_into_a_stream(model, example, [*factored, *readers])
        into = frozenset(name for name, reason in reasons.items() if not reason)
        others = {name: reasons[name] for name in factored if name not in into}
        unfit = {name: _unfit(model, group, reasons) for name, group in restored.items()}
        others |= {name: reason for name, reason in unfit.items() if reason}
        return cls(into, others, mend=len(others) < len(factored) + len(restored))

    def mends(self, name: str, readers: Collection[str] = ()) -> bool:
        """Tell whether a layer, or what reads the nodes selected in it, is solved towards the stream."""
        return name not in self.reasons and self.layers.issuperset(readers or [name])

    @property
    def words(self) -> Iterator[str]:
        """Yield a sentence for each layer that is solved towards its outputs alone."""
        for name, reason in self.reasons.items():
            yield f"layer '{name}' is solved towards its own outputs: {reason}"


def require_a_stream(targets: Iterable[StreamTargets]) -> None:
    """Raise UnsupportedLayerError where no stream takes in what any layer gives."""
    found = list(targets)
    if any(one.mend for one in found):
        return
    reasons = [f"'{name}': {reason}" for one in found for name, reason in one.reasons.items()]
    told = "; ".join(reasons) or "truncated SVD and pruning see no target"
    raise UnsupportedLayerError(
        f'target = "stream": no residual stream takes in what the layers give: {told}: take target = "outputs"'
    )


def _unfit(model: nn.Module, group: ChannelGroup, reasons: Mapping[str, str]) -> str:
    """Return why nodes are restored for themselves, and their readers not solved; empty where they are."""
    for reader in group.readers:
        name, layer = reader.span.layer, layer_of(model, reader.span.layer)
        if reader.span.repeats != 1:
            return f"'{name}', which reads its nodes, reads them with other nodes' in between, channels last"
        if channels_read(layer) != group.channels * reader.span.block:
            return f"'{name}', which reads its nodes, reads others beside them"
        if reasons[name]:
            return f"'{name}' reads its nodes, and {reasons[name]}"
    return ""
