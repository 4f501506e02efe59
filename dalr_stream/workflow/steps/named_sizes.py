"""Solutions to what takes the layers' places, at the sizes that the run file names."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from dalr_stream.engine.layer_moments import OnDemand
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import ConfigError, LayerNotFoundError, ParameterIncreaseWarning
from dalr_stream.network.layers.patterns import match_names
from dalr_stream.network.surgery.compress import Replacement
from dalr_stream.numerics.heads.factors import HeadFactors
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.selection.nodes import ChannelSelection
from dalr_stream.numerics.sizes.sized_layer import whole_size
from dalr_stream.storage.records.solutions import Solution
from dalr_stream.workflow.runfile.compress_section import ChoiceSection
from dalr_stream.workflow.runfile.project import Project

SIZES = {
    Family.LOW_RANK: "rank",
    Family.SELECTION: "number of kept nodes",
    Family.HEADS: "number of dimensions of each head",
}
"""What a size is, in words."""


def choices(project: Project, store: StoreView) -> tuple[dict[str, Replacement], list[str]]:
    """Return what the layers that [compress] names are replaced by, and what was warned of on the way.

    Raises ConfigError for a layer that was not compressed, or a method that was not solved for it.
    """
    named, sizes = named_layers(project, project.layers), named_sizes(project, store)

    def solution(layer: str) -> Solution:
        return store.solutions(layer, [named[layer].method])[named[layer].method]

    return replacements(OnDemand(tuple(named), solution), sizes, project.config.solve.restore_ridge)


def named_sizes(project: Project, store: StoreView) -> dict[str, int | float]:
    """Return the size, or the share retained, of each layer that [compress] names; raises as `choices` does."""
    sizes: dict[str, int | float] = {}
    for layer, choice in named_layers(project, project.layers).items():
        require_solved(project, store, layer, choice.method)
        sizes[layer] = choice.size if choice.size is not None else float(choice.retention or 1.0)
    return sizes


def require_choices(project: Project, store: StoreView) -> None:
    """Raise ConfigError where [compress] names a layer, a method or a size that the layers of `store` do not have."""
    for layer, choice in named_layers(project, project.layers_in(store)).items():
        require_solved(project, store, layer, choice.method)
        most, what = whole_size(store.shape(layer), choice.method.family), SIZES[choice.method.family]
        if choice.size is not None and choice.size > most:
            raise ConfigError(f"compress.{layer}.size: the layer's {what} must lie in 1..{most}, got {choice.size}")
        heads = store.record(layer).heads if choice.method.family is Family.HEADS else None
        if heads is not None and choice.size is not None and choice.size not in heads.sizes:
            raise ConfigError(
                f"compress.{layer}.size: the layer's {what} must be even, as pairs that positions rotate stay "
                f"together, got {choice.size}"
            )
    _require_apart(project, store)


def _require_apart(project: Project, store: StoreView) -> None:
    """Raise ConfigError for a layer that gets narrower with heads, and is named beside them."""
    named = named_layers(project, project.layers_in(store))
    for layer, choice in named.items():
        heads = store.record(layer).heads if choice.method.family is Family.HEADS else None
        for other in () if heads is None else heads.layers[:-1]:
            if other in named:
                raise ConfigError(f"compress.{other}: it gets narrower with the heads of '{layer}': leave it out")


def named_layers(project: Project, layers: Sequence[str]) -> dict[str, ChoiceSection]:
    """Return those of the compressed `layers` that [compress] names, in the network's order, each with its choice.

    Raises ConfigError for a pattern that matches none of the compressed layers, and for a layer that is named twice.
    """
    named: dict[str, tuple[str, ChoiceSection]] = {}
    for pattern, choice in project.config.compress.layers.items():
        try:
            matched = match_names(pattern, layers)
        except LayerNotFoundError:
            known = ", ".join(layers)
            raise ConfigError(f"compress.{pattern}: is not among the compressed layers {known}") from None
        for layer in matched:
            if layer in named:
                raise ConfigError(
                    f"compress.{pattern}: layer '{layer}' is named by '{named[layer][0]}' already: keep one"
                )
            named[layer] = pattern, choice
    return {layer: named[layer][1] for layer in layers if layer in named}


def require_solved(project: Project, store: StoreView, layer: str, method: Method) -> None:
    """Raise ConfigError where a method was not solved for a layer, and say why."""
    if method not in project.methods(store, layer):
        asked = method in project.config.solve.methods
        record = store.record(layer)
        reason = record.no_heads if method.family is Family.HEADS else record.unprunable
        reason = reason if asked else "it is not in solve.methods"
        raise ConfigError(f"compress.{layer}: '{method.value}' was not solved: {reason}")


def at_size(solution: Solution, size: int, layer: str, restore_ridge: float) -> Replacement:
    """Return a solution at one rank, one number of kept nodes, or one size of heads."""
    if isinstance(solution, HeadFactors):
        return solution.at_size(size)
    if isinstance(solution, ChannelSelection):
        return solution.at_size(size, ridge=restore_ridge, layer=layer)
    return solution.at_rank(size, layer=layer)


def replacements(
    solutions: Mapping[str, Solution], sizes: Mapping[str, int | float], restore_ridge: float
) -> tuple[dict[str, Replacement], list[str]]:
    """Return what to put in place of each layer, and what was warned of on the way.

    An int is a rank, a number of nodes or a size of heads, a float the share of information a selection retains.
    """
    replaced: dict[str, Replacement] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ParameterIncreaseWarning)
        for layer, solution in solutions.items():
            size = sizes[layer]
            if isinstance(size, float) and isinstance(solution, ChannelSelection):
                replaced[layer] = solution.at_retention(size, ridge=restore_ridge, layer=layer)
            else:
                replaced[layer] = at_size(solution, int(size), layer, restore_ridge)
    return replaced, list(dict.fromkeys(str(warning.message) for warning in caught))
