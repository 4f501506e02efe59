"""Takes the gradients by what layers give, as rows, of one batch: a forward pass, and a backward pass for each draw.

A network that does not mix samples gives each sample's outputs from that sample alone. So the vectors of all samples
go back together, and each row that arrives at a layer is its own sample's gradient: of a sum over samples, never a
mean. That none of them are mixed is proved on the first batch, see `proof`.

A gradient row stands where the layer's own row does: the same positions are taken. Where a limit leaves positions out,
those taken are scaled by sqrt(positions / taken), so that sums of g g' stand for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.autograd.graph import GradientEdge

from dalr_stream.errors import InvalidInputError, NonFiniteError
from dalr_stream.network.capture.batches import call
from dalr_stream.network.capture.gradient_rule import GradientRule
from dalr_stream.network.capture.gradients.crossing import BlockRun, Crossing, Roots
from dalr_stream.network.capture.gradients.edges import Edges, Given, edges_of
from dalr_stream.network.capture.gradients.ends import End, end_of, require_gradient, require_own_loss
from dalr_stream.network.capture.gradients.proof import require_own_rows, require_separate_outputs
from dalr_stream.network.capture.gradients.slopes import require_slopes
from dalr_stream.network.capture.gradients.vectors import vectors_of
from dalr_stream.network.capture.order import Orders
from dalr_stream.network.capture.resuming.given import Spent, UsedError
from dalr_stream.network.capture.resuming.onward import ForwardRun
from dalr_stream.network.capture.routed import Places
from dalr_stream.network.capture.row_rule import BatchRows, RowRule
from dalr_stream.network.capture.taken import Taken, together
from dalr_stream.network.layers.groups import channels_of, part_of
from dalr_stream.network.layers.kinds import CONVOLUTIONS, LayerRows, rows_leaving
from dalr_stream.network.layers.spec import LayerSpec, module_of, to_numpy
from dalr_stream.numerics.rows.draws import SampleDraws
from dalr_stream.numerics.rows.streams import module_name
from dalr_stream.numerics.statistics.centring import describe_non_finite


class GradientTaker:
    """Takes gradient rows of some layers batch after batch; without layers it does nothing."""

    def __init__(self, model: nn.Module, layers: Sequence[LayerSpec], rule: GradientRule) -> None:
        self._model = model
        self._layers = layers
        self._rule = rule
        self._proved = 0
        """Samples of the largest batch that was gone through for a proof."""

    def prove(self, batch: Any, samples: int, orders: Orders | None, *, number: int = 0) -> None:
        """Prove on the first batch that outputs repeat, and on the first of several samples that rows are their own.

        `number` is that of the batch, for messages. Raises InvalidInputError.
        """
        if not self._layers or self._proved >= min(samples, 2):
            return
        require_own_rows(orders or {}, [layer.stream for layer in self._layers])
        end = End(None, batch, samples, number)
        require_separate_outputs(self._model, self._rule, end)
        if not self._proved:
            require_slopes(self._model, self._layers, self._rule, end)
        self._proved = samples

    @contextmanager
    def following(self, chooser: BatchRows, run: ForwardRun | None = None) -> Iterator[Edges]:
        """Let the forward pass of the block be one that gradients can go back through; `run` makes it."""
        if not self._layers and not isinstance(run, BlockRun):
            yield {}
            return
        routed = [layer.stream for layer in self._layers if chooser.is_routed(layer.stream)]
        with edges_of(self._model, self._layers, routed, chooser.samples) as edges:
            yield edges

    def take(
        self, edges: Edges, end: End, chooser: BatchRows, batch: int, run: ForwardRun | None = None
    ) -> dict[str, Taken]:
        """Return the gradient rows of each layer, by stream: of a sample draw after draw, and in each call after call.

        `batch` is the batch's number; `run` made the forward pass. Raises InvalidInputError where no gradient comes
        back, NonFiniteError.
        """
        taken: dict[str, list[Taken]] = {layer.stream: [] for layer in self._layers}
        samples, crossing = chooser.samples, run.crossing if isinstance(run, BlockRun) else None
        for draw, gradients in enumerate(backward(edges, end, chooser, self._rule, crossing)):
            for layer in self._layers:
                calls = gradients[layer.stream]
                rows = [self._rows(layer, gradient, number, chooser) for number, gradient in enumerate(calls)]
                _require_finite(layer, rows, batch, draw)
                taken[layer.stream] += rows if self._rule.clip is None else _clipped(rows, self._rule.clip, samples)
        return {stream: together(taken.pop(stream), samples) for stream in list(taken) if taken[stream]}

    def _rows(self, layer: LayerSpec, gradient: Gradient, number: int, chooser: BatchRows) -> Taken:
        """Return the rows of one call that are taken, scaled for those that a limit left out."""
        rows = rows_by_outputs(self._model, layer, gradient.tensor)
        if gradient.places is not None:
            taken = chooser.take_routed(layer.stream, rows, gradient.places)
        else:
            taken = chooser.take(layer.stream, rows, number)
        if taken.chosen_from is None:
            return taken
        counts = taken.counts_of(chooser.samples)
        return _scaled(taken, np.sqrt(taken.chosen_from / np.maximum(counts, 1)))


@dataclass(frozen=True, slots=True)
class Gradient:
    """The gradient by what one call of a layer gave."""

    tensor: torch.Tensor
    places: Places | None


def backward(
    edges: Edges, end: End, chooser: BatchRows, rule: GradientRule, crossing: Crossing | None = None
) -> Iterator[Mapping[str, Sequence[Gradient]]]:
    """Yield the gradients by what each layer gave, by stream and call after call, of each draw.

    Of a block, `crossing` has those by what it gave, and takes those by what it began with. Raises InvalidInputError
    where no gradient comes back to one.
    """
    edges = {stream: list(of_layer) for stream, of_layer in edges.items()}  # the way back may call layers again
    calls = list({id(given): given for of_layer in edges.values() for given in of_layer}.values())
    if not calls and crossing is None:
        return
    inputs = [*(given.edge for given in calls), *(() if crossing is None else crossing.edges)]
    roots = _roots(end, chooser, rule, crossing)
    for draw in range(rule.draws):
        found = _gradients(roots(draw), inputs, more=draw + 1 < rule.draws)
        if crossing is not None:
            crossing.arrive(found[len(calls) :])
        by_call = {id(given): gradient for given, gradient in zip(calls, found, strict=False)}
        for stream, of_layer in edges.items():
            _require_reached(stream, of_layer, by_call)
        yield {
            stream: [Gradient(given.gradient(by_call[id(given)]), given.places) for given in of_layer]
            for stream, of_layer in edges.items()
        }


def _roots(end: End, chooser: BatchRows, rule: GradientRule, crossing: Crossing | None) -> Callable[[int], Roots]:
    """Return what gives the beginning of each draw's backward pass: the loss's vectors, or what later blocks left."""
    if crossing is not None and crossing.after is not None:
        return crossing.roots
    values = end_of(end, rule)
    if isinstance(values, Spent):
        raise UsedError
    require_own_loss(end, rule, values)
    require_gradient(values)
    mask = chooser.mask_of_outputs(values)

    def of_draw(draw: int) -> Roots:
        draws = SampleDraws(rule.seed, chooser.first_sample, chooser.samples, draw)
        return Roots([values], [vectors_of(values, rule, draws, mask)])

    return of_draw


def _gradients(roots: Roots, inputs: Sequence[GradientEdge], *, more: bool) -> Sequence[torch.Tensor | None]:
    """Go back once; `more` keeps the graph for another time."""
    if not roots.tensors or not inputs:
        return [None] * len(inputs)
    with _explained():
        return torch.autograd.grad(roots.tensors, inputs, roots.gradients, retain_graph=more, allow_unused=True)


def there_and_back(model: nn.Module, layers: Sequence[LayerSpec], rule: GradientRule, batch: Any, samples: int) -> None:
    """Run the network on a batch, and back once: for a look at what that takes."""
    chooser = BatchRows(RowRule(), samples, 0, None)
    with GradientTaker(model, layers, rule).following(chooser) as edges:
        next(backward(edges, End(call(model, batch), batch, samples), chooser, rule), None)


def rows_by_outputs(model: nn.Module, layer: LayerSpec, tensor: torch.Tensor) -> LayerRows:
    """Return the rows of what a layer gives, or of a gradient by it: of a convolution, as many as it has patches."""
    module = module_of(model, module_name(layer.name))
    part = part_of(layer.name, module)
    rows = rows_leaving(part, channels_of(layer.name, module, tensor))
    return replace(rows, of_patches=isinstance(part, CONVOLUTIONS))


@contextmanager
def _explained() -> Iterator[None]:
    """Say in one line why torch refuses a backward pass."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        first = str(error).strip().partition("\n")[0]
        if "inplace operation" in first:
            raise InvalidInputError(
                f"gradients: the network overwrites in place what its backward pass needs ({first}): write that "
                "operation without inplace=True or a trailing underscore, or watch no gradients"
            ) from error
        raise InvalidInputError(
            f"gradients: they cannot be taken back through this network ({type(error).__name__}: {first}): watch no "
            "gradients of layers before the operation that has none"
        ) from error


