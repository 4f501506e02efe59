"""How rows become moments: held-out share, shards, precision, device, workers and memory limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dalr_stream.numerics.linalg.precision import Precision
from dalr_stream.numerics.linalg.rank_k import blas_build, usable_cores
from dalr_stream.numerics.options import parse_choice
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.statistics.fold_rule import ANY_BLAS, NUMPY, SUMMATION, FoldRule
from dalr_stream.streaming.cluster import Cluster
from dalr_stream.streaming.lanes import Pace

CUPY = "cupy"
MOST_READERS = 8
"""Unpacking a tile takes one core some 50 ms, a data centre GPU folds it in 2."""
MANY_SEGMENTS = 2**16
"""Counted where a loader has no length: their tree holds some twenty sums."""


@dataclass(frozen=True, slots=True)
class Threads:
    """Fold on this machine's threads.

    Attributes
    ----------
    workers
        Threads that fold; by default as many as this process may use cores.
    readers
        Threads beside each of them that read and unpack rows of a store ahead of the fold.
    """

    workers: int = field(default_factory=usable_cores)
    readers: int = 1


Workers = Threads | Cluster


@dataclass(frozen=True, slots=True)
class Folding:
    """How rows become moments: what is held out, who folds, and within which memory.

    Attributes
    ----------
    holdout
        Which samples are held out: a tenth by default.
    workers
        Threads of this process, all cores by default, or a cluster. No bit depends on it.
    memory_limit_bytes
        Memory limit for folding on threads, beyond what the process holds already; see `plan`. Of several ranks each
        has it: the sums of a layer that fits on none of them are shared by all.
    pace
        When checkpoints are written.
    precision
        Precision of the products; `single` is the fast mode, see `numerics.Precision` for what it costs.
    device
        Where torch folds: `cuda`, `cuda:1` or `cpu`; or `cupy`, where CuPy folds what lies in a store. By default
        numpy does, in this process's memory.
    shards
        Also keep the moments of this many random parts of the training samples: what a jackknife leaves out one by
        one. From a store each is folded in a pass of its own over the rows; directly all of them are held at once.
    any_blas
        Accept workers whose BLAS is another build, or chose another kernel for another CPU, and record that bits
        may depend on who folded what. By default they are refused.
    segment_batches
        Cut tiles at every so many batches and add up what lies between in a fixed tree, so that each of several ranks
        (`open_ranks`) can fold its own batches, to the bits of one process. For rows folded as a network makes them;
        0, the default, cuts tiles across batches: then several ranks send one another their rows and share the sums.

    Examples
    --------
    >>> import dalr_stream as ds
    >>> folding = ds.Folding(holdout=ds.HoldoutRule(share=0.2), workers=ds.Threads(2), memory_limit_bytes=2**30)
    >>> folding.threads.workers
    2
    """

    holdout: HoldoutRule = field(default_factory=HoldoutRule)
    workers: Workers = field(default_factory=Threads)
    memory_limit_bytes: int | None = None
    pace: Callable[[], Pace] = Pace
    precision: Precision | str = Precision.DOUBLE
    device: str | None = None
    shards: int = 1

    any_blas: bool = False
    segment_batches: int = 0

    def __post_init__(self) -> None:
        parse_choice(Precision, self.precision, "precision")
        self.rule(0)  # raises where the shards are none

    @property
    def threads(self) -> Threads:
        """Threads of this process; one where a cluster does the work, or a device, for which others read ahead."""
        if self.device is not None:
            return Threads(1, readers=min(usable_cores(), MOST_READERS))
        return self.workers if isinstance(self.workers, Threads) else Threads(1)

    @property
    def scheduled_on(self) -> Workers:
        """The cluster, or the threads of this process."""
        return self.workers if isinstance(self.workers, Cluster) else self.threads

    def rule(self, features: int) -> FoldRule:
        """Return the rule by which rows of a width are folded."""
        kind = (self.device or "").partition(":")[0]
        engine = NUMPY if self.device is None else "cupy:cuda" if kind == CUPY else f"torch:{kind}"
        blas = "" if engine != NUMPY else ANY_BLAS if self.any_blas else blas_build()
        return FoldRule(
            features, self.holdout, Precision(self.precision), engine, self.shards, self.segment_batches, blas
        )

    def segments(self, batches: int | None) -> int:
        """Return how many segments so many batches have, for plans; 0 where tiles are cut across batches."""
        if not self.segment_batches:
            return 0
        return MANY_SEGMENTS if batches is None else max(-(-batches // self.segment_batches), 1)

    @property
    def facts(self) -> dict[str, Any]:
        """What of this decides bits, for provenance."""
        return {name: value for name, value in rule_facts(self.rule(0)).items() if name != "features"}


_LAST_BITS = "blas", "summation"
"""What of a rule decides how sums are rounded, and nothing else."""


def rule_facts(rule: FoldRule) -> dict[str, Any]:
    """Return a rule as plain values; shards and segments only where there are some: other records stay as they were."""
    facts = {name: value for name, value in asdict(rule).items() if name != "shards" or value > 1}
    facts = {name: value for name, value in facts.items() if name not in ("blas", "segment_batches") or value}
    return facts | ({"summation": SUMMATION} if rule.engine == NUMPY else {})


def unrounded(rule: Mapping[str, Any]) -> dict[str, Any]:
    """Return a rule's plain values less what decides how sums are rounded."""
    return {name: value for name, value in rule.items() if name not in _LAST_BITS}


def but_for_rounding(provenance: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what a record was made from, less what its last bits alone depend on: made elsewhere it is as good.

    That is the BLAS, which 0.1 did not note, and the order in which rows are added up, which 0.2 did not.
    """
    if provenance is None or not isinstance(provenance.get("rule"), Mapping):
        return None if provenance is None else dict(provenance)
    return {**provenance, "rule": unrounded(provenance["rule"])}


def mixed_rounding(rules: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return what a sum of records says of how it is rounded, where their rules do not say the same."""
    return {name: ANY_BLAS for name in _LAST_BITS if len({rule.get(name, "") for rule in rules}) > 1}


def rounded_as(provenance: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record is made from, rounded in the way that one which is kept says of itself."""
    before = kept.get("rule") or {}
    rounding = {name: before[name] for name in _LAST_BITS if name in before}
    return {**provenance, "rule": unrounded(provenance["rule"]) | rounding}
