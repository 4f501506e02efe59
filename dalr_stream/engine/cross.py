"""One pass through two networks: what each layer reads in the compressed one, and gives in the original.

Layers compressed one after the other, or together, no longer read what they read in the original. Their targets stay:
the original's outputs. So each batch runs through both, and the rows [x | z] take the same tiles and lanes as any
others: held out, in shards, within a memory limit, kept in a store, resumed and merged as moments of one network are.

All of X X', Z X' and Z Z' are summed, as one symmetric product of width d + m. Leaving out Z Z', of which most methods
read the trace alone, would take 60 % off the product where m = 4 d, a quarter where m = d and nothing where m < d; but
`published` reads it, and moments that are kept are there for methods that are chosen later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dalr_stream.engine.backend import rows_for
from dalr_stream.engine.capture import keep_weights
from dalr_stream.engine.fold_passes import (
    direct_plan,
    fitting,
    fold_in_memory,
    fold_into,
    kept_record,
)
from dalr_stream.engine.joint_sink import JointSink
from dalr_stream.engine.layer_cross import LayerCrossMoments, NetworkPair, PairRecord
from dalr_stream.engine.layer_moments import LayerMoments
from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.hooks import batch_identities, capture_rows, require_batches, require_layers
from dalr_stream.network.capture.onward import OnwardPass
from dalr_stream.network.capture.paired import SecondNetwork
from dalr_stream.network.capture.passes import require_repeatable
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.identity import fingerprint, tensor_digest
from dalr_stream.network.layers.kinds import matrix_of
from dalr_stream.network.layers.spec import LayerSpec, layer_of
from dalr_stream.numerics.rows.streams import Pairing, Side, stream_name
from dalr_stream.progress import Progress, Silent
from dalr_stream.storage.batches import Batches, BatchRecord
from dalr_stream.storage.contents import LayerRecord, NetworkRecord
from dalr_stream.streaming.cost import LayerLoad
from dalr_stream.streaming.fold_sink import FoldSink
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.plan import MemoryPlan

TITLE = "run both and fold"


def accumulate_cross(  # noqa: PLR0913  # those of accumulate, and a second network
    original: nn.Module,
    compressed: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    *,
    store: str | Path | None = None,
    domain: str = "target",
    rows: RowRule | None = None,
    folding: Folding | None = None,
    progress: Progress | None = None,
) -> LayerCrossMoments:
    """Return, by layer, the moments of its inputs in `compressed` and its outputs in `original`, row for row.

    Outputs include the layer's bias b: means and sums about zero do too, and `cross_scatter_about(c, b)` and
    `outputs.scatter_about(b)` give those of y - b.

    Parameters
    ----------
    original, compressed
        The two networks, in eval mode; each batch runs through both.
    batches, rows, folding, progress
        As for `accumulate`. Of a convolution the same positions are taken in both networks.
    layers
        Those that both networks have by that name; in the compressed one they may read fewer features.
    store
        Keep the moments and the compressed network's weights there, and resume there after a kill. Moments that lie
        there already, of the same networks, rows and batches, are used again: the batches are loaded and compared, and
        neither network is run. It must be a store of this pair of networks; stores of one pair can be merged.
    domain
        The name under which the store keeps them.

    Returns
    -------
    LayerCrossMoments
        `CrossMoments` by layer; `.heldout` has those of the held-out rows.

    Raises
    ------
    InvalidInputError
        Where a layer's outputs differ in number between the networks, and as `accumulate` does.
    FingerprintMismatchError
        Where the store is of another pair of networks.

    See Also
    --------
    accumulate_cross_stored : the same, from two stores that have the rows.
    compress_sequentially : solves layer after layer on such moments.

    Notes
    -----
    Memory: every layer's lanes at once, of width d + m each; under a memory limit, one group of layers at a time.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
    >>> batches = [torch.randn(32, 6) for _ in range(4)]
    >>> statistics = ds.accumulate(model, batches, ds.watch(model, ["0"]))
    >>> small = ds.compress(model, {"0": ds.dalr(statistics["0"]).at_rank(2)})
    >>> moments = ds.accumulate_cross(model, small, batches, ds.watch(model, ["2"]))["2"]
    >>> moments.inputs.features, moments.outputs.features
    (12, 3)
    """
    feed = PairedRows.of_outputs(original, compressed, batches, layers, rows)
    folding, progress = folding or Folding(), progress or Silent()
    if store is None:
        return feed.view(LayerMoments.of(fold_in_memory(feed, folding, progress)))
    root, network = Path(store), feed.network()
    kept = kept_record(root, domain, feed, network, folding)
    if kept is not None and kept.batches == known_batches(batches, feed.rule):
        progress.note(f"cross moments on '{domain}' are up to date")
        return feed.stored(root, domain, folding)
    feed.require_own_store(root, network)
    fold_into(root, domain, feed, network, folding, progress)
    return feed.stored(root, domain, folding)


def estimate_cross(
    compressed: nn.Module, layers: Sequence[LayerSpec], *, rows: int = 0, folding: Folding | None = None
) -> MemoryPlan:
    """Return memory, disk and passes of `accumulate_cross`, `rows` rows of each layer: arithmetic alone.

    The limit of `folding` parts the layers into passes, `MemoryPlan.groups`; `require` refuses what fits in none.
    """
    loads = [pair_load(_as_it_is(compressed, layer), rows) for layer in layers]
    return direct_plan(loads, folding or Folding())


def pair_load(layer: LayerSpec, rows: int = 0) -> LayerLoad:
    """Return what the plan needs to know of a layer's inputs beside its outputs."""
    return LayerLoad(stream_name(layer.name, Pairing.OUTPUTS), layer.inputs + layer.outputs, rows)