def _require_reached(stream: str, calls: Sequence[Given], found: Mapping[int, torch.Tensor | None]) -> None:
    """Raise InvalidInputError for a layer from no call of which anything leads to the loss."""
    routed = any(given.places is not None for given in calls)
    if calls and not routed and all(found[id(given)] is None for given in calls):
        raise InvalidInputError(
            f"layer '{stream}': no gradient comes back to it: it is not on the way to the network's output, or what it "
            "gives is detached there: name the output that it leads to as gradients.outputs, or watch no gradients of "
            "it"
        )


def _clipped(calls: Sequence[Taken], longest: float, samples: int) -> list[Taken]:
    """Return the rows of one draw, those of each sample together no longer than `longest`."""
    squares = np.zeros(samples)
    for taken in calls:
        of_rows = to_numpy(taken.rows.double().square().sum(dim=1))
        np.add.at(squares, np.repeat(np.arange(samples), taken.counts_of(samples)), of_rows)
    factors = longest / np.maximum(np.sqrt(squares), longest)
    return [_scaled(taken, factors) for taken in calls]


def _scaled(taken: Taken, factors: NDArray[np.float64]) -> Taken:
    """Return the rows, those of each sample times its factor."""
    by_row = np.repeat(factors, taken.counts_of(len(factors)))
    rows = taken.rows * torch.from_numpy(by_row).to(taken.rows)[:, None]
    return Taken.of(rows, taken.counts, taken.chosen_from)


def _require_finite(layer: LayerSpec, calls: Sequence[Taken], batch: int, draw: int) -> None:
    for taken in calls:
        if not taken.finite and not bool(taken.rows.isfinite().all()):
            raise NonFiniteError(
                f"layer '{layer.stream}', batch {batch}, draw {draw}: gradients must be finite, got "
                f"{describe_non_finite(to_numpy(taken.rows))}; nothing of this batch was committed: look for "
                "overflow in half precision, a square root or a logarithm of 0, or bad inputs"
            )
