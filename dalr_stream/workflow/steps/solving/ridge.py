"""A ridge chosen for one layer and one method, by the rows that the run file names."""

from __future__ import annotations

import dataclasses

from dalr_stream.engine.solve import solve_again, solve_low_rank
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import ConfigError, InvalidInputError
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.lowrank.factors import LowRankFactors
from dalr_stream.numerics.lowrank.grouped import Factors, factors_of
from dalr_stream.numerics.lowrank.ridge import DEFAULT_RIDGE, Ridge
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.resampling.ridge_choice import RidgeChoice, choose_ridge
from dalr_stream.numerics.statistics.grouped import InputMoments
from dalr_stream.storage.records.solutions import Solution
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.runfile.ridges import RidgeFrom
from dalr_stream.workflow.runfile.sections import SolveSection

HELDOUT_CHOSE = (
    "held-out rows chose the ridge, so the error on them is a little too small: judge by the test metric, or choose by "
    "shards"
)

_SHARDS = "needs at least two shards of the target: set accumulate.shards = 8, or merge captures"
_HELDOUT = "needs held-out rows and there are none: set accumulate.heldout_share, or name a domain as solve.heldout"


def solve_as_asked(store: StoreView, section: SolveSection, layer: str, problem: Layer, method: Method) -> Factors:
    """Return every rank of one low-rank method, at the ridge of the run file or the one its rows choose.

    A choice is recorded in the diagnostics: the ridges tried, the error of each, and by what. Raises InvalidInputError
    where there are no such rows.
    """
    rule = section.ridge_for(method)
    if isinstance(rule, Ridge) or not method.takes_ridge:
        ridge = rule if isinstance(rule, Ridge) else DEFAULT_RIDGE
        return solve_low_rank(problem, method, ridge, section.gradient_ridge_rule)
    choice = _choice(store, section, layer, problem, method)
    factors = solve_low_rank(problem, method, choice.ridge, section.gradient_ridge_rule)
    notes = (choice.note, HELDOUT_CHOSE) if rule is RidgeFrom.HELDOUT else (choice.note,)
    return factors_of([_recorded(part, choice, notes) for part in factors.parts])


def require_rows_for_ridge(project: Project) -> None:
    """Raise ConfigError where no rows will be kept apart that could choose the ridge, before anything is captured."""
    config, section = project.config, project.config.solve
    if not section.chooses_ridge or project.store.exists():  # a store has what it has: merged ones have shards
        return
    if section.ridge is RidgeFrom.SHARDS and config.shards(section.target) < 2:
        raise ConfigError(f"solve.ridge: 'shards' {_SHARDS}")
    if section.ridge is RidgeFrom.HELDOUT and section.heldout is None and not config.holdout(section.target).share:
        raise ConfigError(f"solve.ridge: 'heldout' {_HELDOUT}")


def ridge_of(section: SolveSection, solution: Solution) -> Ridge:
    """Return the ridge that a solution of this section was solved with: the one its rows chose, or the run file's.

    The default for methods that no ridge changes.
    """
    chosen_ridge, rule = solution.diagnostics.chosen_ridge, section.ridge_for(solution.method)
    if chosen_ridge is not None:
        return Ridge.relative(chosen_ridge)
    return rule if isinstance(rule, Ridge) else DEFAULT_RIDGE


def _recorded(factors: LowRankFactors, choice: RidgeChoice, more_notes: tuple[str, ...]) -> LowRankFactors:
    facts = factors.diagnostics
    recorded = dataclasses.replace(facts, notes=(*facts.notes, *more_notes), ridge_sweep=choice.sweep)
    return dataclasses.replace(factors, diagnostics=recorded)


def _choice(store: StoreView, section: SolveSection, layer: str, problem: Layer, method: Method) -> RidgeChoice:
    def solve(moments: InputMoments, ridge: Ridge) -> Factors:
        return solve_again(problem, method, moments, ridge, section.gradient_ridge_rule)

    gradients = problem.known_gradients if method.needs_gradients else None
    if section.ridge is RidgeFrom.HELDOUT:
        heldout = store.inputs_heldout(section.target, section.heldout, layer)
        if heldout is None:
            raise InvalidInputError(f"layer '{layer}': solve.ridge = 'heldout' {_HELDOUT}")
        return choose_ridge(solve, problem.known_inputs, heldout=heldout, gradients=gradients)
    shards = store.inputs_shards(section.target, layer)
    if len(shards) < 2:
        raise InvalidInputError(f"layer '{layer}': solve.ridge = 'shards' {_SHARDS}")
    return choose_ridge(solve, shards=shards, gradients=gradients)
