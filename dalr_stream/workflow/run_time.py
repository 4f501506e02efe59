"""How long capturing and accumulating take by a run file, by one process and by several, in words."""

from __future__ import annotations

from torch import nn

from dalr_stream.engine.duration import Duration, duration_of
from dalr_stream.errors import InvalidInputError
from dalr_stream.progress import seconds_in_words
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.lanes import SHARE_FOR_CHECKPOINTS
from dalr_stream.streaming.plan import MemoryPlan
from dalr_stream.workflow.results.strip_words import strips_in_words
from dalr_stream.workflow.runfile.project import Project

_BYTES_OF_A_PAIR = 4
"""Of a symmetric matrix half is sent, in float64."""


def in_words(project: Project, network: nn.Module, plan: MemoryPlan, ranks: int) -> tuple[str, ...]:
    """Say how long it takes, timed on the first batches, and what `ranks` processes send."""
    folding, took = project.widest_folding, None
    try:
        with project.code.importing():
            loaders = {domain: project.code.batches(domain) for domain in project.config.domains}
            layers = project.watched_in(network)
            took = duration_of(network, loaders, layers, folding, plan, rows=project.code.rows)
        network_seconds, sums_seconds = map(seconds_in_words, (took.passes_seconds, took.folding_seconds))
        line = (
            f"capture and accumulate: about {seconds_in_words(took.seconds)} on a machine like this one "
            f"({network_seconds} in the network, {sums_seconds} in sums; without loading and writing)"
        )
    except InvalidInputError as error:
        line = f"capture and accumulate: not timed: {error}"
    return (line,) if ranks == 1 else (line, _shared_out(plan, folding, ranks, took))


def _shared_out(plan: MemoryPlan, folding: Folding, ranks: int, took: Duration | None) -> str:
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
