"""The compress step: the network that the run file's [compress] section describes, saved with how it was decided."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import nn

from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.network.blocks.rehearsal import require_replaceable_in_pieces
from dalr_stream.network.layers.elsewhere import weights_elsewhere
from dalr_stream.network.saved import checkpoint
from dalr_stream.network.surgery.compress import compress, parameter_count
from dalr_stream.network.surgery.rehearsal import require_replaceable_by_pairs
from dalr_stream.numerics.methods import Family
from dalr_stream.storage.durable import remove_folder
from dalr_stream.storage.json_record import digest_of
from dalr_stream.storage.layout import MANIFEST
from dalr_stream.workflow.runfile.compress_section import Order
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps import capture, solve, train
from dalr_stream.workflow.steps.blocks import sweep
from dalr_stream.workflow.steps.blocks.compress_by_blocks import compress_by_blocks
from dalr_stream.workflow.steps.blocks.networks import compresses_by_blocks
from dalr_stream.workflow.steps.fingerprints import labelled_print
from dalr_stream.workflow.steps.named_sizes import named_layers, require_choices
from dalr_stream.workflow.steps.provenance import saved_provenance
from dalr_stream.workflow.steps.sequential import (
    choices_of,
    compress_in_sequence,
    compressed_in_turn,
    forget_pass_moments,
    forget_sequence,
)
from dalr_stream.workflow.steps.session import Session
from dalr_stream.workflow.steps.sizes.compression import COMPRESSION, LayerSize
from dalr_stream.workflow.steps.sizes.sizing import decide
from dalr_stream.workflow.steps.step import Artefact, Step, json_record, saved_network

NAME = "compress"


def steps(session: Session) -> Iterator[Step]:
    """Yield the step; nothing where [compress] names no layers and no rule."""
    project = session.project
    if project.config.compress.wanted:
        yield Step(
            NAME,
            NAME,
            (train.NAME,) if project.config.sweeps else (solve.NAME,),
            lambda: made_from(project),
            lambda: _artefacts(project),
            lambda stamp: _compress(session, stamp),
            lambda: _check(project),
        )


def _artefacts(project: Project) -> Iterator[Artefact]:
    yield from (saved_network(project.compressed), json_record(project.compression, COMPRESSION))
    if project.config.sweeps:
        yield from (json_record(project.swept, sweep.SWEPT), Artefact(project.store / MANIFEST))


def made_from(project: Project) -> str:
    """Return the fingerprint of the compressed network."""
    config = project.config
    if config.sweeps:
        return sweep.made_from(project)
    scored = config.compress.max_drop is not None or config.compress.within_budget
    searched = labelled_print(project, config.validation) if scored else []
    seed = config.run.seed if searched else None
    return digest_of([solve.made_from(project), config.plain()["compress"], searched, seed, _streamed_again(project)])


def _streamed_again(project: Project) -> list[str]:
    """Return the fingerprints of the domains that compressing layer after layer goes through once more."""
    section = project.config.solve
    if project.config.compress.order is not Order.SEQUENTIAL:
        return []
    domains = [section.target, section.source, section.heldout]
    return [capture.made_from(project, domain) for domain in domains if domain is not None]


def require_replaceable(project: Project, network: nn.Module) -> None:
    """Raise UnsupportedLayerError where a layer that factor pairs are to replace could not be replaced by one.

    `network` says which layers there are; the network itself is only asked for where some are to be replaced.
    """
    config, store = project.config, project.prospect(network)
    choices = named_layers(project, project.layers_in(store))
    replaced = [layer for layer, choice in choices.items() if choice.method.family is Family.LOW_RANK]
    tried = config.solve.methods if config.evaluate is not None else ()
    by_rule = config.methods_within_budget(config.compress.method) if config.compress.rule else ()
    methods = (*tried, *by_rule)
    if any(method.family is Family.LOW_RANK for method in methods):
        replaced += project.layers_in(store)
    if replaced and weights_elsewhere(network) is not None:
        require_replaceable_in_pieces(network, replaced, project.code.first_batch)
    elif replaced:
        require_replaceable_by_pairs(network, replaced, project.code.first_batch)


def _check(project: Project) -> None:
    network = project.recorded_stand_in()
    require_choices(project, project.prospect(network))
    require_replaceable(project, network)
    validation = project.config.validation
    if project.config.compress.max_drop is not None and validation is not None and validation.metric != "accuracy":
        project.code.metric("validation", validation)


def _compress(session: Session, fingerprint: str) -> None:
    project, note = session.project, session.progress.note
    if project.config.sweeps:
        sweep.sweep(session, fingerprint)
        return
    store = StoreView.open(project.store)
    capture.require_same_network(project, store)
    if session.fresh:
        remove_folder(project.measuring)
    if session.fresh and project.config.compress.order is Order.SEQUENTIAL:
        forget_pass_moments(project)
    if compresses_by_blocks(project):
        compress_by_blocks(project, store, fingerprint, session.progress)
        return
    replacements, compression = decide(project, store, session.progress, _in_turn(project, store))
    note(f"compress: {compression.rule}: {compression}")
    for warning in compression.notes:
        note(f"warning: {warning}")
    small = compress(project.network, replacements, example=project.structure or project.code.first_batch)
    if replacements and project.config.compress.order is Order.SEQUENTIAL:
        small, compression = compress_in_sequence(project, store, compression, small, fingerprint, session.progress)
    facts = saved_provenance(project.config, store, compression, fingerprint)
    checkpoint.remove_remnant(project.compressed)
    checkpoint.save(small, project.compressed, provenance=facts)
    compression.write(project.compression, fingerprint)
    forget_sequence(project)
    before, after = parameter_count(project.network), parameter_count(small)
    note(f"compress: {before:,} -> {after:,} parameters ({after / before:.1%}), in '{project.compressed}'")


def _in_turn(project: Project, store: StoreView) -> Callable[[Mapping[str, LayerSize]], nn.Module] | None:
    """Return what compresses one layer after the other at some sizes; None where all are compressed at once."""
    if project.config.compress.order is not Order.SEQUENTIAL:
        return None
    return lambda sizes: compressed_in_turn(project, choices_of(project, store, sizes))
