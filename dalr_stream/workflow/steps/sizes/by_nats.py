"""Sizes by what the loss feels, where gradients of every layer are recorded: see `engine.sizes.by_nats`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dalr_stream.engine.sizes.by_nats import Attempt, felt_menus, networks_at_most, smallest_by_nats, smallest_within
from dalr_stream.engine.sizes.choice import rank_correlation
from dalr_stream.engine.sizes.measuring import Sizes
from dalr_stream.engine.sizes.menus import Menu
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import ConfigError
from dalr_stream.network.surgery.compress import Replacement
from dalr_stream.numerics.methods import Method
from dalr_stream.progress import Progress
from dalr_stream.report.records.scale import Scale
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.scores.scoring import Evaluator, score_on
from dalr_stream.workflow.steps.sizes.search import TOLERANCE
from dalr_stream.workflow.steps.sizes.stored_menus import methods_of_menus, plans_at_most, stored_menus


@dataclass(frozen=True, slots=True)
class ScoredNetwork:
    """One network of a search by nats."""

    plan: str
    """Which layers are factored and which lose nodes, in words."""
    rule: str
    """By which the sizes were decided, in words."""
    left: float
    """Share of the layers' weights."""
    predicted: float
    """What the loss of a sample rises by, in nats."""
    score: float
    good: bool
    """Whether it is within what may be lost."""

    @classmethod
    def of(cls, one: Attempt) -> ScoredNetwork:
        """Return what is kept of an attempt."""
        return cls(one.plan, one.rule, one.left, one.predicted, one.score, one.good)

    def __str__(self) -> str:
        found = f"{self.predicted:.4g} nats predicted, {self.score:.4f} on validation"
        return f"{self.plan} by {self.rule}, {self.left:.1%} of the weights: {found}"


@dataclass(frozen=True, slots=True)
class SearchByNats:
    """The networks that were scored, in order, and which was kept."""

    baseline: float
    """Score of the uncompressed network."""
    max_drop: float
    """How much worse a network may score."""
    networks: tuple[ScoredNetwork, ...]
    kept: int | None
    """Number of the network that was kept; None where the network stays as it is."""
    rank_correlation: float | None
    """Of predicted nats and what the score lost."""

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> SearchByNats:
        """Return the search that `dataclasses.asdict` turned into plain values."""
        return cls(**{**plain, "networks": tuple(ScoredNetwork(**one) for one in plain["networks"])})

    def __str__(self) -> str:
        agreement = "" if self.rank_correlation is None else f" (rank correlation {self.rank_correlation:.2f})"
        found = (
            "none kept the score" if self.kept is None else f"the smallest that kept it is {self.networks[self.kept]}"
        )
        scored = "; ".join(map(str, self.networks))
        return f"of {len(self.networks)} networks scored on validation{agreement}, {found}. All of them: {scored}"


FELT = "of what the loss feels"
"""Added to the words of a rule of this kind."""
Found = tuple[dict[str, Replacement], dict[str, Method]]
"""What takes the place of each layer, and by which method."""


def menus_by_nats(project: Project, store: StoreView) -> list[Menu]:
    """Return what each layer loses in nats at every size; empty where gradients of one are not recorded."""
    return felt_menus(stored_menus(project, store)) if project.config.network.gradients else []


def keep_share(project: Project, menus: Sequence[Menu]) -> Found:
    """Return the smallest sizes that keep a share of what the loss feels of all layers; no network is built."""
    return _found(*smallest_by_nats(menus, project.config.compress.share))


def keep_score(project: Project, menus: Sequence[Menu], progress: Progress) -> tuple[*Found, SearchByNats]:
    """Return the smallest sizes found that keep the score on validation, and how they were found."""
    validation = project.config.validation
    if validation is None:
        raise ConfigError("compress.max_drop: needs a [validation] section")
    evaluator = Evaluator.of(project, validation, score_on(project, "validation", validation), progress)
    with project.code.importing():
        score = evaluator.from_layers(*project.layers)

        def of(menu: Menu | None, sizes: Sizes) -> float:
            return score(project.network if menu is None else evaluator.compressed(menu.replacements(sizes)))

        menu, sizes, record = smallest_scored(project, menus, of, evaluator.score.scale, progress)
    replaced, methods = ({}, {}) if menu is None else _found(menu, sizes)
    return replaced, methods, record


def smallest_scored(
    project: Project,
    menus: Sequence[Menu],
    score: Callable[[Menu | None, Sizes], float],
    scale: Scale,
    progress: Progress,
) -> tuple[Menu | None, Sizes, SearchByNats]:
    """Return the menu and the sizes of the smallest network found that keeps the score, and how it was found.

    `score` is that of a network of some sizes; without a menu, of the network as it is.
    """
    drop, baseline = project.config.compress.share, score(None, {})
    worst = scale.worst(baseline, drop)
    progress.note(f"search: uncompressed {baseline:.4f}, {scale.at_least} {worst:.4f} is asked for")

    def good(value: float) -> bool:
        return scale.loss(worst, value) <= TOLERANCE

    search = smallest_within(menus, score, good, progress=progress)
    chosen, attempts = search.chosen, search.attempts
    pairs = [(one.predicted, scale.loss(baseline, one.score)) for one in attempts]
    kept = None if chosen is None else attempts.index(chosen)
    record = SearchByNats(baseline, drop, tuple(map(ScoredNetwork.of, attempts)), kept, rank_correlation(pairs))
    return (None, {}, record) if chosen is None else (chosen.menu, chosen.sizes, record)


def networks_in_words(project: Project, store: StoreView) -> str:
    """Say how many networks are scored for a drop of the score; `store` may be a prospect."""
    menus = methods_of_menus(project, store, project.layers_in(store))
    few, most = networks_at_most(len(menus), plans_at_most(menus))
    return f"about {few} networks, at most {most}, scored on [validation]"


def _found(menu: Menu, sizes: Sizes) -> Found:
    methods = {name: menu.method(name, family) for name, (family, _) in sizes.items()}
    return menu.replacements(sizes), methods
