r"""Which gradients are recorded: of which loss, by which vectors, how many of each sample.

A loss of the outputs o changes by about 1/2 do' H do where these change by do, H the curvature of the loss by o. With
vectors v of E[v v'] = H, a layer's gradients g = J'v, J = do/dy, have G = E[g g'] = J'H J: a change dW of its weight
then costs about 1/2 tr(G dW A dW') a row, A the moments of its inputs. Where the loss compares with what the network
itself gave, no label is needed:

    vectors  v = H^1/2 e, with e random signs: for class scores the Gauss-Newton matrix of the Kullback-Leibler
             divergence, H = diag(p) - p p' with p = softmax(o), so v = r o e - p (r'e) with r = sqrt(p); for other
             values half their squared distance, H = I
    sampled  v = p - onehot(y), of a label y drawn from p: the same E[v v'], the Fisher information
    labels   the gradient of the user's own loss: the empirical Fisher information, another matrix

Signs in place of normal numbers have the same E[e e'] = I, and G scatters less (Hutchinson 1990): of independent
numbers none have a smaller fourth moment.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from numbers import Real
from typing import Any

import torch

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.options import parse_choice, whole_number

OutputsOf = Callable[[Any], torch.Tensor]
LossOf = Callable[[Any, Any], torch.Tensor]


class Estimator(StrEnum):
    """Which vectors are sent back through a network.

    Attributes
    ----------
    VECTORS
        Random ones in the metric of the loss; need no labels.
    SAMPLED
        The gradients of labels drawn from the network's own output; need no labels.
    LABELS
        The gradient of a loss by the labels of the data.
    """

    VECTORS = "vectors"
    SAMPLED = "sampled"
    LABELS = "labels"


class Metric(StrEnum):
    """What a change of the network's outputs is measured by.

    Attributes
    ----------
    CLASSES
        The Kullback-Leibler divergence of softmax(outputs), in nats.
    VALUES
        Half the squared distance of the outputs: of embeddings and regressions.
    """

    CLASSES = "classes"
    VALUES = "values"


@dataclass(frozen=True, slots=True)
class GradientRule:
    """Which gradients of the layers watched for them are recorded; see `RowRule.gradients`.

    Attributes
    ----------
    estimator
        "vectors", "sampled" or "labels"; see `Estimator`.
    metric
        "classes" or "values"; see `Metric`. With `loss` it does not matter.
    draws
        Vectors of each sample, each a backward pass and as many rows more.
    seed
        Seed of the draws; a sample's are decided by it and by the sample's number.
    clip
        A sample's gradient of one layer and draw is made no longer than this; None for no limit.
    outputs
        Which of a network's outputs: a key or an attribute of what it returns, or a function of that; None where it
        returns one tensor, or class scores as `logits`. It is (N, C), or (N, T, C) with a mask's positions.
    loss
        With "labels", a function of what the network returns and of the batch: a value a sample, (N,), or more of
        them, (N, T), which are added up. None for the cross entropy of class scores.

    Examples
    --------
    >>> import dalr_stream as ds
    >>> ds.GradientRule(draws=4, metric="values").words
    'gradients of values by 4 random vectors a sample by seed 0'
    """

    estimator: Estimator | str = Estimator.VECTORS
    metric: Metric | str = Metric.CLASSES
    draws: int = 1
    seed: int = 0
    clip: float | None = None
    outputs: str | OutputsOf | None = None
    loss: LossOf | None = None

    def __post_init__(self) -> None:
        for name, kind in (("estimator", Estimator), ("metric", Metric)):
            object.__setattr__(self, name, parse_choice(kind, getattr(self, name), f"gradients: {name}"))
        whole_number(self.draws, "gradients: draws")
        whole_number(self.seed, "gradients: seed", 0)
        if self.clip is not None and not (isinstance(self.clip, Real) and 0.0 < self.clip < math.inf):
            raise InvalidInputError(f"gradients: clip must be a number above 0 and finite, got {self.clip!r}")
        if not (self.outputs is None or isinstance(self.outputs, str) or callable(self.outputs)):
            raise InvalidInputError(
                f"gradients: outputs must be a key of what the network returns, '0' for the first of a tuple say, or a "
                f"function of it, got {self.outputs!r}"
            )
        if not (self.loss is None or callable(self.loss)):
            raise InvalidInputError(
                f"gradients: loss must be a function of what the network returns and of the batch, got {self.loss!r}"
            )
        if self.by_labels and self.draws > 1:
            raise InvalidInputError(
                f"gradients: labels have one gradient a sample, so draws must be 1, got {self.draws}"
            )
        if self.loss is not None and not self.by_labels:
            raise InvalidInputError(
                f"gradients: a loss is of estimator 'labels' alone, got one beside '{self.estimator}': give its "
                "curvature as metric 'classes' or 'values', or set the estimator to 'labels'"
            )
        if self.estimator is not Estimator.VECTORS and self.loss is None and self.metric is Metric.VALUES:
            raise InvalidInputError(
                f"gradients: estimator '{self.estimator}' of metric 'values' has no labels to go by: use 'vectors'"
                f"{', or give a loss' if self.by_labels else ''}"
            )

    @property
    def by_labels(self) -> bool:
        """Whether the labels of the data decide them."""
        return self.estimator is Estimator.LABELS

    @property
    def words(self) -> str:
        """The rule in words, by which it is recorded and compared; a function goes by its name."""
        what = name_of(self.loss) if self.loss is not None else str(self.metric)
        outputs = "" if self.outputs is None else f" in {name_of(self.outputs)}"
        drawn = f"{'sampled label' if self.estimator is Estimator.SAMPLED else 'random vector'}{'s'[: self.draws - 1]}"
        by = "the labels" if self.by_labels else f"{self.draws} {drawn} a sample by seed {self.seed}"
        clipped = "" if self.clip is None else f", clipped at {self.clip:g}"
        return f"gradients of {what}{outputs} by {by}{clipped}"


def name_of(source: Any) -> str:
    """Return what stands for a key or a function in words."""
    if isinstance(source, str):
        return f"'{source}'"
    named: Any = source if hasattr(source, "__qualname__") else type(source)
    return f"{named.__module__}:{named.__qualname__}"
