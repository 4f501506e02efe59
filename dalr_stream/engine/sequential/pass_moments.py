"""The moments that a pass of sequential compression decides by: made in memory, or kept and used again.

    <folder>/<network>/                     what a network reads, alone
    <folder>/<network>-<original>/          what it reads beside what the original gives, or z': cross moments

Each state of the network, as compressed so far, has a store of its own, named after its fingerprint. A layer's inputs
depend on that state alone. So where a size, a ridge or a method changes, the passes up to that layer, its own among
them, start from what is kept and run no network; those after it have other inputs, and a pass each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dalr_stream.engine.cross.accumulate import known_batches
from dalr_stream.engine.cross.cost import PairMemory, is_wider_out
from dalr_stream.engine.cross.layer_cross import LayerCrossMoments, NetworkPair
from dalr_stream.engine.cross.paired_rows import PairedRows
from dalr_stream.engine.direct import NetworkRows
from dalr_stream.engine.fold_passes import fold_in_memory, fold_into, kept_record
from dalr_stream.engine.layer_moments import LayerMoments
from dalr_stream.engine.sequential.onward_passes import OnwardPasses
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.spec import LayerSpec, select_layers, weights_of
from dalr_stream.numerics.rows.streams import Side, module_name
from dalr_stream.progress import Progress
from dalr_stream.storage.batches import Batches
from dalr_stream.storage.contents import NetworkRecord
from dalr_stream.storage.places.place import Place, remove_folder
from dalr_stream.streaming.folding import Folding

TARGET = "target"
_NAME = 16
"""Digits of a fingerprint in a folder's name."""


@dataclass(frozen=True, slots=True)
class KnownMoments:
    """Where moments of what the original reads may lie, by which rule they were folded."""

    root: Place
    domain: str
    folding: Folding


@dataclass(frozen=True, slots=True)
class PassMoments:
    """Makes the moments of each pass, within `folder` where there is one."""

    original: nn.Module
    rule: RowRule
    progress: Progress
    onward: OnwardPasses
    folder: Place | None = None
    known: KnownMoments | None = None
    """Of what the original reads of the target."""
    batch: PairMemory | None = None
    """What a batch takes, where that was looked at."""
    _used: set[str] = field(default_factory=set)
    _seen: dict[str, Batches] = field(default_factory=dict)
    """The batches of each domain, once they were gone through."""

    def alone(
        self, current: nn.Module, batches: Iterable[Any], layers: Sequence[LayerSpec], folding: Folding, domain: str
    ) -> LayerMoments:
        """Return the moments of what `layers` read in the network as compressed so far."""
        feed = NetworkRows(current, batches, layers, self.rule)
        known = self._known(feed) if current is self.original and domain == TARGET else None
        return self._joint(feed, folding, domain) if known is None else known

    def beside_outputs(
        self,
        current: nn.Module,
        batches: Iterable[Any],
        layers: Sequence[LayerSpec],
        folding: Folding,
        mending: Collection[str] = (),
    ) -> LayerCrossMoments:
        """Return the moments of what `layers` read there, beside what they give in the original.

        A layer that gives more features than it reads is watched there for what it reads, X: it gives W X + b. Of the
        layers `mending`, what the stream has lost is added to what they give.
        """
        feed = PairedRows.of_outputs(self.original, current, batches, layers, self.rule)
        names = list(dict.fromkeys(module_name(layer.name) for layer in layers))
        others = [name for name in names if name not in mending]
        read = [layer for layer in (select_layers(self.original, others) if others else ()) if is_wider_out(layer)]
        residuals = {
            layer.stream: dataclasses.replace(layer, side=Side.RESIDUAL, outputs=feed.targets[layer.stream].outputs)
            for layer in layers
            if module_name(layer.name) in mending
        }
        targets = {**feed.targets, **{layer.stream: layer for layer in read}}
        feed = dataclasses.replace(feed, targets=targets, residuals=residuals)
        joint = feed.view(self._joint(feed, folding, TARGET))
        maps = {layer.stream: weights_of(self.original, layer.name) for layer in read}
        return joint.with_outputs_through(maps)

    def beside(
        self,
        current: nn.Module,
        batches: Iterable[Any],
        layers: Sequence[LayerSpec],
        targets: Mapping[str, LayerSpec],
        folding: Folding,
    ) -> LayerCrossMoments:
        """Return the moments of what `layers` read there, beside `targets` in the original, by the same streams."""
        by_stream = {layer.stream: layer for layer in layers}
        feed = PairedRows(self.original, current, batches, self.rule, by_stream, targets)
        return feed.view(self._joint(feed, folding, TARGET))

    def drop_others(self) -> None:
        """Remove what no pass of this sequence has used: the folder then has one sequence's moments."""
        if self.folder is not None and self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.is_dir() and path.name not in self._used:
                    remove_folder(path)

    def _joint(self, feed: NetworkRows | PairedRows, folding: Folding, domain: str) -> LayerMoments:
        if self.folder is None:
            return LayerMoments.of(fold_in_memory(self._onward(feed, domain), folding, self.progress))
        network = feed.network()
        root = self.folder / _name(network)
        self._used.add(root.name)
        record = kept_record(root, domain, feed, network, folding)
        if record is None or record.batches != self._batches(feed, domain):
            record = fold_into(root, domain, self._onward(feed, domain), network, folding, self.progress)
            self._seen[domain] = record.batches
        else:
            self.progress.note(f"moments of {_words(feed.streams)} were kept from an earlier pass: no pass is needed")
        return LayerMoments.stored(root, domain, {name: record.home(name) for name in feed.streams}, folding.shards)

    def _known(self, feed: NetworkRows) -> LayerMoments | None:
        """Return the moments that another accumulation has left, of the same rows of the same batches."""
        if self.known is None:
            return None
        root, domain, folding = self.known.root, self.known.domain, self.known.folding
        record = kept_record(root, domain, feed, feed.network(), folding)
        if record is None or record.batches != self._batches(feed, TARGET):
            return None
        self.progress.note(f"moments of {_words(feed.streams)} are those of '{root}': no pass is needed")
        return LayerMoments.stored(root, domain, {name: record.home(name) for name in feed.streams}, folding.shards)

    def _onward(self, feed: NetworkRows | PairedRows, domain: str) -> NetworkRows | PairedRows:
        """Let networks that run on the target go on from where the pass before left them."""
        if isinstance(feed, PairedRows):
            now = self.onward.of_compressed(feed.layers.values(), feed.targets)
            then = self.onward.of_original(feed.targets.values())
            return dataclasses.replace(feed, onward=now, original_onward=then, batch=self.batch)
        if domain != TARGET:
            return dataclasses.replace(feed, onward=self.onward.of_source(feed.layers))
        return dataclasses.replace(feed, onward=self.onward.of_compressed(feed.layers))

    def _batches(self, feed: NetworkRows | PairedRows, domain: str) -> Batches:
        """Return what identifies a domain's batches; every pass gets the same, so they are loaded for it once."""
        if domain not in self._seen:
            self._seen[domain] = known_batches(feed.batches, feed.rule)
        return self._seen[domain]


def _name(network: NetworkRecord) -> str:
    pair = NetworkPair.parse(network.fingerprint)
    names = [network.fingerprint] if pair is None else [pair.compressed, pair.original]
    return "-".join(name[:_NAME] for name in names)


def _words(streams: Collection[str]) -> str:
    return ", ".join(f"'{name}'" for name in streams)
