"""The compress step of a network that goes block by block: sizes first, then one layer's replacement at a time."""

from __future__ import annotations

import dataclasses
from functools import partial

from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.network.blocks.compress_into import Given, compress_into
from dalr_stream.network.saved import checkpoint
from dalr_stream.network.surgery.compress import parameter_count
from dalr_stream.numerics.heads.narrowed import NarrowedHeads
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.selection.nodes import SelectedNodes
from dalr_stream.progress import Progress
from dalr_stream.storage.durable import remove_folder
from dalr_stream.storage.records.solutions import Solution
from dalr_stream.workflow.runfile.compress_section import Order
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.named_sizes import named_layers, named_sizes, replacements
from dalr_stream.workflow.steps.provenance import saved_provenance
from dalr_stream.workflow.steps.sequential import (
    choices_of,
    compress_in_sequence_by_blocks,
    compressed_in_turn_by_blocks,
)
from dalr_stream.workflow.steps.sizes.budget import BuildInTurn, sizes_by_blocks
from dalr_stream.workflow.steps.sizes.compression import Compression, LayerSize
from dalr_stream.workflow.steps.sizes.sizing import sizes_by_rule, solution_of


def compress_by_blocks(project: Project, store: StoreView, fingerprint: str, progress: Progress) -> None:
    """Write the compressed network and how it was decided; killed, the same command goes on after the last piece."""
    sizes, compression = _decided(project, store, fingerprint, progress)
    progress.note(f"compress: {compression.rule}: {compression}")
    notes: list[str] = []

    def given(layer: str) -> Given:
        record, warned = _cut(project, store, layer, compression.layers[layer].method, sizes[layer])
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


def _cut(project: Project, store: StoreView, layer: str, method: Method, size: float) -> tuple[Given, list[str]]:
    """Return what takes the place of one layer, and what was warned of on the way."""
    return cut(layer, solution_of(project, store, layer, method), size, project.config.solve.restore_ridge)


def cut(layer: str, solution: Solution, size: float, restore_ridge: float) -> tuple[Given, list[str]]:
    """Return a solution at a size, or at a share that is retained, and what was warned of on the way."""
    replaced, warned = replacements({layer: solution}, {layer: size}, restore_ridge)
    return replaced[layer], warned


def size_of(record: Given) -> int:
    """Return the rank, the number of nodes, or that of the dimensions of each head."""
    return record.size if isinstance(record, SelectedNodes | NarrowedHeads) else record.rank


def _decided(
    project: Project, store: StoreView, fingerprint: str, progress: Progress
) -> tuple[dict[str, int | float], Compression]:
    """Return the size of each layer, and how it was decided."""
    section = project.config.compress
    if section.within_budget:
        in_turn = _in_turn(project, store) if section.order is Order.SEQUENTIAL else None
        found, choice = sizes_by_blocks(project, store, fingerprint, progress, in_turn)
        whole = Compression(section.in_words, found, choice=choice, asked=len(project.layers))
        return {layer: one.size for layer, one in found.items()}, whole
    methods: dict[str, Method]
    sizes: dict[str, int | float] = {}
    if section.rule is None:
        sizes |= named_sizes(project, store)
        methods = {layer: choice.method for layer, choice in named_layers(project, project.layers).items()}
    else:
        sizes |= sizes_by_rule(project, store)
        methods = dict.fromkeys(sizes, project.config.compress_method)
    rule = "as named" if section.rule is None else section.in_words
    for layer in [layer for layer, size in sizes.items() if isinstance(size, float)]:  # a share that is retained
        sizes[layer] = size_of(_cut(project, store, layer, methods[layer], sizes[layer])[0])
    layers = {layer: LayerSize(methods[layer], int(size)) for layer, size in sizes.items()}
    return sizes, Compression(rule, layers, asked=len(project.layers))


def _in_turn(project: Project, store: StoreView) -> BuildInTurn:
    """Return what compresses one layer after the other at some sizes; a network is there until the next is made."""
    return lambda sizes: compressed_in_turn_by_blocks(project, choices_of(project, store, sizes))
