"""The compress step of a network that goes block by block: sizes first, then one layer's replacement at a time."""

from __future__ import annotations

import dataclasses
from functools import partial

from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.network.blocks.compress_into import Given, compress_into
from dalr_stream.network.saved import checkpoint
from dalr_stream.network.surgery.compress import parameter_count
from dalr_stream.progress import Progress
from dalr_stream.storage.durable import remove_folder
from dalr_stream.workflow.runfile.compress_section import Order
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.blocks.decided import cut_from_store, decide_by_blocks
from dalr_stream.workflow.steps.provenance import saved_provenance
from dalr_stream.workflow.steps.sequential import compress_in_sequence_by_blocks


def compress_by_blocks(project: Project, store: StoreView, fingerprint: str, progress: Progress) -> None:
    """Write the compressed network and how it was decided; killed, the same command goes on after the last piece."""
    sizes, compression = decide_by_blocks(project, store, fingerprint, progress)
    progress.note(f"compress: {compression.rule}: {compression}")
    notes: list[str] = []

    def given(layer: str) -> Given:
        record, warned = cut_from_store(project, store, layer, compression.layers[layer].method, sizes[layer])
        notes.extend(warned)
        return record

    network, replaced = project.recorded, {layer: partial(given, layer) for layer in sizes}
    if replaced and project.config.compress.order is Order.SEQUENTIAL:
        network, compression = compress_in_sequence_by_blocks(project, store, compression, progress)
        replaced = {}
    checkpoint.remove_remnant(project.compressed)
    compress_into(
        network,
        replaced,
        project.compressed,
        example=project.code.first_batch,
        provenance=saved_provenance(project.config, store, compression, fingerprint),
        made_from=fingerprint,
        progress=progress,
    )
    for warning in dict.fromkeys(notes):
        progress.note(f"warning: {warning}")
    dataclasses.replace(compression, notes=tuple(dict.fromkeys(notes))).write(project.compression, fingerprint)
    remove_folder(project.measuring)
    before, after = parameter_count(project.recorded), checkpoint.parameters(project.compressed)
    progress.note(f"compress: {before:,} -> {after:,} parameters ({after / before:.1%}), in '{project.compressed}'")
