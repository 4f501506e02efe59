"""A metric on batches: the score of a network, whole or block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from dalr_stream.network.capture.hooks import require_batches
from dalr_stream.network.capture.loaders import most_samples
from dalr_stream.network.capture.passes import require_repeatable

Metric = Callable[[nn.Module, Iterable[Any]], float]


@dataclass(frozen=True, slots=True)
class Score:
    """A metric on batches: call it with a network, and it returns the score.

    As `score` of `sizes` it also goes block by block, where a function of a network alone does not: the metric is given
    each batch by itself there, and all of them in the end.

    Attributes
    ----------
    metric
        Called with a network and batches, it returns a number. It may do no more with a network than call it once for
        each batch.
    batches
        What it is given, as often as it is asked for.

    Raises
    ------
    InvalidInputError
        For batches that can be gone through once only.

    See Also
    --------
    OutputDistance : needs no labels.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 3)).eval()
    >>> score = ds.Score(ds.network.accuracy, [(torch.randn(32, 6), torch.zeros(32, dtype=torch.long))])
    >>> 0.0 <= score(model) <= 1.0
    True
    """

    metric: Metric
    batches: Iterable[Any]

    def __post_init__(self) -> None:
        require_batches(self.batches)
        require_repeatable(self.batches, "score: batches")

    def __call__(self, network: nn.Module) -> float:
        """Return the score of a network."""
        return self.metric(network, self.batches)

    @property
    def samples(self) -> int:
        """How many it is on, at most, where the loader has a length: as many as the first batch has in each."""
        return most_samples(self.batches)
