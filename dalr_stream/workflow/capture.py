"""Network and data to a store: the rows of every watched layer, committed as they come, resumable at any instant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dalr_stream.errors import InvalidInputError, UnsupportedLayerError
from dalr_stream.network.graph import consumers_of
from dalr_stream.network.groups import module_name
from dalr_stream.network.kinds import matrix_of
from dalr_stream.network.layers import (
    LayerSpec,
    fingerprint,
    layer_of,
    linear,
    select_layers,
    tensor_digest,
    weights_of,
)
from dalr_stream.network.rows import RowRule
from dalr_stream.storage.activations import ActivationStore, ActivationWriter, open_writer
from dalr_stream.storage.archive import provenance_of, save_weights, weights_path
from dalr_stream.storage.manifest import LayerRecord, NetworkRecord
from dalr_stream.workflow.one_pass import one_pass
from dalr_stream.workflow.progress import Progress, Silent


def capture(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    store: str | Path,
    *,
    domain: str,
    rows: RowRule | None = None,
    progress: Progress | None = None,
) -> ActivationStore:
    """Stream what `layers` read, or give, into the zarr store at `store`, as one domain, and return the store.

    `rows` says which of their rows; every one by default. Resumes by itself: batches whose rows are all on disk are
    compared by digest and not run again, or not even loaded where the loader can begin after them (see
    `network.loaders`). A domain that is complete costs one pass over its loader and none through the network. The
    layers' weights are kept beside the rows, so that solving needs no network.

    Raises FingerprintMismatchError where the store came from another network, batch size, data or choice of rows;
    NonFiniteError, UnsupportedLayerError and InvalidInputError as `network.capture.capture_rows` does. What was
    committed stays.
    """
    root = Path(store)
    progress = progress or Silent()
    rows = rows or RowRule()
    with open_writer(root, domain, network_record(model, layers), rows.words) as writer:
        keep_weights(model, layers, root)
        _tell_resume(writer, domain, progress)
        one_pass(model, batches, layers, writer, rows=rows, title=f"capture {domain}", progress=progress)
    return ActivationStore(root)


def network_record(model: nn.Module, layers: Sequence[LayerSpec]) -> NetworkRecord:
    """Return what identifies a network, its watched streams of rows, and who reads their layers' nodes."""
    if not layers:
        raise InvalidInputError("capture: needs at least one layer")
    return NetworkRecord(fingerprint(model), {layer.stream: _layer_record(model, layer) for layer in layers})


def with_consumers(model: nn.Module, layers: Sequence[LayerSpec]) -> tuple[LayerSpec, ...]:
    """Return `layers` and, for each, the first layer that reads its nodes: a selection is solved from its inputs."""
    readers = [_consumers(model, layer.name)[0][:1] for layer in layers]
    return select_layers(model, [*(layer.name for layer in layers), *(name for names in readers for name in names)])


def keep_weights(model: nn.Module, layers: Sequence[LayerSpec], root: Path) -> None:
    """Write each layer's weight and bias to the store, where they are not there yet."""
    facts = {"network": fingerprint(model)}
    for layer in layers:
        if provenance_of(weights_path(root, layer.name)) != facts:
            save_weights(root, layer.name, *weights_of(model, layer.name), facts)


def _layer_record(model: nn.Module, layer: LayerSpec) -> LayerRecord:
    consumers, unprunable = _consumers(model, layer.name)
    digest = tensor_digest(matrix_of(layer_of(model, layer.name)))
    next_outputs = sum(linear(model, consumer).out_features for consumer in consumers)
    return LayerRecord(
        layer.kind, layer.inputs, layer.outputs, digest, consumers, next_outputs, unprunable, layer.side.value
    )


def _consumers(model: nn.Module, layer: str) -> tuple[tuple[str, ...], str]:
    """Return the layer's consumers, or none and the reason."""
    if module_name(layer) != layer:
        return (), f"layer '{layer}': the channels of one group are not selected by themselves"
    try:
        return consumers_of(model, layer), ""
    except UnsupportedLayerError as error:
        return (), str(error)


def _tell_resume(writer: ActivationWriter, domain: str, progress: Progress) -> None:
    if writer.complete:
        progress.note(f"domain '{domain}' is complete: comparing its batches, running none")
    elif writer.committed_batches:
        progress.note(f"domain '{domain}': resuming after {writer.committed_batches} committed batches")
