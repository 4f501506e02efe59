"""The proof, on the first samples, that what goes back is what the network's outputs change by: by differences.

What a network detaches, or computes under torch.no_grad() or by an operation that has no backward pass, changes its
outputs, and no gradient tells of it; where other ways lead back as well, gradients come, and are of those ways alone. A
backward pass of somebody's own may be anything. So all layers' outputs are moved a little, at random, both ways: the
outputs, or a loss of one's own, must move by what the gradients say. Cost: a few passes of two samples.

They are moved channel by channel, each in proportion to what is there: what is 0 stays 0, and what is the same remains
the same. Where a ReLU gets zeros, or a maximum is taken of equal numbers, as of the black border of pictures, torch
chooses one of several derivatives, which no difference would show.

What is not smooth (activations that are rounded, routers between experts), too coarse, or takes no two samples, shows
nothing by differences: it is taken as it comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.batches import call, few_samples, inputs_copied, samples_in, tensors_in
from dalr_stream.network.capture.gradient_rule import Estimator, GradientRule, Metric
from dalr_stream.network.capture.gradients.edges import edges_of
from dalr_stream.network.capture.gradients.ends import End, end_of
from dalr_stream.network.capture.gradients.vectors import vectors_of
from dalr_stream.network.capture.reading import same_draws
from dalr_stream.network.layers.elsewhere import weights_elsewhere
from dalr_stream.network.layers.kinds import CONVOLUTIONS
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.numerics.rows.draws import SampleDraws
from dalr_stream.numerics.rows.streams import module_name
from dalr_stream.numerics.types import Vector

SAMPLES = 2
DIRECTIONS = 3
STEPS = {torch.float32: 1e-2, torch.float64: 1e-4}
"""Of the size of what a layer gives; types that are not here are too coarse."""
SHORTER = 0.25
"""Of a step: slopes of both must be the same, or nothing is smooth enough to be told."""
ALIKE = 0.02
APART = 0.1
"""Of the larger slope: further apart gradients are refused. Kinks within a step stay far below."""
LEAST_FELT = 0.02
"""Of the layer that the loss feels most: those that it feels less hide behind it."""
ROUNDINGS = 30
"""Of the outputs' type: a difference of less says nothing."""

Directions = Mapping[str, Sequence[torch.Tensor]]
"""By module, call after call: what is added to what it gives."""


def require_slopes(model: nn.Module, layers: Sequence[LayerSpec], rule: GradientRule, end: End) -> None:
    """Raise InvalidInputError for a layer by whose outputs gradients are not what the loss changes by.

    `end` has the batch, and nothing that was returned for it.
    """
    if weights_elsewhere(model) is not None:
        return
    try:
        of_outputs = rule if rule.loss is not None else replace(rule, estimator=Estimator.VECTORS)
        found = _There.of(model, layers, of_outputs, replace(end, batch=few_samples(end.batch, SAMPLES)))
        if found is None or not found.differs(found.modules):
            return
        wrong = next((name for name in found.modules if found.differs([name])), None)
    except Exception:  # noqa: BLE001  # two samples may be none that it takes, and what else fails does so again
        return
    if wrong is not None:
        raise InvalidInputError(
            f"layer '{wrong}@gradients': gradients are not what the network's output changes by when what the layer "
            "gives does: between them something is detached, runs under torch.no_grad(), or has a backward pass that "
            "is not its derivative (a straight-through estimator): take that out, or watch no gradients before it; "
            "rows.prove=False (`capture.prove = false`) takes them as they come, unproved"
        )