def narrowest_pair_load(layer: LayerSpec, rows: int = 0) -> LayerLoad:
    """Return the same for a layer whose outputs may follow from its inputs: those are watched where they are fewer."""
    if not is_wider_out(layer):
        return pair_load(layer, rows)
    return LayerLoad(stream_name(layer.name, Pairing.INPUTS), 2 * layer.inputs, rows)


def is_wider_out(layer: LayerSpec) -> bool:
    """Tell whether a layer gives more features than it reads."""
    return layer.outputs > layer.inputs


def known_batches(batches: Iterable[Any], rule: RowRule) -> Batches:
    """Load the batches and return what identifies each; no network is run."""
    require_repeatable(batches, "batches")
    return Batches.of(BatchRecord(samples, digest) for samples, digest in batch_identities(batches, rule))


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
    onward: OnwardPass | None = None
    """How the compressed network is run on from an earlier pass."""
    original_onward: OnwardPass | None = None

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
        now = {layer.stream: _as_it_is(compressed, layer) for layer in layers}
        targets = {layer.stream: dataclasses.replace(layer, side=Side.OUTPUTS) for layer in layers}
        for stream, layer in now.items():
            outputs = matrix_of(layer_of(original, layer.name)).shape[0]
            if layer.outputs != outputs:
                raise InvalidInputError(
                    f"layer '{layer.name}': gives {outputs} outputs in the original and {layer.outputs} in the "
                    "compressed network: its nodes were pruned, so pair the layers that read them"
                )
            targets[stream] = dataclasses.replace(targets[stream], outputs=outputs)
        return cls(original, compressed, batches, (rows or RowRule()).of_layers(()), now, targets)

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

    def keep_weights(self, root: Path, network: NetworkRecord) -> None:
        """Write the compressed network's."""
        keep_weights(self.compressed, list(self.layers.values()), root, network.fingerprint)

    def loads(self, rows: int) -> list[LayerLoad]:
        """Return what the plan needs to know of the joint streams."""
        return [LayerLoad(pair.stream, pair.features, rows) for pair in self.pairs.values()]

    def groups(self, folding: Folding) -> Sequence[Collection[str]]:
        """Part the streams into passes that fit."""
        require_batches(self.batches)
        groups = fitting(self.loads(0), folding)
        if len(groups) > 1:
            require_repeatable(self.batches, "batches")
        return groups

    def send(self, streams: Collection[str], sink: FoldSink, folding: Folding, progress: Progress) -> None:
        """Run both networks on every batch that is not folded yet."""
        names = {name: pair.stream for name, pair in self.pairs.items() if pair.stream in streams}
        to_rows = rows_for(folding)
        targets = {name: self.targets[name] for name in names}
        second = SecondNetwork(self.original, targets, self.rule, to_rows, self.original_onward)
        joint = JointSink(sink, second, names)
        followed = second.follow(self.batches, sink.held)
        total = len(self.batches) if isinstance(self.batches, Sized) else None
        layers = [self.layers[name] for name in names]
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

    def view(self, joint: LayerMoments) -> LayerCrossMoments:
        """Return the moments of joint rows as cross moments, by the names of `layers`."""
        return LayerCrossMoments.of(joint, self.pairs)

    def stored(self, root: Path, domain: str, folding: Folding) -> LayerCrossMoments:
        """Return those that lie in a store, to be read when they are asked for."""
        return self.view(LayerMoments.stored(root, domain, {name: name for name in self.streams}, folding.shards))

    def require_own_store(self, root: Path, network: NetworkRecord) -> None:
        """Raise FingerprintMismatchError where a store is there and is not of these two networks."""
        pair = NetworkPair.parse(network.fingerprint)
        assert pair is not None  # noqa: S101  # for the type checker: it was made so
        pair.require_in(root)

    def _stream(self, name: str) -> str:
        layer = self.layers[name]
        return stream_name(layer.name, Pairing.of(layer.side, self.targets[name].side))

    def _layer_record(self, layer: LayerSpec, pair: PairRecord) -> LayerRecord:
        digest = tensor_digest(matrix_of(layer_of(self.compressed, layer.name)))
        side = Pairing.of(layer.side, self.targets[layer.stream].side)
        return LayerRecord(layer.kind, pair.inputs, pair.outputs, digest, side=side.value)


def _as_it_is(compressed: nn.Module, layer: LayerSpec) -> LayerSpec:
    """Return the same layer with the widths that it has in the compressed network."""
    outputs, inputs = matrix_of(layer_of(compressed, layer.name)).shape
    return dataclasses.replace(layer, inputs=inputs, outputs=outputs)
