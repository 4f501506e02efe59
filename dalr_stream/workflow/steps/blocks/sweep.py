"""The compress step where no moments are kept: each block is accumulated, solved, compressed and written in one sweep.

    for each block    every batch goes through it, its layers' moments are kept
        each layer    is solved by every method, what the report shows of it is kept, and what takes its place is cut
        the block     is written; its moments are removed when the next one is asked for

So there is no accumulate and no solve step, and the store is empty in the end. What is kept of a layer are its curves,
at every rank and size; another size is another sweep.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from dalr_stream._version import __version__
from dalr_stream.engine.blocks.by_block import statistics_by_block
from dalr_stream.engine.ranks.ranks import Ranks
from dalr_stream.engine.statistics import Statistics
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import ConfigError, StoreNotFoundError
from dalr_stream.network.blocks.compress_into import compress_into
from dalr_stream.network.saved import checkpoint
from dalr_stream.network.saved.shard_writer import working_folder
from dalr_stream.network.surgery.compress import parameter_count
from dalr_stream.progress import Progress
from dalr_stream.report.records.results import LayerResults, layer_of_plain
from dalr_stream.storage.durable import remove_folder
from dalr_stream.storage.json_record import RecordKind, digest_of
from dalr_stream.storage.removal import forget_domain, forget_moments
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps import accumulate, capture
from dalr_stream.workflow.steps.blocks.swept_layers import ABSENT, SweptLayers
from dalr_stream.workflow.steps.session import Session
from dalr_stream.workflow.steps.step import read_stamped, write_stamped

VERB = "sweep"
"""What other ranks are told."""
SWEPT = RecordKind("swept layers", 1, "run compress")
_BEGUN = RecordKind("sweep that was begun", 1, "run compress")


def made_from(project: Project) -> str:
    """Return the fingerprint of what a sweep leaves: the rows, how they become moments, and what is made of these."""
    config = project.config
    settings = [config.solve.model_dump(mode="json"), config.plain()["compress"], __version__]
    return digest_of([accumulate.made_from(project, config.solve.target), *settings])


def swept_results(project: Project, fingerprint: str) -> Iterator[tuple[LayerResults, list[str]]]:
    """Yield what the report shows of each layer, and what was decided; raises where another sweep left it."""
    drop = project.evaluate_section.drop
    for plain in read_stamped(project.swept, SWEPT, fingerprint):
        yield dataclasses.replace(layer_of_plain(plain["results"]), drop=drop), plain["decisions"]


def sweep(session: Session, fingerprint: str) -> None:
    """Go from the weights to the compressed network; killed, the same command goes on in that block."""
    project = session.project
    capture.require_own_store(session)
    swept = SweptLayers(project, project.prospect(project.recorded), fingerprint, session.progress)
    for layer in swept.layers:
        swept.method(layer)
    _require_nothing_kept(session)
    _begin(session, fingerprint)
    if not swept.written:
        _write(session, swept)
    _finish(session, swept)


def share_in_sweep(project: Project, domain: str, progress: Progress, ranks: Ranks) -> None:
    """Do another rank's part of the sweep that rank 0 makes."""
    with project.code.importing(), _statistics(project, domain, progress, ranks):
        pass


def _require_nothing_kept(session: Session) -> None:
    """Raise ConfigError where the store has moments of the domain that were to be kept; --fresh removes them."""
    project, target = session.project, session.project.config.solve.target
    try:
        domains = StoreView.open(project.store).manifest.domains
    except StoreNotFoundError:
        return
    if target in domains and not session.fresh:
        raise ConfigError(
            f"accumulate.keep_moments: is false, and '{project.store}' has moments of '{target}' that were to be kept: "
            "compress from them, --set accumulate.keep_moments=true, pass --fresh to remove them, or choose another "
            "run.output"
        )


def _begin(session: Session, fingerprint: str) -> None:
    """Remove what a sweep of other settings left where it was stopped; that of these settings goes on."""
    project, target = session.project, session.project.config.solve.target
    begun = project.unfinished / "sweep.json"
    try:
        read_stamped(begun, _BEGUN, fingerprint)
    except ABSENT:
        stopped = False
    else:
        stopped = not session.fresh
    if not stopped:
        remove_folder(project.unfinished)  # first: until the new sweep has begun, there is none to go on with
        remove_folder(working_folder(project.compressed))
        forget_domain(project.store, target)
        forget_moments(project.store, target)
        write_stamped(begun, _BEGUN, fingerprint, {})


def _write(session: Session, swept: SweptLayers) -> None:
    project, target = session.project, session.project.config.solve.target
    session.announce(VERB, target)
    sweep = partial(_statistics, project, target, session.progress, session.ranks)
    with project.code.importing(), capture.naming_fresh(), _naming_fresh(), sweep() as statistics:
        checkpoint.remove_remnant(project.compressed)
        compress_into(
            project.recorded,
            {layer: partial(swept.replacement, statistics, layer) for layer in swept.layers},
            project.compressed,
            example=project.code.first_batch,
            provenance=lambda: swept.provenance,
            made_from=swept.fingerprint,
            last_first=bool(project.config.network.gradients),
            progress=session.progress,
        )


def _statistics(project: Project, domain: str, progress: Progress, ranks: Ranks) -> AbstractContextManager[Statistics]:
    return statistics_by_block(
        project.recorded,
        project.code.batches(domain),
        project.watched,
        store=project.store,
        domain=domain,
        blocks=project.config.network.blocks or True,
        rows=project.code.rows,
        folding=project.folding(domain),
        progress=progress,
        ranks=ranks,
    )


@contextmanager
def _naming_fresh() -> Iterator[None]:
    """Add the remedy where a block that was written is not whole any more, and its moments are gone."""
    try:
        yield
    except StoreNotFoundError as error:
        raise StoreNotFoundError(f"{error}; --fresh begins the sweep anew") from None


def _finish(session: Session, swept: SweptLayers) -> None:
    """Keep what was found of the layers, and how the network is compressed; what the sweep worked with goes last."""
    project, note, compression = session.project, session.progress.note, swept.compression
    write_stamped(project.swept, SWEPT, swept.fingerprint, [swept.kept(layer) for layer in swept.layers])
    compression.write(project.compression, swept.fingerprint)
    forget_moments(project.store, project.config.solve.target)
    remove_folder(working_folder(project.compressed))
    remove_folder(project.unfinished)
    before, after = parameter_count(project.recorded), checkpoint.parameters(project.compressed)
    note(f"compress: {compression.rule}: {compression}")
    for warning in compression.notes:
        note(f"warning: {warning}")
    note(f"compress: {before:,} -> {after:,} parameters ({after / before:.1%}), in '{project.compressed}'")
