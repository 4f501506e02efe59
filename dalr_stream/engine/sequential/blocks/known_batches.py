"""The batches of a sweep over blocks, gone through once before it: by what each is known, and where its records lie.

Beside them go those of the source domain, where a method compares with it, and a few samples of the first one, and the
same with one replaced: what a block is looked at and proved on. They are batches like the others, and rows of these few
samples are never folded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from dalr_stream.network.capture.batches import digest_of_inputs, few_samples, inputs_of, samples_in
from dalr_stream.network.capture.hooks import batch_identities
from dalr_stream.network.capture.passes import SameEveryPass
from dalr_stream.network.capture.proofs.disturbed import with_sample_replaced
from dalr_stream.network.capture.resuming.onward import SAMPLES
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.storage.json_record import digest_of


@dataclass(frozen=True, slots=True)
class KnownBatches:
    """The batches of one domain."""

    batches: SameEveryPass
    first: Any
    """The first one with a sample."""
    examples: tuple[Any, ...]
    """A few samples of it, and others."""
    keys: Mapping[str, int]
    """The number of each one's first sample, by digest; those of the examples come after all others."""
    identity: str
    """Of all batches, their masks included."""
    source: SameEveryPass | None = None
    """Those of the source domain."""

    @classmethod
    def of(cls, batches: SameEveryPass, rule: RowRule, source: SameEveryPass | None = None) -> KnownBatches:
        """Load all batches once; raises InvalidInputError where there is no sample."""
        first, seen = batches.first(), 0
        keys: dict[str, int] = {}

        def noted(of_domain: SameEveryPass) -> Iterator[Any]:
            nonlocal seen
            for batch in of_domain:
                samples = samples_in(batch)
                if samples:
                    keys.setdefault(digest_of_inputs(batch), seen)
                seen += samples
                yield batch

        identity = digest_of([list(one) for one in batch_identities(noted(batches), rule)])
        examples = _examples(first)
        for number, one in enumerate(examples):
            keys.setdefault(digest_of_inputs(one), seen + number)
        seen += len(examples)
        if source is not None:
            identity = digest_of([identity, [list(one) for one in batch_identities(noted(source), rule)]])
        return cls(batches, first, examples, keys, identity, source)

    @classmethod
    def glimpsed(cls, batches: SameEveryPass) -> KnownBatches:
        """Load the first batch alone: for what only looks at blocks."""
        first = batches.first()
        return cls(batches, first, _examples(first), {}, "")

    def each(self) -> Iterator[tuple[int, Any]]:
        """Yield the key and the inputs of every batch that has samples, and of every example."""
        return self._keyed(chain(self.examples, self.batches))

    def of_source(self) -> Iterator[tuple[int, Any]]:
        """Yield the same of the source domain."""
        return self._keyed(self.source or ())

    def _keyed(self, batches: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        for batch in batches:
            if samples_in(batch):
                yield self.keys[digest_of_inputs(batch)], inputs_of(batch)


def _examples(first: Any) -> tuple[Any, ...]:
    few = few_samples(first, SAMPLES)
    other = with_sample_replaced(few, samples_in(few))
    return (few,) if other is None else (few, other.batch)
