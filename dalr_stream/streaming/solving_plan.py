"""What solving a run's layers will hold, under a limit: by every method within it, or refused with what would fit."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace

from dalr_stream.errors import MemoryLimitError
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.streaming.cost import in_mib
from dalr_stream.streaming.solving_cost import SolvedLayer, SolvingCost, solving_cost


@dataclass(frozen=True, slots=True)
class SolvingPlan:
    """Every layer with the methods that it is solved by; one solution is made at a time."""

    layers: tuple[tuple[SolvedLayer, tuple[Method, ...]], ...]
    memory_limit_bytes: int | None = None

    @classmethod
    def of(cls, layers: Iterable[tuple[SolvedLayer, Iterable[Method]]], limit: int | None) -> SolvingPlan:
        """Make a plan."""
        return cls(tuple((layer, tuple(methods)) for layer, methods in layers), limit)

    @property
    def costs(self) -> tuple[SolvingCost, ...]:
        """Of every layer by each of its methods."""
        return tuple(solving_cost(layer, method) for layer, methods in self.layers for method in methods)

    @property
    def peak_bytes(self) -> int:
        """Of the solution that takes most."""
        return max((cost.peak_bytes for cost in self.costs), default=0)

    def require(self) -> None:
        """Raise MemoryLimitError naming a solution that does not fit, what would, and every method that does not."""
        limit = self.memory_limit_bytes
        if limit is None:
            return
        for layer, methods in self.layers:
            over = [cost for method in methods if (cost := solving_cost(layer, method)).peak_bytes > limit]
            if not over:
                continue
            worst = max(over, key=lambda cost: cost.peak_bytes)
            names = ", ".join(cost.method.value for cost in over)
            leave_out = f"leave {names} out of solve.methods" if len(over) < len(methods) else ""
            remedies = (*alternatives(layer, worst.method, limit), *([leave_out] if leave_out else []))
            raise MemoryLimitError(
                f"layer '{layer.name}': solving {layer.outputs:,} x {layer.inputs:,} by {worst.method.value} needs "
                f"{in_mib(worst.peak_bytes)} (route: {worst.route.value}), the limit is {in_mib(limit)}: "
                + "; ".join((*remedies, "or raise the limit"))
            )


def alternatives(layer: SolvedLayer, method: Method, limit: int) -> tuple[str, ...]:
    """Say what else could be done about one layer and method, and what it would need; what fits `limit` comes first."""
    others: dict[str, int] = {}
    if method.family is Family.LOW_RANK:
        options = method.dalr_options
        if options is not None and not options.variant.shrinks_to_weight:
            if not layer.rows_kept and layer.rows < layer.inputs:
                kept = solving_cost(replace(layer, rows_kept=True), method).peak_bytes
                others["keep the rows (capture.keep_activations = true), which are fewer than features"] = kept
            elif fewer := _rows_within(layer, method, limit):
                sampled = solving_cost(replace(layer, rows=fewer, rows_kept=True), method).peak_bytes
                others[f"keep at most {fewer:,} rows, fewer than features (capture.most_per_sample)"] = sampled
            anchored = Method.DALR_ANCHORED_AFFINE if options.affine else Method.DALR_ANCHORED
            others[f"solve by {anchored.value}"] = solving_cost(layer, anchored).peak_bytes
        if method is not Method.SVD:
            others["solve by svd"] = solving_cost(layer, Method.SVD).peak_bytes
    if layer.shards > 1:
        others["keep no shards"] = solving_cost(replace(layer, shards=1), method).peak_bytes
    ordered = sorted(others.items(), key=lambda other: other[1] > limit)
    words = [f"{what} ({in_mib(peak)}{', which fits' if peak <= limit else ''})" for what, peak in ordered]
    return tuple(dict.fromkeys(words))


def _rows_within(layer: SolvedLayer, method: Method, limit: int) -> int:
    """Return the most rows, fewer than features, that can be solved from within `limit`; 0 where none can."""
    few = range(1, min(layer.rows, layer.inputs))
    return bisect_right(
        few, limit, key=lambda rows: solving_cost(replace(layer, rows=rows, rows_kept=True), method).peak_bytes
    )
