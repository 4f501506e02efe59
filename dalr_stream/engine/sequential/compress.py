"""Layer after layer: each is solved on what it reads in the already compressed network, towards the original's outputs.

    for the layers in the order in which a forward pass calls them:
        low rank     X from the network as compressed so far, Z from the original: cross moments
        selection    the nodes as their readers read them in the network as compressed so far, restored towards what
                     they read in the original: cross moments
        put it in place

Compressed all at once (`compress`), every layer is solved for inputs that it no longer gets. Here each makes up, as far
as its rank allows, for what the layers before it lost. The price is a pass over the data for each layer, two networks a
pass; neighbours that read the very same tensor (Q, K and V) share one. A pass goes on from where the one before left
both networks, so that each layer is run about once in either (`onward_passes`).

A layer's own weight at its turn is that of the network as compressed so far: where an earlier selection narrowed its
inputs to J, that is W A_J, and what `anchored` shrinks towards. Its target is the original's output all the same. A
selection's order follows from the nodes of the network as compressed so far, its A_J from those of both (`restoring`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dalr_stream.engine.sequential.onward_passes import OnwardPasses
from dalr_stream.engine.sequential.pass_moments import KnownMoments, PassMoments
from dalr_stream.engine.sequential.preparation import passes_of, planned, require_prunable, require_sound, targets_of
from dalr_stream.engine.sequential.sequential_pass import LayerChoice, LayerOutcome, SequentialPass, Solved
from dalr_stream.engine.sequential.targets import Target
from dalr_stream.network.capture.passes import SameEveryPass, order_of_execution
from dalr_stream.network.capture.resuming.kept_states import Room
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.surgery.compress import compress
from dalr_stream.network.surgery.refitting import refit
from dalr_stream.numerics.options import parse_choice
from dalr_stream.progress import Progress, Silent
from dalr_stream.storage.places.place import Place, place_of
from dalr_stream.streaming.folding import Folding


@dataclass(frozen=True, slots=True, eq=False)
class SequentialCompression:
    """A network of which some of the named layers, from the first on, are compressed; in the end all of them."""

    network: nn.Module
    passes: tuple[tuple[str, ...], ...]
    """The layers of each planned pass, in order."""
    layers: Mapping[str, LayerOutcome] = field(default_factory=dict)
    """Those that are done, in order."""

    @property
    def left(self) -> tuple[tuple[str, ...], ...]:
        """The passes that are not done."""
        return tuple(group for group in self.passes if not set(group) <= self.layers.keys())


def compress_sequentially(  # noqa: PLR0913  # what is compressed, how, and where its moments are kept
    model: nn.Module,
    batches: Iterable[Any],
    choices: Mapping[str, LayerChoice],
    *,
    target: Target | str = Target.OUTPUTS,
    source: Iterable[Any] | None = None,
    store: str | Place | None = None,
    rows: RowRule | None = None,
    folding: Folding | None = None,
    progress: Progress | None = None,
) -> SequentialCompression:
    """Return a copy of `model` with the named layers compressed one after the other, and what each step lost.

    Each layer is solved on what it reads in the network as compressed so far, towards its outputs in the original. The
    first layers read what they read in the original, so theirs are the solutions of `dalr` on the moments of their
    inputs, to the bit.

    Parameters
    ----------
    model
        In eval mode; left as it is.
    batches
        Of the target domain, as for `accumulate`; every pass must see the same batches in the same order, which is
        checked.
    choices
        Layer name -> `LayerChoice(method, size)`, in any order: low rank on some layers, selections on others. Every
        low-rank method takes cross moments; truncated SVD needs none, and its pass only measures its error.
    target
        Towards what layers are solved: "outputs", what each gives in the original; or "stream", where what it gives is
        added to a residual stream, besides towards what that stream has lost by then. A selection whose nodes such a
        layer reads has that layer solved. Other layers keep their outputs as target, which is said with the reason.
    source
        Batches of the source domain, where MoMaSP is among the methods.
    store
        A folder in which each pass keeps its moments, and resumes after a kill. Compressing again at other sizes,
        ridges or methods, passes whose layers read the same as before start from there: the batches are loaded once
        and compared, and no network is run. When all layers are done, moments of earlier sequences are removed.
    rows, folding
        As for `accumulate_cross`: the rows of both networks are chosen by the same rule and seed. The held-out share
        measures errors, and no solution is fitted to it.
    progress
        Receives progress; the number of passes is announced before the first.

    Returns
    -------
    SequentialCompression
        `.network`, the compressed copy, and `.layers`, the outcome of each layer in order.

    Raises
    ------
    LayerNotFoundError, UnsupportedLayerError
        Before any pass: a layer of no known kind, not called exactly once, or whose nodes cannot be pruned; or no layer
        that writes into a stream, where streams are the target.
    RankError
        Before any pass, for a size that a layer does not have; in a pass, where a selection left a later layer fewer
        inputs than its rank.
    InvalidInputError
        Before any pass: a network in train mode, batches that allow one pass only, no source, or shards.
    FingerprintMismatchError
        In a pass, where the batches changed; otherwise as `accumulate_cross` raises.

    See Also
    --------
    compress : all layers at once.

    Notes
    -----
    Cost: one pass for each layer, through what lies between it and the layer before in both networks; layers that read
    the same tensor share one. Memory: three networks; the lanes of a pass's layers, d + min(d, m) wide each, for a
    selection twice as wide as what reads its nodes; and what is kept between the passes, `KEPT_BYTES` or what the
    memory limit leaves.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
    >>> batches = [torch.randn(32, 6) for _ in range(4)]
    >>> choice = ds.LayerChoice("dalr_anchored_affine", size=2)
    >>> result = ds.compress_sequentially(model, batches, {"0": choice, "2": choice})
    >>> result.passes
    (('0',), ('2',))
    >>> result.network[2][0].out_features
    2
    """
    passes = sequential_passes(
        model,
        batches,
        choices,
        target=target,
        source=source,
        store=store,
        rows=rows,
        folding=folding,
        progress=progress,
    )
    return last_of(passes)


def last_of(passes: Iterator[SequentialCompression]) -> SequentialCompression:
    """Go through all passes and return what there is in the end; no network of an earlier one is kept."""
    return deque(passes, maxlen=1).pop()


def sequential_passes(  # noqa: PLR0913  # those of compress_sequentially
    model: nn.Module,
    batches: Iterable[Any],
    choices: Mapping[str, LayerChoice],
    *,
    target: Target | str = Target.OUTPUTS,
    source: Iterable[Any] | None = None,
    store: str | Place | None = None,
    rows: RowRule | None = None,
    folding: Folding | None = None,
    begun: SequentialCompression | None = None,
    known: KnownMoments | None = None,
    progress: Progress | None = None,
) -> Iterator[SequentialCompression]:
    """Yield what there is at the start and after each pass; arguments and errors as for `compress_sequentially`.

    Anything yielded may be kept and given back as `begun`: what it has is not done again, and the rest comes out the
    same. `known` is where moments of what the original reads may lie already: the first pass takes those.
    """
    folding, progress = folding or Folding(), progress or Silent()
    seen = SameEveryPass(batches)
    require_sound(model, choices, folding, has_source=source is not None)
    groups = require_prunable(model, choices, seen)
    first, rule = seen.first(), (rows or RowRule()).of_layers(())
    targets = targets_of(model, first, choices, groups, parse_choice(Target, target, "target"))
    passes = passes_of(order_of_execution(model, first, list(choices)), choices)
    plan, batch = planned(model, passes, choices, targets, folding, rule, first)
    onward = OnwardPasses(model, seen, passes, list(groups), targets.layers, rule, Room(plan.room_bytes), progress.note)
    moments = PassMoments(model, rule, progress, onward, None if store is None else place_of(store), known, batch)
    one_pass = SequentialPass(
        model, choices, seen, None if source is None else SameEveryPass(source, "source"), folding, moments, targets
    )
    state, resumed = begun or SequentialCompression(model, passes), begun is not None
    del begun  # a network that is held here is held through all passes
    progress.note(f"layer after layer: {in_words(state.left)}")
    for words in targets.words:
        progress.note(words)
    yield state
    while state.left:
        state = _after_a_pass(state, one_pass, onward, first, progress)
        if not state.left and not resumed:
            moments.drop_others()
        yield state


def _after_a_pass(
    state: SequentialCompression, one_pass: SequentialPass, onward: OnwardPasses, example: Any, progress: Progress
) -> SequentialCompression:
    """Do the next pass: what it was solved from and the factors are gone before the one after it."""
    group = state.left[0]
    onward.begin(group)
    solved = one_pass.solve(group, state.network)
    for name, one in solved.items():
        progress.note(f"layer '{name}': {one.outcome}")
    small = _with(state.network, solved, example)
    onward.end(state.network, small)
    done = {**state.layers, **{name: one.outcome for name, one in solved.items()}}
    return SequentialCompression(small, state.passes, done)


def _with(network: nn.Module, solved: Mapping[str, Solved], example: Any) -> nn.Module:
    """Return a copy of the network with what was solved in place."""
    small = compress(network, {name: one.replacement for name, one in solved.items()}, example=example)
    for reader, fit in [pair for one in solved.values() for pair in one.refitted.items()]:
        refit(small, reader, fit.weight, fit.bias)
    return small


def in_words(passes: Sequence[Sequence[str]]) -> str:
    """Return the number of passes and what each is for: `2 passes over the data: fc6; fc7 + fc8`."""
    named = "; ".join(" + ".join(group) for group in passes)
    return f"{len(passes)} pass{'' if len(passes) == 1 else 'es'} over the data{f': {named}' if named else ''}"
