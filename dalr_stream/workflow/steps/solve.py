"""The solve step: every layer by every method, for every rank, from the moments in the store alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from dalr_stream._version import __version__
from dalr_stream.engine.solve import solve_heads, solve_selection
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import DalrStreamWarning, FingerprintMismatchError
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.progress import Progress
from dalr_stream.report.records.stability import Stability
from dalr_stream.storage.contents import DomainRecord
from dalr_stream.storage.json_record import digest_of
from dalr_stream.storage.lock import locked
from dalr_stream.storage.records.moments import moments_path
from dalr_stream.storage.records.record import provenance_of
from dalr_stream.storage.records.solutions import Solution, save_solution
from dalr_stream.storage.schema import TRAINING
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.runfile.sections import SolveSection
from dalr_stream.workflow.steps import accumulate
from dalr_stream.workflow.steps.session import Session
from dalr_stream.workflow.steps.solving.ridge import require_rows_for_ridge, solve_as_asked
from dalr_stream.workflow.steps.solving.solving_plan import solving_from
from dalr_stream.workflow.steps.solving.stability import STABILITY, layer_stability, write_stability
from dalr_stream.workflow.steps.step import Artefact, Step, json_record, store_record

NAME = "solve"
_OF_ALL_LAYERS = ("holdout", "precision", "engine", "shards")
"""What the layers of a domain have in common in the rule that their moments were folded by."""


def steps(session: Session) -> Iterator[Step]:
    """Yield the step."""
    project = session.project
    if project.config.sweeps:
        return
    yield Step(
        NAME,
        NAME,
        tuple(accumulate.name_of(domain) for domain in project.config.domains),
        lambda: made_from(project),
        lambda: _artefacts(project),
        lambda stamp: _solve(session, stamp),
        lambda: require_rows_for_ridge(project),
        from_store=True,
    )


def made_from(project: Project) -> str:
    """Return the fingerprint of all solutions: of the moments in the store, whatever made them, and of [solve]."""
    moments = StoreView.open(project.store).moments_provenance(list(project.config.domains))
    return digest_of([moments, project.config.solve.model_dump(mode="json"), __version__])


def _artefacts(project: Project) -> Iterator[Artefact]:
    yield json_record(project.stability, STABILITY)
    store = StoreView.open(project.store)
    for layer, method in project.wanted(store):
        yield from map(store_record, store.solution_paths(layer, method))


def _solve(session: Session, fingerprint: str) -> None:
    project, section = session.project, session.project.config.solve
    store = StoreView.open(project.store)
    _require_one_rule(project, store)
    solving_from(project, store).require()
    facts = {"made_from": fingerprint, "configuration": project.config.plain()}
    count = len(project.wanted(store))
    stability: dict[str, Stability | None] = {}
    with locked(project.store), session.progress.track(NAME, count, "solutions") as advance:
        for layer in project.layers:  # one at a time: a layer holds its moments and weights once they were asked for
            problem = store.layer(layer, section.target, section.source)
            with warnings_noted(layer, session.progress):
                for method in project.methods(store, layer):
                    save_solution(project.store, layer, _solution(store, section, layer, problem, method), facts)
                    advance(1)
            stability[layer] = layer_stability(store, section, layer, problem, project.methods(store, layer))
            if (answer := stability[layer]) is not None:
                session.progress.note(f"layer '{layer}': {answer.answer}")
        write_stability(project.stability, fingerprint, stability)


def _require_one_rule(project: Project, store: StoreView) -> None:
    """Raise FingerprintMismatchError where moments of a domain were accumulated by two rules: killed between layers."""
    for domain in project.config.domains:
        record = store.manifest.domains.get(domain, DomainRecord())
        paths = [moments_path(store.root, domain, record.home(layer), TRAINING) for layer in record.names]
        rules = [(provenance_of(path) or {}).get("rule", {}) for path in paths]
        settings = [{key: rule.get(key) for key in _OF_ALL_LAYERS} for rule in rules if rule]
        if any(one != settings[0] for one in settings):
            raise FingerprintMismatchError(
                f"'{store.root}': the moments of '{domain}' come from two accumulations with different settings: "
                "run accumulate"
            )


def _solution(store: StoreView, section: SolveSection, layer: str, problem: Layer, method: Method) -> Solution:
    if method.family is Family.LOW_RANK:
        return solve_as_asked(store, section, layer, problem, method)
    heads = store.record(layer).heads
    if method.family is Family.HEADS and heads is not None:
        attention = store.attention(layer, section.target)
        return solve_heads(attention, heads, method, section.restore_ridge, section.gradient_ridge_rule)
    return solve_selection(problem, method, section.strength)


@contextmanager
def warnings_noted(layer: str, progress: Progress) -> Iterator[None]:
    """Turn the package's warnings of a layer into notes, the first of each kind: other methods warn of the same."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DalrStreamWarning)
        yield
    for warning in {warning.category: warning for warning in reversed(caught)}.values():
        progress.note(f"warning: layer '{layer}': {warning.message}")
