"""Network and data to a store: the rows of every watched layer, committed as they come, resumable at any instant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from dalr_stream.engine.ranks.passes import require_same_on_all
from dalr_stream.engine.ranks.ranks import Ranks
from dalr_stream.engine.ranks.rows import DealtWriter, SentRows
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.capture.hooks import ToRows, capture_rows, require_batches, require_layers
from dalr_stream.network.capture.loaders import can_resume, length_of
from dalr_stream.network.capture.resuming.onward import ResumedPass
from dalr_stream.network.capture.row_rule import RowRule, rule_of
from dalr_stream.network.capture.wrapped import plain_network, require_for_ranks
from dalr_stream.network.layers.elsewhere import weights_elsewhere
from dalr_stream.network.layers.identity import bias_digest, fingerprint, require_numbers, tensor_digest
from dalr_stream.network.layers.kinds import matrix_of
from dalr_stream.network.layers.spec import LayerSpec, layer_of, to_host, weights_of
from dalr_stream.numerics.rows.tiling import ProbedSink, SharingSink
from dalr_stream.progress import Progress, Silent
from dalr_stream.storage.contents import LayerRecord, NetworkRecord
from dalr_stream.storage.places.place import Place, place_of
from dalr_stream.storage.records.record import origin_of
from dalr_stream.storage.records.weights import save_layer_weights, weights_path
from dalr_stream.storage.store import ActivationStore
from dalr_stream.storage.writer import ActivationWriter, open_writer


def capture(  # noqa: PLR0913  # each is a word of the sentence that the caller writes
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    store: str | Place,
    *,
    domain: str,
    rows: RowRule | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> ActivationStore:
    """Stream what `layers` read, or give, into the zarr store at `store`, as one domain, and return the store.

    Call it again after an interruption and it resumes: batches whose rows are all on disk are compared by digest and
    not run again, or not even loaded where the loader can begin after them (see `network.loaders`). A domain that is
    complete costs one pass over its loader and none through the network. The layers' weights are kept beside the rows,
    so solving needs no network.

    Parameters
    ----------
    model
        The network, in eval mode.
    batches
        What it is run on, samples first: tensors, (inputs, labels), or mappings of keyword arguments.
    layers
        What to record: from `watch`.
    store
        The folder of the store or its URL in a bucket, new or of the same network.
    domain
        The name of this data set within the store, for example "target".
    rows
        Which rows of each layer are kept; all by default, of convolutions a few patches a sample.
    progress
        Receives progress, for example from `show_progress()`; silent by default.
    ranks
        The processes of this job, from `open_ranks`: each runs the network on its share of the batches, and rank 0
        alone writes the store, which is the one that one process writes.

    Returns
    -------
    ActivationStore
        The store, for a look at its rows; `accumulate(store)` and `open_store(store)` take its path.

    Raises
    ------
    FingerprintMismatchError
        Where the store came from another network, batch size, data or choice of rows. What was committed stays.
    NonFiniteError
        Where activations hold NaN or Inf; nothing of that batch is committed.
    UnsupportedLayerError
        Where a layer's rows cannot be attributed to samples.
    InvalidInputError
        For a network in train mode, no layers, or a loader that gives no samples.

    See Also
    --------
    accumulate : the moments, from such a store or without one.
    watch : which layers to record.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
    >>> batches = [torch.randn(32, 6) for _ in range(4)]
    >>> store = ds.capture(model, batches, ds.watch(model, ["0", "2"]), "birds.zarr", domain="target")
    >>> store
    <store 'birds.zarr' of network ...: target (128 samples, 2 layers, 0 with moments)>
    >>> ds.accumulate("birds.zarr")["0"].inputs.features
    6
    """
    root, model, link = place_of(store), plain_network(model), ranks or Ranks()
    progress = progress or Silent()
    rows = rule_of(rows).of_layers(layers)
    require_batches(batches)
    require_numbers(model)
    if link.ranks > 1:
        require_for_ranks(model, batches, link.ranks)
    network = network_record(model, layers)
    require_same_on_all(link, {"network": network.fingerprint, "layers": list(network.layers), "choice": rows.words})
    if not link.first:
        part = SentRows(link)
        if not part.over:
            one_pass(model, batches, layers, part, rows=rows, title="", progress=Silent())
        return ActivationStore(root)
    with open_writer(root, domain, network, rows.words) as writer:
        keep_weights(model, layers, root, network.fingerprint)
        _tell_resume(writer, domain, progress)
        sink = writer if link.ranks == 1 else DealtWriter(writer, link)
        one_pass(model, batches, layers, sink, rows=rows, title=f"capture {domain}", progress=progress)
    return ActivationStore(root)


def network_record(model: nn.Module, layers: Sequence[LayerSpec]) -> NetworkRecord:
    """Return what identifies a network, its watched streams of rows, and who reads their layers' channels."""
    require_layers(layers)
    if weights_elsewhere(model) is None:
        require_numbers(model)
    streams = watched_streams(model, layers)  # first: where pieces are read for it, their digests are known then
    return NetworkRecord(fingerprint(model), streams)


