"""Cross moments from two stores' rows: inputs of the compressed network beside outputs of the original.

The rows take the tiles and lanes that they would take while both networks run, so the moments and the store that keeps
them are the same to the bit: `merge` adds the one kind to the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dalr_stream.engine.backend import backend_of
from dalr_stream.engine.cross.layer_cross import LayerCrossMoments, NetworkPair, PairRecord
from dalr_stream.engine.from_store import moments_provenance, require_no_segments
from dalr_stream.engine.layer_moments import LayerMoments
from dalr_stream.errors import InvalidInputError, LayerNotFoundError
from dalr_stream.numerics.rows.streams import Pairing, Side, layer_of_stream, stream_name
from dalr_stream.progress import Progress, Silent
from dalr_stream.storage.checkpoints import Checkpoints
from dalr_stream.storage.contents import DomainRecord, LayerRecord, NetworkRecord
from dalr_stream.storage.places.place import Place, place_of
from dalr_stream.storage.records.moments import moments_path, shard_parts
from dalr_stream.storage.records.record import origin_of, provenance_of
from dalr_stream.storage.records.weights import load_layer_weights, save_layer_weights, weights_path
from dalr_stream.storage.schema import PARTS
from dalr_stream.storage.store import ActivationStore
from dalr_stream.storage.writer import open_writer
from dalr_stream.streaming.folding import Folding, but_for_rounding
from dalr_stream.streaming.lanes import LaneTask
from dalr_stream.streaming.layer_fold import LayerFold
from dalr_stream.streaming.paired_tiles import PairedTiles
from dalr_stream.streaming.tile_source import StoredTiles


def accumulate_cross_stored(
    original: str | Place,
    compressed: str | Place,
    store: str | Place,
    *,
    domain: str = "target",
    layers: Sequence[str] | None = None,
    folding: Folding | None = None,
    progress: Progress | None = None,
) -> LayerCrossMoments:
    """Return, by layer, the moments of its inputs in one store and its outputs in another, kept in a third.

    It needs neither network nor torch.

    Parameters
    ----------
    original
        A store of the original network with the layers' outputs: `select_layers(..., side="outputs")`.
    compressed
        A store of the compressed network with their inputs, of the same batches in the same order.
    store
        Where the moments and the compressed network's weights go; moments of the same rows are used again.
    domain
        The name of the data set in all three.
    layers
        By default every layer whose inputs are in the one store and outputs in the other.
    folding, progress
        As for `accumulate`.

    Returns
    -------
    LayerCrossMoments
        `CrossMoments` by layer, read when they are asked for.

    Raises
    ------
    FingerprintMismatchError
        Where the samples differ, naming the first batch that does, or where `store` is of other networks.
    LayerNotFoundError
        For a layer that one of the stores lacks.
    InvalidInputError
        Where a layer's outputs differ in number; otherwise as `accumulate` does.

    See Also
    --------
    accumulate_cross : the same, from the networks.

    Notes
    -----
    Cost and memory: those of moments of d + m features.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
    >>> batches = [torch.randn(32, 6) for _ in range(4)]
    >>> statistics = ds.accumulate(model, batches, ds.watch(model, ["0"]))
    >>> small = ds.compress(model, {"0": ds.dalr(statistics["0"]).at_rank(2)})
    >>> outputs = ds.network.select_layers(model, ["2"], side="outputs")
    >>> _ = ds.capture(model, batches, outputs, "original.zarr", domain="target")
    >>> _ = ds.capture(small, batches, ds.watch(small, ["2"]), "small.zarr", domain="target")
    >>> moments = ds.accumulate_cross_stored("original.zarr", "small.zarr", "cross.zarr")["2"]
    >>> moments.inputs.features, moments.outputs.features
    (12, 3)
    """
    sides = ActivationStore(original), ActivationStore(compressed)
    folding, progress = folding or Folding(), progress or Silent()
    pair = NetworkPair(sides[1].manifest.network.fingerprint, sides[0].manifest.network.fingerprint)
    root = place_of(store)
    pair.require_in(root)
    require_no_segments(folding, root)
    streams = [_JointStream.of(*sides, domain, name) for name in _names(*sides, domain, layers)]
    opened = {stream.name: stream.tiles.open() for stream in streams}
    record = replace(next(iter(opened.values())).record, layers={name: tiles.rows for name, tiles in opened.items()})
    for tiles in opened.values():
        tiles.require_rows()
    network = NetworkRecord(pair.fingerprint, {stream.name: stream.record for stream in streams})
    with open_writer(root, domain, network, record.choice) as writer:
        for stream in streams:
            _keep_weights(root, stream, sides[1].root, pair.fingerprint)
        for fold in _folds(root, domain, streams, record, pair, folding, progress):
            fold.run()
        writer.commit_record(record)
    moments = LayerMoments.stored(root, domain, {stream.name: stream.name for stream in streams}, folding.shards)
    return LayerCrossMoments.of(moments, {stream.layer: stream.pair for stream in streams})


@dataclass(frozen=True, slots=True)
class _JointStream:
    """One layer: where its rows are, and what is known of it."""

    layer: str
    tiles: PairedTiles
    record: LayerRecord

    @property
    def name(self) -> str:
        """Of the joint rows."""
        return stream_name(self.layer, Pairing.OUTPUTS)

    @property
    def pair(self) -> PairRecord:
        """Its widths."""
        return PairRecord(self.name, self.record.inputs, self.record.outputs)

    @classmethod
    def of(cls, original: ActivationStore, compressed: ActivationStore, domain: str, layer: str) -> _JointStream:
        outputs = stream_name(layer, Side.OUTPUTS)
        x, z = compressed.rows(domain, layer), original.rows(domain, outputs)
        now = compressed.manifest.network.layers[layer]
        if now.outputs != z.features or now.inputs != x.features:
            raise InvalidInputError(
                f"layer '{layer}': reads {x.features} and gives {now.outputs} features in '{compressed.root}', and "
                f"gives {z.features} in '{original.root}': its nodes were pruned, so pair the layers that read them"
            )
        x_tiles = StoredTiles(compressed.root, domain, layer, compressed)
        tiles = PairedTiles(x_tiles, StoredTiles(original.root, domain, outputs, original))
        weight, bias, side = now.weight_digest, now.bias_digest, Pairing.OUTPUTS.value
        record = LayerRecord(now.kind, x.features, z.features, weight, side=side, bias_digest=bias)
        return cls(layer, tiles, record)


def _names(
    original: ActivationStore, compressed: ActivationStore, domain: str, layers: Sequence[str] | None
) -> list[str]:
    """Return the layers to pair; raises LayerNotFoundError where a store lacks one, or there is none."""
    given = {layer_of_stream(name) for name in original.domain(domain).names if name.endswith(f"@{Side.OUTPUTS.value}")}
    read = [name for name in compressed.domain(domain).names if layer_of_stream(name) == name]
    for name in layers or ():
        if name not in read or name not in given:
            missing, what = (compressed.root, "inputs") if name not in read else (original.root, "outputs")
            raise LayerNotFoundError(
                f"layer '{name}': '{missing}' has no {what} of it on '{domain}': capture them there (side='{what}')"
            )
    names = [name for name in read if name in given] if layers is None else list(layers)
    if not names:
        raise LayerNotFoundError(
            f"'{compressed.root}' has inputs of {', '.join(read) or 'no layer'}, '{original.root}' outputs of "
            f"{', '.join(sorted(given)) or 'no layer'}: capture both sides of the same layers"
        )
    return names


def _keep_weights(root: Place, stream: _JointStream, compressed: Place, network: str) -> None:
    facts = {"network": network}
    if provenance_of(weights_path(root, stream.layer)) != facts:
        weights = load_layer_weights(compressed, stream.layer, stream.record)
        save_layer_weights(root, stream.layer, *weights, facts)


def _folds(  # where, what of, and how
    root: Place,
    domain: str,
    streams: Sequence[_JointStream],
    record: DomainRecord,
    pair: NetworkPair,
    folding: Folding,
    progress: Progress,
) -> Iterator[LayerFold]:
    """Yield what is to be folded: not those whose moments are there."""
    backend = backend_of(folding)
    for stream in streams:
        rule = folding.rule(stream.pair.features)
        provenance = moments_provenance(pair.fingerprint, record, stream.name, rule)
        checkpoints = Checkpoints(root, domain, stream.name, provenance)
        paths = [moments_path(root, domain, stream.name, part) for part in (*shard_parts(rule.shards), *PARTS)]
        if all(but_for_rounding(origin_of(path)) == but_for_rounding(provenance) for path in paths):
            progress.note(f"cross moments of '{stream.layer}' on '{domain}' are up to date")
            checkpoints.drop()
            continue
        readers = folding.threads.readers
        task = LaneTask(root, domain, stream.name, rule, backend=backend, source=stream.tiles, readers=readers)
        yield LayerFold(task, checkpoints, folding, progress)
