"""Rows of a layer in one network beside rows of another network, on their way into one fold.

What stands beside what a layer reads, z, is by default what it gives in the original. Where a residual stream takes its
output in, z may have what the stream has lost by then added to it:

    z' = z + (r of the original - r of the compressed network)      r: the stream before the layer writes into it

so that a layer solved towards z' mends the stream as far as its inputs allow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dalr_stream.engine.backend import rows_for
from dalr_stream.engine.capture import keep_weights
from dalr_stream.engine.cross.cost import PairMemory
from dalr_stream.engine.cross.joint_sink import JointSink
from dalr_stream.engine.cross.layer_cross import LayerCrossMoments, NetworkPair, PairRecord
from dalr_stream.engine.fold_passes import fitting
from dalr_stream.engine.layer_moments import LayerMoments
from dalr_stream.engine.row_feed import Begun, Folds, Group
from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.hooks import capture_rows, require_batches, require_layers
from dalr_stream.network.capture.loaders import length_of
from dalr_stream.network.capture.paired import SecondNetwork
from dalr_stream.network.capture.passes import require_repeatable
from dalr_stream.network.capture.resuming.onward import OnwardPass
from dalr_stream.network.capture.row_rule import RowRule, rule_of
from dalr_stream.network.layers.identity import bias_digest, fingerprint, tensor_digest
from dalr_stream.network.layers.kinds import matrix_of
from dalr_stream.network.layers.spec import LayerSpec, layer_of
from dalr_stream.numerics.rows.streams import Pairing, Side, stream_name
from dalr_stream.progress import Progress
from dalr_stream.storage.contents import LayerRecord, NetworkRecord
from dalr_stream.storage.places.place import Place
from dalr_stream.streaming.cost import LayerLoad
from dalr_stream.streaming.folding import Folding

TITLE = "run both and fold"


@dataclass(frozen=True, slots=True)
class PairedRows:
    """Rows of a layer in one network beside rows of another network: a `RowFeed`."""

    original: nn.Module
    compressed: nn.Module
    batches: Iterable[Any]
    rule: RowRule
    layers: Mapping[str, LayerSpec]
    """Of the compressed network: what x is, by stream."""
    targets: Mapping[str, LayerSpec]
    """Of the original: what z is, by the same names."""
    residuals: Mapping[str, LayerSpec] = field(default_factory=dict)
    """Of either: the stream that takes in what the layer gives, for those whose z is to mend it, by the same names."""
    onward: OnwardPass | None = None
    """How the compressed network is run on from an earlier pass."""
    original_onward: OnwardPass | None = None
    batch: PairMemory | None = None
    """What a batch takes, where that was looked at; else it is, where a limit asks for it."""

    @classmethod
    def of_outputs(
        cls,
        original: nn.Module,
        compressed: nn.Module,
        batches: Iterable[Any],
        layers: Sequence[LayerSpec],
        rows: RowRule | None,
    ) -> PairedRows:
        """Pair what each of `layers` reads in the compressed network with what it gives in the original.

        Raises LayerNotFoundError for a layer that the compressed one lacks, InvalidInputError for one that gives
        another number of outputs there: its nodes were pruned.
        """
        require_layers(layers)
        now = {layer.stream: as_it_is(compressed, layer) for layer in layers}
        targets = {layer.stream: dataclasses.replace(layer, side=Side.OUTPUTS) for layer in layers}
        for stream, layer in now.items():
            outputs = matrix_of(layer_of(original, layer.name)).shape[0]
            if layer.outputs != outputs:
                raise InvalidInputError(
                    f"layer '{layer.name}': gives {outputs} outputs in the original and {layer.outputs} in the "
                    "compressed network: its nodes were pruned, so pair the layers that read them"
                )
            targets[stream] = dataclasses.replace(targets[stream], outputs=outputs)
        return cls(original, compressed, batches, rule_of(rows).of_layers(()), now, targets)

    @property
    def pairs(self) -> dict[str, PairRecord]:
        """The joint stream of each of `layers`."""
        return {
            name: PairRecord(self._stream(name), layer.features, self.targets[name].features)
            for name, layer in self.layers.items()
        }

    @property
    def streams(self) -> Sequence[str]:
        """Of joint rows."""
        return [pair.stream for pair in self.pairs.values()]

    @property
    def choice(self) -> str:
        """The same rows of both."""
        return self.rule.words

    def network(self) -> NetworkRecord:
        """Return what identifies both networks and the pairs of streams."""
        pair = NetworkPair(fingerprint(self.compressed), fingerprint(self.original))
        pairs = self.pairs
        layers = {pairs[name].stream: self._layer_record(layer, pairs[name]) for name, layer in self.layers.items()}
        return NetworkRecord(pair.fingerprint, layers)

    def keep_weights(self, root: Place, network: NetworkRecord) -> None:
        """Write the compressed network's."""
        keep_weights(self.compressed, list(self.layers.values()), root, network.fingerprint)

    def groups(self, folding: Folding, begun: Begun = ()) -> Sequence[Group]:  # noqa: ARG002
        """Part the streams into passes that fit."""
        require_batches(self.batches)
        if folding.memory_limit_bytes is None:
            return [Group(tuple(self.streams))]
        batch = self._one_batch() if self.batch is None else self.batch
        groups = fitting(
            [self._load(name, batch) for name in self.pairs], folding, batch.forward_bytes, batches=self.batches
        )
        if len(groups) > 1:
            require_repeatable(self.batches, "batches")
        return groups

    def _one_batch(self) -> PairMemory:
        """Look at the first batch, where it is not lost by that."""
        if isinstance(self.batches, Iterator):
            return PairMemory()
        first = next(iter(self.batches), None)
        return PairMemory.of((self.compressed, self.original), first, list(self.layers.values()), self.rule)

    def _load(self, name: str, batch: PairMemory) -> LayerLoad:
        pair = self.pairs[name]
        beside = pair.outputs if name in self.residuals else 0
        return LayerLoad(pair.stream, pair.features, 0, batch_bytes=batch.batch_bytes(name, pair.features, beside))

    def send(self, group: Group, sink: Folds, folding: Folding, progress: Progress) -> None:
        """Run both networks on every batch that is not folded yet."""
        names = {name: pair.stream for name, pair in self.pairs.items() if pair.stream in group}
        to_rows = rows_for(folding)
        targets = {name: self.targets[name] for name in names}
        residuals = {name: layer for name, layer in self.residuals.items() if name in names}
        added = {layer.stream: layer for layer in residuals.values()}
        second = SecondNetwork(self.original, {**targets, **added}, self.rule, to_rows, self.original_onward)
        joint = JointSink(sink, second, names, {name: layer.stream for name, layer in residuals.items()})
        followed = second.follow(self.batches, sink.held)
        total = length_of(self.batches)
        layers = [*(self.layers[name] for name in names), *residuals.values()]
        with progress.track(TITLE, total, "batches") as advance:
            capture_rows(
                self.compressed,
                followed,
                layers,
                joint,
                rows=self.rule,
                to_rows=to_rows,
                batch_done=lambda _samples, _spared: advance(1),
                onward=self.onward,
            )

    def finish(self) -> None:
        """Do nothing: they leave nothing behind."""

    def view(self, joint: LayerMoments) -> LayerCrossMoments:
        """Return the moments of joint rows as cross moments, by the names of `layers`."""
        return LayerCrossMoments.of(joint, self.pairs)

    def stored(self, root: Place, domain: str, folding: Folding) -> LayerCrossMoments:
        """Return those that lie in a store, to be read when they are asked for."""
        return self.view(LayerMoments.stored(root, domain, {name: name for name in self.streams}, folding.shards))

    def require_own_store(self, root: Place, network: NetworkRecord) -> None:
        """Raise FingerprintMismatchError where a store is there and is not of these two networks."""
        pair = NetworkPair.parse(network.fingerprint)
        assert pair is not None  # noqa: S101  # for the type checker: it was made so
        pair.require_in(root)

    def _stream(self, name: str) -> str:
        return stream_name(self.layers[name].name, self._pairing(name))

    def _pairing(self, name: str) -> Pairing:
        mends = name in self.residuals
        return Pairing.STREAM if mends else Pairing.of(self.layers[name].side, self.targets[name].side)

    def _layer_record(self, layer: LayerSpec, pair: PairRecord) -> LayerRecord:
        module, side = layer_of(self.compressed, layer.name), self._pairing(layer.stream).value
        weight, bias = tensor_digest(matrix_of(module)), bias_digest(module)
        return LayerRecord(layer.kind, pair.inputs, pair.outputs, weight, side=side, bias_digest=bias)


def as_it_is(compressed: nn.Module, layer: LayerSpec) -> LayerSpec:
    """Return the same layer with the widths that it has in the compressed network."""
    outputs, inputs = matrix_of(layer_of(compressed, layer.name)).shape
    return dataclasses.replace(layer, inputs=inputs, outputs=outputs)