def watched_streams(model: nn.Module, layers: Sequence[LayerSpec]) -> dict[str, LayerRecord]:
    """Return the layer behind each stream of rows, by the stream's name."""
    records = {
        layer.stream: _layer_record(model, layer) for group in Pieces.of(model).one_by_one(layers) for layer in group
    }
    return {layer.stream: records[layer.stream] for layer in layers}


def keep_weights(model: nn.Module, layers: Sequence[LayerSpec], root: Place, network: str) -> None:
    """Write each layer's weight and bias to the store of `network`, where they are not there yet."""
    facts = {"network": network}
    layers = list({layer.name: layer for layer in layers}.values())  # of several sides, once
    missing = [layer for layer in layers if origin_of(weights_path(root, layer.name)) != facts]
    for group in Pieces.of(model).one_by_one(missing):
        for layer in group:
            save_layer_weights(root, layer.name, *weights_of(model, layer.name), facts)


def one_pass(  # noqa: PLR0913  # what capture_rows takes, and how to tell of it
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    sink: ProbedSink,
    *,
    rows: RowRule | None,
    to_rows: ToRows = to_host,
    title: str,
    progress: Progress,
    onward: ResumedPass | None = None,
    probes: bool = True,
) -> None:
    """Send the rows of `layers` to `sink`; see `network.capture.capture_rows`.

    `probes` tells whether a made-up sample goes through the network first.
    """
    held = len(sink.held)
    if held and can_resume(batches):
        progress.note(
            f"{title}: resuming at batch {held - 1}; earlier batches are skipped without being loaded or verified"
        )
    elif held:
        progress.note(
            f"{title}: the loader has no `starting_at`, so its first {held} batches are loaded again, and compared"
        )
    with progress.track(title, length_of(batches), "batches") as advance:
        capture_rows(
            model,
            batches,
            layers,
            sink,
            rows=rows,
            to_rows=to_rows,
            note=progress.note,
            onward=onward,
            probed=sink.probed if probes else None,
            share_from=sink.share_from if isinstance(sink, SharingSink) else None,
            batch_done=lambda _samples, _spared: advance(1),
        )


def _layer_record(model: nn.Module, layer: LayerSpec) -> LayerRecord:
    readers = () if layer.group is None else layer.group.readers
    others = () if layer.group is None else [name for name in layer.group.producers if name != layer.name]
    module = layer_of(model, layer.name)
    return LayerRecord(
        layer.kind,
        layer.inputs,
        layer.outputs,
        tensor_digest(matrix_of(module)),
        readers,
        sum(reader.weights for reader in readers) + sum(matrix_of(layer_of(model, name)).shape[1] for name in others),
        layer.unprunable,
        layer.side.value,
        bias_digest(module),
        layer.heads,
        layer.no_heads,
    )


def _tell_resume(writer: ActivationWriter, domain: str, progress: Progress) -> None:
    if writer.complete:
        progress.note(f"domain '{domain}' is complete: comparing its batches, running none")
    elif writer.committed_batches:
        progress.note(f"domain '{domain}': resuming after {writer.committed_batches} committed batches")
