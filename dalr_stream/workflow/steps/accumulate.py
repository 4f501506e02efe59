"""The accumulate steps: each domain's rows to moments, from the store or as the network makes them."""

from __future__ import annotations

from collections.abc import Iterator

from dalr_stream.engine.backend import backend_of
from dalr_stream.engine.direct import from_network
from dalr_stream.engine.from_store import accumulate_stored, moments_provenance
from dalr_stream.engine.ranks.ranks import Ranks
from dalr_stream.errors import ConfigError, InvalidInputError, StoreNotFoundError
from dalr_stream.progress import Progress
from dalr_stream.storage.json_record import digest_of
from dalr_stream.storage.records.moments import moments_path, shard_parts
from dalr_stream.storage.records.record import provenance_of
from dalr_stream.storage.removal import clear_litter, forget_domain, forget_moments
from dalr_stream.storage.schema import PARTS, TRAINING
from dalr_stream.storage.store import ActivationStore
from dalr_stream.streaming.folding import rounded_as
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps import capture, train
from dalr_stream.workflow.steps.session import Session
from dalr_stream.workflow.steps.step import Artefact, Step, store_record

VERB = "accumulate"


def name_of(domain: str) -> str:
    """Return the name of a domain's step."""
    return f"{VERB} {domain}"


def steps(session: Session) -> Iterator[Step]:
    """Yield a step for each domain."""
    if not session.project.config.sweeps:
        yield from (_step(session, domain) for domain in session.project.config.domains)


def _step(session: Session, domain: str) -> Step:
    project = session.project
    keeps = project.config.capture.keep_activations
    return Step(
        name_of(domain),
        VERB,
        (train.NAME, *([capture.name_of(domain)] if keeps else [])),
        lambda: made_from(project, domain),
        lambda: _artefacts(project, domain),
        lambda _: _fold_stored(session, domain) if keeps else _fold_directly(session, domain),
        lambda: _check(project),
    )


def _check(project: Project) -> None:
    """Raise ConfigError for a device that is not there, before hours of capturing for it."""
    section = project.config.accumulate
    if section.device is not None and section.scheduler is None and section.workers is None:
        try:
            backend_of(project.folding(project.config.solve.target))
        except InvalidInputError as error:
            raise ConfigError(f"accumulate.device: {error}") from None


def made_from(project: Project, domain: str) -> str:
    """Return the fingerprint of a domain's moments."""
    config = project.config
    rule, section = config.holdout(domain), config.accumulate
    settings = [rule.share, rule.seed, section.precision, section.device, config.shards(domain)]
    settings += [] if section.segment_batches is None else [section.segment_batches]
    return digest_of([capture.made_from(project, domain), *settings])


def _artefacts(project: Project, domain: str) -> Iterator[Artefact]:
    yield from capture.domain_artefacts(project)
    store = ActivationStore(project.store)
    record, network = store.domain(domain), store.manifest.network.fingerprint
    if not record.complete:
        raise StoreNotFoundError(f"the rows of '{domain}' in '{project.store}' are not complete")
    folding, parts = project.folding(domain), (*PARTS, *shard_parts(project.config.shards(domain)))
    for layer in {record.home(layer): None for layer in record.names}:
        training = provenance_of(moments_path(project.store, domain, layer, TRAINING)) or {}
        expected = training
        if not record.shards:  # a merged store's moments were folded elsewhere
            rule = folding.rule(record.layers[layer].features)
            made_from = moments_provenance(network, record, layer, rule)
            expected = {**training, **rounded_as(made_from, training)}
        yield from (store_record(moments_path(project.store, domain, layer, part), expected) for part in parts)


def _fold_stored(session: Session, domain: str) -> None:
    project = session.project
    if session.fresh:
        forget_moments(project.store, domain)
    clear_litter(project.store)  # of a fold that was killed, which leaves nothing to do where its moments are kept
    folding = project.folding(domain, session.cluster())
    accumulate_stored(project.store, domain=domain, folding=folding, progress=session.progress)


def _fold_directly(session: Session, domain: str) -> None:
    project = session.project
    capture.require_own_store(session)
    if session.fresh:
        forget_domain(project.store, domain)
        forget_moments(project.store, domain)
    session.announce(VERB, domain)
    fold_domain(project, domain, session.progress, session.ranks)


def fold_domain(project: Project, domain: str, progress: Progress, ranks: Ranks) -> None:
    """Fold a domain's rows as the network makes them: a rank's share of them."""
    with project.code.importing(), capture.naming_fresh():
        from_network(
            project.recorded,
            project.code.batches(domain),
            project.watched,
            project.store,
            domain=domain,
            rows=project.code.rows,
            folding=project.folding(domain),
            progress=progress,
            ranks=ranks,
            blocks=project.config.network.blocks or None,
        )
