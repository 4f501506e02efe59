"""What ranks hold and send where they share the sums of layers, in words."""

from __future__ import annotations

from dalr_stream.streaming.cost import in_mib
from dalr_stream.streaming.plan import MemoryPlan
from dalr_stream.streaming.ranks.strip_cost import StripPass


def strips_in_words(plan: MemoryPlan) -> list[str]:
    """Say, of each pass in which ranks share sums, what one of them holds and receives."""
    return [_of(one, plan) for one in plan.strips]


def _of(one: StripPass, plan: MemoryPlan) -> str:
    costs = [layer for layer in plan.layers if layer.name in one.layers]
    rows = sum(layer.disk_bytes for layer in costs) * (one.ranks - 1) // one.ranks
    more = "" if len(costs) == 1 else f" and {len(costs) - 1} more"
    return (
        f"'{one.layers[0]}'{more} in strips: a rank needs {in_mib(one.peak_bytes)} and receives {in_mib(rows)} of rows"
    )