@dataclass(slots=True)
class _There:
    """A few samples' outputs and gradients, from which differences are told."""

    model: nn.Module
    rule: GradientRule
    end: End
    vector: torch.Tensor
    gradients: Directions
    given: Directions
    step: float
    noise: float
    """What rounding may add to a slope."""
    modules: Sequence[str] = field(init=False)
    factors: dict[str, float] = field(init=False, default_factory=dict)
    """Of how far modules are moved, so that none hides what others change the loss by."""

    @classmethod
    def of(cls, model: nn.Module, layers: Sequence[LayerSpec], rule: GradientRule, end: End) -> _There | None:
        """Run there and back; None where nothing can be told."""
        end = replace(end, samples=samples_in(end.batch))
        names = list(dict.fromkeys(module_name(layer.name) for layer in layers))
        outputs: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        with same_draws(model), edges_of(model, layers, (), end.samples) as edges, ExitStack() as stack:
            for name in names:
                hook = model.get_submodule(name).register_forward_hook(_keeping(outputs[name]))
                stack.callback(hook.remove)
            returned = call(model, inputs_copied(end.batch))
            values = end_of(replace(end, returned=returned), rule)
            step = STEPS.get(values.dtype)
            given = {module_name(layer.name): edges[layer.stream] for layer in layers}
            calls = [(name, one) for name in names for one in given[name]]
            if step is None or not values.requires_grad or any(one.form.dtype not in STEPS for _, one in calls):
                return None
            vector = _vector_of(values, rule, end.samples)
            found = torch.autograd.grad([values], [one.edge for _, one in calls], [vector], allow_unused=True)
        reached = {name for (name, _), gradient in zip(calls, found, strict=True) if gradient is not None}
        gradients: dict[str, list[torch.Tensor]] = {name: [] for name in names if name in reached}  # others are named
        for (name, one), gradient in zip(calls, found, strict=True):
            if name in reached:
                gradients[name].append(one.gradient(gradient).detach())
        largest = max(float(one.detach().abs().max()) for one in (values, *tensors_in(returned)) if one.numel())
        noise = ROUNDINGS * torch.finfo(values.dtype).eps * largest * float(vector.double().norm()) / step
        return cls(model, rule, end, vector, gradients, outputs, step, noise)

    def __post_init__(self) -> None:
        self.modules = list(self.gradients)
        felt = {name: self._felt(name) for name in self.modules}
        least = LEAST_FELT * max(felt.values(), default=0.0)
        least = min((one for one in felt.values() if one >= least), default=0.0)
        for name, one in felt.items():
            self.factors[name] = min(1.0, least / one) if one else 1.0

    def _felt(self, name: str) -> float:
        """Return how much the loss changes by where this module's channels are moved."""
        by_call = zip(self.gradients[name], self.given[name], strict=True)
        products = ((one * given).double().movedim(self._axis(name, given), 0) for one, given in by_call)
        return math.hypot(*(float(product.flatten(1).sum(dim=1).norm()) for product in products))

    def _axis(self, name: str, given: torch.Tensor) -> int:
        """Return the dimension of what a module gives that has its channels."""
        return 1 if isinstance(self.model.get_submodule(name), CONVOLUTIONS) else given.ndim - 1

    def differs(self, names: Sequence[str]) -> bool:
        """Tell whether slopes along random directions, of these modules' outputs, are not those of the gradients."""
        generator = torch.Generator().manual_seed(0)
        directions = [self._direction(names, generator) for _ in range(DIRECTIONS)]
        told = np.array([self._told(one) for one in directions])
        seen = self._slopes(directions, self.step)
        if _gap(told, seen) <= APART * _longer(told, seen) + self.noise:
            return False
        again = self._slopes(directions, SHORTER * self.step)
        return _gap(seen, again) <= ALIKE * _longer(told, seen)

    def _direction(self, names: Sequence[str], generator: torch.Generator) -> Directions:
        return {name: [self._scaled(name, one, generator) for one in self.given[name]] for name in names}

    def _scaled(self, name: str, given: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return what a module gave, each of its channels times a random number."""
        axis = self._axis(name, given)
        numbers = self.factors[name] * torch.randn(given.shape[axis], generator=generator).to(given)
        return given * numbers.reshape(-1, *(1 for _ in given.shape[axis + 1 :]))

    def _told(self, directions: Directions) -> float:
        """Return the slope by the gradients."""
        pairs = (pair for name, one in directions.items() for pair in zip(self.gradients[name], one, strict=True))
        return sum(float((gradient * direction).double().sum()) for gradient, direction in pairs)

    def _slopes(self, directions: Sequence[Directions], step: float) -> Vector:
        """(directions,): the slope by differences."""
        both = ([self._moved(one, sign * step) for sign in (1.0, -1.0)] for one in directions)
        return np.array([float(((up - down).double() * self.vector.double()).sum()) / (2 * step) for up, down in both])

    def _moved(self, directions: Directions, step: float) -> torch.Tensor:
        """Return the outputs where what modules give is moved."""
        with same_draws(self.model), torch.no_grad(), ExitStack() as stack:
            for name, each in directions.items():
                hook = self.model.get_submodule(name).register_forward_hook(_moving(each, step))
                stack.callback(hook.remove)
            return end_of(replace(self.end, returned=call(self.model, inputs_copied(self.end.batch))), self.rule)


def _vector_of(values: torch.Tensor, rule: GradientRule, samples: int) -> torch.Tensor:
    """Return random signs in the form of outputs, whatever their metric: a loss that is certain hardly changes."""
    plain = rule if rule.loss is not None else replace(rule, metric=Metric.VALUES)
    return vectors_of(values, plain, SampleDraws(rule.seed, 0, samples, 0), None)


def _keeping(outputs: list[torch.Tensor]) -> Callable[..., None]:
    return lambda _, __, output: outputs.append(output.detach().clone())


def _moving(each: Sequence[torch.Tensor], step: float) -> Callable[..., Any]:
    calls = iter(each)
    return lambda _, __, output: output + step * next(calls)


def _gap(one: Vector, other: Vector) -> float:
    return float(np.linalg.norm(one - other))


def _longer(one: Vector, other: Vector) -> float:
    return max(float(np.linalg.norm(one)), float(np.linalg.norm(other)))
