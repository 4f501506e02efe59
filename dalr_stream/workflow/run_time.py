"""How long capturing and accumulating take by a run file, by one process and by several, in words."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dalr_stream.engine.blocks.duration import duration_of_blocks
from dalr_stream.engine.planning.duration import Duration, duration_of
from dalr_stream.engine.planning.estimate import estimate_of
from dalr_stream.engine.planning.rates import Rates
from dalr_stream.engine.planning.records import Estimate, bucket_in_words
from dalr_stream.errors import InvalidInputError
from dalr_stream.progress import seconds_in_words
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.lanes import SHARE_FOR_CHECKPOINTS
from dalr_stream.streaming.plan import MemoryPlan
from dalr_stream.workflow.results.strip_words import strips_in_words
from dalr_stream.workflow.runfile.project import Project

_BYTES_OF_A_PAIR = 4
"""Of a symmetric matrix half is sent, in float64."""


@dataclass(frozen=True, slots=True)
class RunTime:
    """How long a run's capture and accumulation take, and what they send and ask."""

    estimate: Estimate
    lines: tuple[str, ...]
    """The same in words."""


def run_time(
    project: Project, network: nn.Module, plan: MemoryPlan, ranks: int = 1, rates: Rates | None = None
) -> RunTime:
    """Return how long it takes, timed on the first batches where no rates are stated, and what is sent and asked."""
    folding, layers = project.widest_folding, project.watched_in(network)
    blocks = project.config.network.blocks
    took: Duration | None = None
    try:
        with project.code.importing():
            loaders = {domain: project.code.batches(domain) for domain in project.config.domains}
            if plan.blocks and rates in (None, Rates()):
                block = duration_of_blocks(
                    network, loaders, layers, folding, plan, blocks=blocks, rows=project.code.rows
                )
                took, line = block.duration, str(block)
            else:
                took = duration_of(network, loaders, layers, folding, plan, rows=project.code.rows, rates=rates)
                line = _in_words(took, rates or Rates())
    except InvalidInputError as error:
        line = f"capture and accumulate: not timed: {error}"
    foldings = {domain: project.folding(domain) for domain in project.config.domains}
    found = estimate_of(
        plan, layers, foldings, took or Duration(0.0, {}), store=project.store, ranks=ranks, rates=rates
    )
    shared = () if ranks == 1 else (shared_out(plan, folding, ranks, took),)
    bucket = (f"{project.store}: {bucket_in_words(found.requests)}",) if found.requests.puts else ()
    return RunTime(found, (line, *shared, *bucket))


def _in_words(took: Duration, rates: Rates) -> str:
    network, sums = map(seconds_in_words, (took.passes_seconds, took.folding_seconds))
    stated = rates.forward is not None or rates.sums is not None
    where = "at the rates stated" if stated else "on a machine like this one"
    return (
        f"capture and accumulate: about {seconds_in_words(took.seconds)} {where} ({network} in the network, {sums} in "
        "sums; without loading and writing)"
    )


def shared_out(plan: MemoryPlan, folding: Folding, ranks: int, took: Duration | None) -> str:
    """Say what several processes, each with such a machine for itself, take and send."""
    each = "" if took is None else f"about {seconds_in_words(took.seconds / ranks)} each; "
    if not plan.direct:
        sent = sum(layer.disk_bytes for layer in plan.layers) * (ranks - 1) // ranks
        return f"{ranks} ranks: {each}{_mib(sent)} of rows go to rank 0, which writes them; accumulate is its own"
    records = folding.shards + (folding.holdout.share > 0)
    whole = [layer for layer in plan.layers if plan.in_strips(layer.name) is None]
    sums = sum(_BYTES_OF_A_PAIR * layer.features * (layer.features + 1) for layer in whole) * records
    joins = (
        f"at each join rank 0 receives {(ranks - 1).bit_length()} x {_mib(sums)} of sums, ever more rarely until that "
        f"takes less than {SHARE_FOR_CHECKPOINTS:.0%} of the time"
    )
    return f"{ranks} ranks: {each}" + "; ".join(([joins] if whole else []) + strips_in_words(plan))


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
