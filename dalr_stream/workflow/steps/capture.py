"""The capture steps: the rows of each domain, streamed into the store, where they are to be kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dalr_stream.engine.capture import capture
from dalr_stream.engine.estimate import held_on_disk, require_disk
from dalr_stream.engine.ranks.ranks import Ranks
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import FingerprintMismatchError, StoreNotFoundError
from dalr_stream.network.layers.identity import fingerprint
from dalr_stream.numerics.rows.streams import layer_of_stream
from dalr_stream.progress import Progress
from dalr_stream.storage.json_record import digest_of
from dalr_stream.storage.layout import GROUP, MANIFEST
from dalr_stream.storage.metadata import require_group
from dalr_stream.storage.places.place import Place
from dalr_stream.storage.records.weights import weights_path
from dalr_stream.storage.removal import forget_domain, forget_store
from dalr_stream.storage.rows import rows_path
from dalr_stream.storage.store import ActivationStore
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps import train
from dalr_stream.workflow.steps.fingerprints import code_print
from dalr_stream.workflow.steps.session import Session
from dalr_stream.workflow.steps.solving.solving_plan import planned_solving
from dalr_stream.workflow.steps.step import Artefact, Step, store_record

VERB = "capture"


def name_of(domain: str) -> str:
    """Return the name of a domain's step."""
    return f"{VERB} {domain}"


def steps(session: Session) -> Iterator[Step]:
    """Yield a step for each domain; nothing where no activations are kept."""
    if session.project.config.capture.keep_activations:
        yield from (_step(session, domain) for domain in session.project.config.domains)


def _step(session: Session, domain: str) -> Step:
    project = session.project
    return Step(
        name_of(domain),
        VERB,
        (train.NAME,),
        lambda: made_from(project, domain),
        lambda: _artefacts(project, domain),
        lambda _: _capture(session, domain),
        on_demand=True,
    )


def made_from(project: Project, domain: str) -> str:
    """Return the fingerprint of a domain's rows."""
    config = project.config
    section, rows, network = config.domains[domain], config.capture, config.network
    functions = [*rows.mask_functions, *(config.gradients.functions if network.gradients else ())]
    data = [section.model_dump(mode="json"), code_print(project, section.batches, *functions)]
    choice: list[Any] = [rows.mask, rows.most_per_sample, rows.most_patches, config.run.seed]
    choice += [] if rows.prove else ["not proved"]
    watched = [network.layers, network.outputs, config.selects, network.device]
    if config.narrows:
        watched.append("heads")
    if network.gradients:
        watched += [network.gradients, config.gradients.model_dump(mode="json")]
    return digest_of([train.made_from(project), domain, data, watched, choice])


def domain_artefacts(project: Project) -> Iterator[Artefact]:
    """Yield what recording a domain leaves beside rows or moments: the manifest, and the weights of its layers."""
    yield Artefact(project.store / MANIFEST)
    yield _group(project.store)
    streams = StoreView.open(project.store).manifest.network.layers
    yield from (store_record(weights_path(project.store, layer)) for layer in map(layer_of_stream, streams))


def _artefacts(project: Project, domain: str) -> Iterator[Artefact]:
    yield from domain_artefacts(project)
    record = ActivationStore(project.store).domain(domain)
    if not record.complete or any(rows.rows and not rows.tile_digests for rows in record.layers.values()):
        raise StoreNotFoundError(f"'{project.store}' holds no rows of all of '{domain}'")  # they were folded directly
    yield from (_group(project.store / "activations" / name) for name in ("", domain))
    yield from (Artefact(project.store / rows_path(domain, layer)) for layer in record.layers)


def _group(folder: Place) -> Artefact:
    """Return a folder of the store: other zarr readers walk through it."""
    return Artefact(folder / GROUP, lambda: require_group(folder))


def _capture(session: Session, domain: str) -> None:
    project = session.project
    require_own_store(session)
    if session.fresh:
        forget_domain(project.store, domain)
    session.announce(VERB, domain)
    capture_domain(project, domain, session.progress, session.ranks)


def capture_domain(project: Project, domain: str, progress: Progress, ranks: Ranks) -> None:
    """Stream a domain's rows into the store: a rank's share of them."""
    with project.code.importing(), naming_fresh():
        capture(
            project.network,
            project.code.batches(domain),
            project.watched,
            project.store,
            domain=domain,
            rows=project.code.rows,
            progress=progress,
            ranks=ranks,
        )


def require_own_store(session: Session) -> None:
    """Check, before anything is written, the cost, what later steps need, and that the store is of this network."""
    _require_room(session)
    project = session.project
    try:
        require_same_network(project, StoreView.open(project.store))
    except StoreNotFoundError:
        return
    except FingerprintMismatchError as error:
        if not session.fresh:
            raise FingerprintMismatchError(
                f"{error}: pass --fresh to replace the store, or choose another run.output"
            ) from None
        session.progress.note(f"replacing '{project.store}', which was made from another network")
        forget_store(project.store)


def require_same_network(project: Project, store: StoreView) -> None:
    """Raise FingerprintMismatchError where the store was made from another network than the project's."""
    made_from, here = store.manifest.network.fingerprint, fingerprint(project.recorded)
    if made_from != here:
        raise FingerprintMismatchError(
            f"'{store.root}' was made from the network with fingerprint {made_from[:12]}, this one has {here[:12]}"
        )


@contextmanager
def naming_fresh() -> Iterator[None]:
    """Add the command line's remedy to a mismatch."""
    try:
        yield
    except FingerprintMismatchError as error:
        raise FingerprintMismatchError(f"{error}; --fresh replaces what was captured") from None


def _require_room(session: Session) -> None:
    """Report the cost once, and refuse a run that would not fit, or whose later steps would be refused."""
    if session.room_checked:
        return
    session.check_all_steps()
    project = session.project
    cost = project.estimate(ranks=session.ranks.ranks)
    cost.require()
    solving = planned_solving(project, project.recorded, cost)
    solving.require()
    session.check_memory(cost, solving)
    held = held_on_disk(project.store, project.config.domains, replaced=session.fresh)
    require_disk(cost, project.output, held)
    for reason in project.unsupported_layers:
        session.progress.note(reason)
    session.progress.note(
        f"cost: at most {cost.disk_peak_bytes / 2**20:,.0f} MiB of disk, {cost.checkpoint_bytes / 2**20:,.0f} of them "
        f"for checkpoints; folding peaks at {cost.peak_bytes / 2**20:,.0f} MiB, solving at "
        f"{solving.peak_bytes / 2**20:,.0f} MiB"
    )
    session.room_checked = True
