"""`sizes`: the best network within a budget, in one call from statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from torch import nn

from dalr_stream.engine.sequential.layer_choice import LayerChoice
from dalr_stream.engine.sizes.benches import bench_of, score_by_blocks
from dalr_stream.engine.sizes.choice import SizeChoice, require_affordable
from dalr_stream.engine.sizes.measuring import Measure, Sizes
from dalr_stream.engine.sizes.menus import InTurn, Menu, choose_from
from dalr_stream.engine.sizes.one_network import require_one_network
from dalr_stream.engine.sizes.solver import PLAIN, WEIGHTED, WEIGHTED_IN_WORDS, Solver, is_felt
from dalr_stream.engine.statistics import Statistics
from dalr_stream.errors import InvalidInputError
from dalr_stream.network.layers.elsewhere import weights_elsewhere
from dalr_stream.network.measure.output_distance import OutputDistance
from dalr_stream.network.structure.recorded import Groups
from dalr_stream.network.surgery.compress import Replacement
from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.lowrank.ridge import DEFAULT_RIDGE, Ridge
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.options import is_number, parse_choice
from dalr_stream.progress import Progress, Silent

BuildInTurn = Callable[[Mapping[str, LayerChoice]], nn.Module]
"""Gives the network of some choices, with one layer compressed after the other."""


@dataclass(frozen=True, slots=True)
class SizePlan:
    """What takes the place of each layer, and what it was chosen among."""

    replacements: Mapping[str, Replacement]
    """As `compress` takes them; layers that stay as they are left out."""
    choices: Mapping[str, LayerChoice]
    """The same as `compress_sequentially` takes them."""
    choice: SizeChoice
    """Every candidate that was measured, the chosen one first."""


@overload
def sizes(
    model: nn.Module,
    statistics: Statistics,
    distance: OutputDistance,
    share: float,
    *,
    layers: Sequence[str] = (),
    structure: Groups | None = None,
    methods: Sequence[Method | str] = (),
    ridge: Ridge | float = DEFAULT_RIDGE,
    multiple_of: int = 1,
    score: Measure | None = None,
    higher: bool = True,
    in_turn: BuildInTurn | None = None,
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> SizePlan: ...


@overload
def sizes(
    model: nn.Module,
    statistics: Statistics,
    distance: OutputDistance,
    share: Sequence[float],
    *,
    layers: Sequence[str] = (),
    structure: Groups | None = None,
    methods: Sequence[Method | str] = (),
    ridge: Ridge | float = DEFAULT_RIDGE,
    multiple_of: int = 1,
    score: Measure | None = None,
    higher: bool = True,
    in_turn: BuildInTurn | None = None,
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[SizePlan, ...]: ...


def sizes(  # noqa: PLR0913  # each is a choice of the user's
    model: nn.Module,
    statistics: Statistics,
    distance: OutputDistance,
    share: float | Sequence[float],
    *,
    layers: Sequence[str] = (),
    structure: Groups | None = None,
    methods: Sequence[Method | str] = (),
    ridge: Ridge | float = DEFAULT_RIDGE,
    multiple_of: int = 1,
    score: Measure | None = None,
    higher: bool = True,
    in_turn: BuildInTurn | None = None,
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> SizePlan | tuple[SizePlan, ...]:
    """Return the best network that keeps at most `share` of the layers' weights: factored, with fewer nodes or heads.

    Each layer is cut alone once by each method, which shows what its error does to the network's outputs. Sizes are
    shared out by that and by plain rules, and every candidate is measured whole.

    Parameters
    ----------
    model
        The network; it is left as it is.
    statistics
        Of the layers to compress, from `accumulate`.
    distance
        `OutputDistance(model, batches)`: how far another network's outputs are from this one's, without labels.
    share
        Of the weights of the layers to compress, in 0..1; or several, for a plan of each. Layers are solved once.
    layers
        Those to compress; without names all that the statistics have, also those that were watched as readers.
    structure
        `watch(..., example=batch).structure`; without it nothing is selected, and no head is narrowed.
    methods
        At most one of each family. Without names `dalr_anchored_affine`, `spectral` and, for attentions that
        `watch(..., heads=True)` found, `heads`; and where the statistics have gradients the same sizes are tried with
        the weighted ones too.
    ridge
        The ridge of the DALR methods; a number is relative.
    multiple_of
        Use only sizes that are multiples of it, and layers as they are.
    score
        Called with a network: it chooses among the candidates, and the distance among equals. Of a network from
        `open_network`, whose candidates are never there whole, a `Score(metric, batches)` or an `OutputDistance`.
    higher
        Whether more of the score is better.
    in_turn
        Where layers will be compressed one after the other: how a network is made of the choice of each layer. The
        best candidates are then built and measured so, of each rule one with factor pairs alone and one with
        selections or heads.
    store
        A folder for what blocks give meanwhile, of a network from `open_network`: all candidates go through each of its
        blocks together, and none is whole in memory. Without one a temporary folder of the system.
    progress
        Receives progress, for example from `show_progress()`; silent by default.

    Returns
    -------
    SizePlan or tuple of SizePlan
        `compress(model, plan.replacements, example=structure)` builds the network, in turn
        `compress_sequentially(model, batches, plan.choices)`; a plan for each share of several.

    Raises
    ------
    InvalidInputError
        Where a share is no number in 0..1, two methods are of one family, the smallest sizes cost more than the budget,
        heads are named and no attention is known, for statistics or a distance of another network, a score that is no
        number, `in_turn` that gives no network, and for a function as score of a network from `open_network`.
    UnsupportedLayerError
        Where the metric of its score does more with a network than call it.
    NonFiniteError
        Where a network's outputs are not finite, or its score is NaN.

    See Also
    --------
    dalr_stream.numerics.within_budget : sizes from loss curves alone, without a network.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)).eval()
    >>> batches = [torch.randn(50, 8) for _ in range(4)]
    >>> layers = ds.watch(model, ["0", "2"], example=batches[0])
    >>> distance = ds.OutputDistance(model, batches)
    >>> plan = ds.sizes(
    ...     model,
    ...     ds.accumulate(model, batches, layers),
    ...     distance,
    ...     0.5,
    ...     structure=layers.structure,
    ... )
    >>> small = ds.compress(model, plan.replacements, example=layers.structure)
    >>> sum(p.numel() for p in small.parameters() if p.dim() == 2) <= 0.5 * (8 * 32 + 32 * 4)
    True

    Quality against size; `print` any measure of your own beside it:

    >>> plans = ds.sizes(model, ds.accumulate(model, batches, layers), distance, [0.3, 0.6])
    >>> [plan.choice.chosen.distance > 0 for plan in plans]
    [True, True]

    Sizes for compressing layer after layer:

    >>> def in_turn(choices):
    ...     return ds.compress_sequentially(model, batches, choices).network
    >>> plan = ds.sizes(model, ds.accumulate(model, batches, layers), distance, 0.5, in_turn=in_turn)
    >>> distance(in_turn(plan.choices)) == plan.choice.chosen.distance
    True
    """
    _require_shares(share if isinstance(share, Sequence) and not isinstance(share, str) else [share])
    if weights_elsewhere(model) is not None:
        score_by_blocks(model, score)  # before anything is solved
    if isinstance(methods, str):
        raise InvalidInputError(f"sizes: methods must be a sequence, got '{methods}': say ['{methods}']")
    named = [parse_choice(Method, method, "method") for method in methods or PLAIN]
    if len({method.family for method in named}) < len(named):
        raise InvalidInputError(f"sizes: give one method of each family at most, got {', '.join(named)}")
    known = {name: statistics[name] for name in layers or statistics}
    require_one_network(model, known, distance)
    attentions = _attentions(statistics, known, structure)
    if methods and not attentions:
        _require_no_heads(named)
    solver = Solver(known, attentions, structure, ridge)
    menus = [solver.menu(named, multiple_of)]
    if not methods and any(map(is_felt, known.values())):
        menus.append(solver.menu(WEIGHTED, multiple_of, f", {WEIGHTED_IN_WORDS}"))

    def choices(menu: Menu, decided: Sizes) -> dict[str, LayerChoice]:
        return {
            name: _choice(known, name, menu.method(name, family), size, ridge)
            for name, (family, size) in decided.items()
        }

    again = None if in_turn is None else _of_menus(in_turn, choices)

    def plan(one: float) -> SizePlan:
        menu, choice = choose_from(menus, one, bench, in_turn=again, progress=progress)
        decided = choice.chosen.sizes
        return SizePlan(menu.replacements(decided), choices(menu, decided), choice)

    with bench_of(model, distance, structure, score, store, higher=higher, progress=progress or Silent()) as bench:
        return _plans(menus[0], share, plan)


def _plans(
    menu: Menu, share: float | Sequence[float], plan: Callable[[float], SizePlan]
) -> SizePlan | tuple[SizePlan, ...]:
    if not isinstance(share, Sequence):
        return plan(share)
    for one in share:
        require_affordable(menu.forms, one)
    return tuple(map(plan, share))


def _require_shares(shares: Sequence[float]) -> None:
    for share in shares:
        if not is_number(share) or not 0.0 <= share <= 1.0:
            raise InvalidInputError(f"sizes: share must be a number in 0..1 of the layers' weights, got {share!r}")


def _of_menus(build: BuildInTurn, choices: Callable[[Menu, Sizes], dict[str, LayerChoice]]) -> InTurn:
    def built(menu: Menu, decided: Sizes) -> nn.Module:
        network = build(choices(menu, decided))
        if not isinstance(network, nn.Module):
            raise InvalidInputError(f"sizes: in_turn must return a network, got {network!r}")
        return network

    return built


def _choice(layers: Mapping[str, Layer], name: str, method: Method, size: int, ridge: Ridge | float) -> LayerChoice:
    """Return how a layer of a plan is compressed in turn."""
    if not method.weighted:
        return LayerChoice(method, size, ridge)
    if method.family is Family.HEADS:
        return LayerChoice(method, size, ridge, attention=layers)
    return LayerChoice(method, size, ridge, layer=layers[name])


def _attentions(statistics: Statistics, known: Mapping[str, Layer], structure: Groups | None) -> dict[str, HeadLayout]:
    """Return the attentions that were found when layers were watched, all of whose layers are to be compressed."""
    if structure is None:
        return {}
    records = {name: statistics.watched[name] for name in known if name in statistics.watched}
    layouts = {name: record.heads for name, record in records.items() if record.heads is not None}
    return {name: layout for name, layout in layouts.items() if all(layer in known for layer in layout.layers)}


def _require_no_heads(methods: Sequence[Method]) -> None:
    for method in methods:
        if method.family is Family.HEADS:
            raise InvalidInputError(
                f"sizes: '{method.value}' is among the methods, and no attention is known: watch(..., example=batch, "
                "heads=True), and give its structure"
            )
