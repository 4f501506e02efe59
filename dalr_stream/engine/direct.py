"""Network and data to moments in one pass, with no activations kept.

The rows take the same tiles and lanes as on the way through a store, so the moments are the same to the bit. Given a
store, the moments are kept there and a run that was killed goes on from its last checkpoint; under a memory limit the
layers are done in groups, each in a pass of its own through the network. Where torch folds (`Folding.device`),
activations stay on that device from the hook to the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from dalr_stream.engine.backend import rows_for
from dalr_stream.engine.blocks.accumulate import from_blocks
from dalr_stream.engine.capture import one_pass, watched_streams
from dalr_stream.engine.estimate import BatchMemory, load_of, most_rows, taken_of
from dalr_stream.engine.fold_passes import fitting, fold_in_memory, fold_into
from dalr_stream.engine.layer_moments import LayerMoments
from dalr_stream.engine.layer_rows import LayerRows
from dalr_stream.engine.ranks.ranks import Ranks
from dalr_stream.engine.row_feed import Begun, Folds, Group
from dalr_stream.engine.statistics import Statistics, Weights, stored_weights
from dalr_stream.errors import FingerprintMismatchError
from dalr_stream.network.blocks.passes import Blocks
from dalr_stream.network.capture.batches import samples_in
from dalr_stream.network.capture.hooks import require_batches, require_layers
from dalr_stream.network.capture.passes import require_repeatable
from dalr_stream.network.capture.resuming.onward import OnwardPass
from dalr_stream.network.capture.row_rule import RowRule, rule_of
from dalr_stream.network.capture.wrapped import plain_network, require_for_ranks
from dalr_stream.network.layers.elsewhere import weights_elsewhere
from dalr_stream.network.layers.identity import bias_digest, tensor_digest
from dalr_stream.network.layers.kinds import matrix_of
from dalr_stream.network.layers.spec import LayerSpec, layer_of, weights_of
from dalr_stream.numerics.rows.streams import layer_of_stream
from dalr_stream.numerics.rows.tiling import same_as_before
from dalr_stream.progress import Progress, Silent
from dalr_stream.storage.contents import LayerRecord
from dalr_stream.storage.places.place import Place, place_of
from dalr_stream.streaming.folding import Folding

TITLE = "capture and fold"


def from_network(  # noqa: PLR0913  # those of accumulate
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    store: str | Place | None,
    *,
    domain: str,
    rows: RowRule | None,
    folding: Folding | None,
    progress: Progress | None,
    ranks: Ranks | None,
    blocks: Blocks | None,
) -> Statistics:
    """Do what `accumulate` does with a network: in memory alone, or in a store where one is given."""
    model = plain_network(model)
    if blocks or weights_elsewhere(model) is not None:
        return from_blocks(
            model,
            batches,
            layers,
            store,
            domain=domain,
            blocks=blocks or True,
            rows=rows,
            folding=folding,
            progress=progress,
            ranks=ranks,
        )
    watched = watched_streams(model, layers)
    if store is None:
        moments = accumulate_stream(model, batches, layers, rows=rows, folding=folding, progress=progress, ranks=ranks)
        return Statistics(watched, moments, partial(_weights_now, model, watched))
    moments = accumulate_into(
        store, model, batches, layers, domain=domain, rows=rows, folding=folding, progress=progress, ranks=ranks
    )
    return Statistics(watched, moments, partial(stored_weights, place_of(store), watched))


def _weights_now(model: nn.Module, watched: Mapping[str, LayerRecord], layer: str) -> Weights:
    """Return a layer's weights, which are the network's own; raises FingerprintMismatchError where they changed."""
    records = {layer_of_stream(stream): record for stream, record in watched.items()}
    then, now = records[layer], layer_of(model, layer)
    if (tensor_digest(matrix_of(now)), bias_digest(now)) != (then.weight_digest, then.bias_digest):
        raise FingerprintMismatchError(
            f"layer '{layer}': its weight or bias is not the one that its moments were accumulated with: accumulate "
            "again, or keep moments and weights in a store (store=...)"
        )
    return weights_of(model, layer)


def accumulate_stream(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    *,
    rows: RowRule | None = None,
    folding: Folding | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> LayerMoments:
    """Return the moments of what `layers` read, or give, by stream, folding rows as the network makes them.

    `rows` says which of their rows; every one by default.

    Nothing is written, so nothing can be resumed: for runs of hours see `accumulate_into`. Memory: every layer's lanes
    at once, see `streaming.plan`; under a memory limit the layers are done in groups, a pass each over equal batches.

    Raises as `capture` does, MemoryLimitError with the alternatives where one layer alone does not fit, and where
    several passes are needed InvalidInputError for what allows one only, FingerprintMismatchError where two differ.
    """
    feed = _feed(model, batches, layers, rows, ranks)
    return LayerMoments.of(fold_in_memory(feed, folding or Folding(), progress or Silent(), ranks))


def accumulate_into(  # noqa: PLR0913  # each is a word of the sentence that the caller writes
    store: str | Place,
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    *,
    domain: str,
    rows: RowRule | None = None,
    folding: Folding | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> LayerMoments:
    """Do what `accumulate_stream` does, keep moments and weights in a store, and resume there after a kill.

    Batches before the last checkpoint are compared by digest and not run again, or not even loaded where the loader
    can begin after them (see `network.loaders`). Raises as `accumulate_stream` does, FingerprintMismatchError where
    the store came from another network, the domain from another choice of rows, or the batches changed since the
    checkpoint.
    """
    root, folding = place_of(store), folding or Folding()
    feed = _feed(model, batches, layers, rows, ranks)
    record = fold_into(root, domain, feed, feed.network(), folding, progress or Silent(), ranks)
    if ranks is not None and not ranks.first:
        return LayerMoments({})
    return LayerMoments.stored(root, domain, {stream: record.home(stream) for stream in feed.streams}, folding.shards)


def _feed(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    rows: RowRule | None,
    ranks: Ranks | None,
) -> NetworkRows:
    model = plain_network(model)
    if ranks is not None and ranks.ranks > 1:
        require_for_ranks(model, batches, ranks.ranks)
    rule = rule_of(rows).of_layers(layers)
    return NetworkRows(model, batches, layers, rule, ranks=1 if ranks is None else ranks.ranks)


@dataclass
class NetworkRows(LayerRows):
    """The rows of a network that runs whole: a `RowFeed`."""

    onward: OnwardPass | None = None
    """How the network is run on from an earlier pass."""
    ranks: int = 1
    """Processes that fold them."""

    def groups(self, folding: Folding, begun: Begun = ()) -> Sequence[Group]:
        """Part the layers into passes that fit; layers that read the same tensor stay together, and count once."""
        require_layers(self.layers)
        require_batches(self.batches)
        fit = self._fitting(folding)
        groups: list[Group] = []
        for streams, done in begun:
            again = [Group(streams)] if done else fit(streams)
            if len(again) != 1:
                break
            groups += again
        left = [name for name in self.streams if not any(name in group for group in groups)]
        groups += fit(left) if left else []
        if len(groups) > 1:
            require_repeatable(self.batches, "batches")
        return groups

    def _fitting(self, folding: Folding) -> Callable[[Sequence[str]], list[Group]]:
        """Return what parts some of the streams into passes that fit."""
        if folding.memory_limit_bytes is None:
            return lambda streams: [Group(tuple(streams))]
        first = None if isinstance(self.batches, Iterator) else next(iter(self.batches), None)  # else it would be lost
        taken = {} if first is None or samples_in(first) == 0 else taken_of(self.model, first, self.layers, self.rule)
        probe, shared = BatchMemory.of(self.model, first, taken, self.layers, self.rule), same_as_before(taken)
        most = {name: most_rows(one, first, self.batches, folding) for name, one in taken.items()}
        loads = [load_of(one, 0, probe, most.get(one.stream)) for one in self.layers if one.stream not in shared]

        def fit(streams: Sequence[str]) -> list[Group]:
            some = [load for load in loads if load.name in streams]
            groups = fitting(some, folding, probe.forward_bytes, batches=self.batches, ranks=self.ranks)
            return [homes.with_shared(streams, shared) for homes in groups]

        return fit

    def send(self, group: Group, sink: Folds, folding: Folding, progress: Progress) -> None:
        """Run the network on every batch that is not folded yet."""
        layers = [layer for layer in self.layers if layer.stream in group]
        to_rows = rows_for(folding)
        one_pass(
            self.model,
            self.batches,
            layers,
            sink,
            rows=self.rule,
            to_rows=to_rows,
            title=TITLE,
            progress=progress,
            onward=self.onward,
        )
