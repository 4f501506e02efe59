"""The sum of a merged domain's shards: a fixed tree over their names, whose larger branches are kept beside them.

A name is a digest of rows, so the beginnings of names part shards evenly. Up to 16 are added up in the order of their
names; more are parted by the next sign of the name, and the parts added up in the order of that sign. The tree follows
from the names alone, and so do the bits. A shard that comes or goes changes the branches whose beginning it shares: one
for every factor of 16 in their number. The others are read as they were kept: of 500 shards some 40 records, not 500.

    sums/<domain>/@<beginning>/<layer>/training, heldout

A branch says of which rows and by which rule it is the sum. It is used where these are the ones to be added up, and
else made again, as a damaged one is: nothing depends on which are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dalr_stream.engine.stores.shards import Shard
from dalr_stream.errors import StoreDamagedError, StoreNotFoundError
from dalr_stream.numerics.statistics.folding import SplitMoments
from dalr_stream.numerics.statistics.merging import merge_all
from dalr_stream.storage.contents import DomainRecord
from dalr_stream.storage.places.place import Place, folders, remove_folder
from dalr_stream.storage.records.catalogue import check_record
from dalr_stream.storage.records.moments import (
    branch_name,
    branch_path,
    branches_path,
    load_moments,
    save_moments,
)
from dalr_stream.storage.records.record import origin_of, provenance_of
from dalr_stream.storage.schema import HELDOUT, PARTS, TRAINING
from dalr_stream.streaming.folding import but_for_rounding, mixed_rounding

MOST_AT_ONCE = 16
KEPT_FROM = 4
"""Shards in a branch that is worth a record: all branches together are a quarter as many as the shards, at most."""


@dataclass(frozen=True, slots=True)
class Branch:
    """Shards whose names begin alike: a part of a domain's sum in one store; all of them, with no beginning, first."""

    root: Place
    """The store of the sum; shards may still lie elsewhere."""
    domain: str
    shards: Mapping[str, Shard]
    """By name, ascending."""
    beginning: str = ""

    @classmethod
    def of_store(cls, root: Place, domain: str, record: DomainRecord) -> Branch:
        """Return the whole tree of a merged domain."""
        shards = {name: Shard(domain, root, name, shard, merged=True) for name, shard in sorted(record.shards.items())}
        return cls(root, domain, shards)

    @property
    def parts(self) -> Sequence[Branch]:
        """What it is the sum of, in order: single shards, or smaller branches."""
        groups: dict[str, dict[str, Shard]] = {}
        length = len(self.beginning) + 1
        for name, shard in self.shards.items():
            beginning = name if len(self.shards) <= MOST_AT_ONCE else name[:length]
            groups.setdefault(beginning, {})[name] = shard
        return [replace(self, shards=group, beginning=beginning) for beginning, group in sorted(groups.items())]

    @property
    def alone(self) -> Shard | None:
        """The shard, where it is one."""
        return next(iter(self.shards.values())) if len(self.shards) == 1 else None

    @property
    def is_kept(self) -> bool:
        """Whether its sum has a record of its own; that of all shards is the domain's."""
        return bool(self.beginning) and len(self.shards) >= KEPT_FROM

    def beginnings(self) -> Iterator[str]:
        """Yield those of all branches that have a record."""
        if self.is_kept:
            yield self.beginning
        if len(self.shards) > MOST_AT_ONCE:
            for part in self.parts:
                yield from part.beginnings()

    def path(self, layer: str, part: str) -> Place:
        """Return where its record lies, where it has one."""
        return branch_path(self.root, self.domain, self.beginning, layer, part)

    def rows(self, layer: str) -> str:
        """Digest of a layer's rows in all of its shards."""
        records = {name: shard.record for name, shard in self.shards.items()}
        return DomainRecord(shards=records).fingerprint(layer)


@dataclass(frozen=True, slots=True)
class Addition:
    """How one layer's shards are added up."""

    layer: str
    like: Mapping[str, Any]
    """What any of the shards was made from: network, rule and choice are those of all, but for how the rule rounds."""
    made: Callable[[Branch, SplitMoments, Mapping[str, Any]], None] = lambda *_: None
    """Called with each branch that has a record and was added up, with its sum and what that was made from."""
    reuse: bool = True
    """Take records of branches in place of their shards."""

    def total(self, branch: Branch) -> tuple[SplitMoments, dict[str, Any]]:
        """Return the sum and what it was made from; StoreNotFoundError and StoreDamagedError for a shard."""
        shard = branch.alone
        if shard is not None:
            return shard.load(self.layer), provenance_of(shard.path(self.layer, TRAINING)) or {}
        origin = self._origin(branch) if self.reuse else None
        if origin is not None:
            try:
                training, heldout = (load_moments(branch.path(self.layer, part)) for part in PARTS)
                return SplitMoments(training, heldout), origin
            except (StoreDamagedError, StoreNotFoundError):
                pass  # it is made again
        rules: list[Mapping[str, Any]] = []
        split = merge_all(self._each(branch, rules))
        facts = {**self.like, "rows": branch.rows(self.layer)}
        if "rule" in facts:
            facts["rule"] = {**facts["rule"], **mixed_rounding(rules)}
        if branch.is_kept:
            self.made(branch, split, facts)
        return split, facts

    def to_read(self, branch: Branch) -> Iterator[Shard]:
        """Yield the shards that `total` will load, as no whole record of a branch stands for them.

        Reads those records.
        """
        shard = branch.alone
        if shard is not None:
            yield shard
        elif self._origin(branch) is None or not self._whole(branch):
            for part in branch.parts:
                yield from self.to_read(part)

    def _each(self, branch: Branch, rules: list[Mapping[str, Any]]) -> Iterator[SplitMoments]:
        for part in branch.parts:
            split, facts = self.total(part)
            rules.append(facts.get("rule") or {})
            yield split

    def _origin(self, branch: Branch) -> dict[str, Any] | None:
        """Return what a branch's records were made from; None where they are not of these rows, or not there."""
        if not branch.is_kept:
            return None
        expected = but_for_rounding({**self.like, "rows": branch.rows(self.layer)})
        origins = [origin_of(branch.path(self.layer, part)) for part in PARTS]
        return origins[0] if origins[0] == origins[1] and but_for_rounding(origins[0]) == expected else None

    def _whole(self, branch: Branch) -> bool:
        try:
            for part in PARTS:
                check_record(branch.root, branch.path(self.layer, part))
        except (StoreDamagedError, StoreNotFoundError):
            return False
        return True


def keep(branch: Branch, split: SplitMoments, facts: Mapping[str, Any], *, layer: str) -> None:
    """Write a branch's records, the training record last."""
    save_moments(branch.path(layer, HELDOUT), split.heldout, facts)
    save_moments(branch.path(layer, TRAINING), split.training, facts)


def drop_other_branches(tree: Branch) -> None:
    """Remove the records of branches that are none of this tree: what is left follows from the shards alone."""
    beginnings = set(tree.beginnings())
    folder = branches_path(tree.root, tree.domain)
    if not beginnings:
        remove_folder(folder)
    else:
        for path in folders(folder):
            if path.name not in {branch_name(beginning) for beginning in beginnings}:
                remove_folder(path)
