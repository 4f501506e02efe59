"""A loss without labels: how far a network's outputs are from those of the network that it was compressed from."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.batches import call, inputs_copied
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.capture.row_rule import RowRule, rule_of
from dalr_stream.network.layers.identity import fingerprint
from dalr_stream.network.measure.distance import Comparison, Distance, require_same_shapes, total
from dalr_stream.numerics.options import parse_choice
from dalr_stream.storage.json_record import digest_of

PLACE = "fine-tuning"


class OutputLoss:
    """A loss for `finetune` that needs no labels: the distance of a network's outputs to those of the original.

    It is called with outputs and the batch that gave them, on which it runs the original; batches are as `accumulate`
    takes them, and labels beside the inputs are not looked at.

    Parameters
    ----------
    model
        The original network, in eval mode. It is run once, without gradients, for each batch of each epoch.
    distance
        "energy", ||Y - Y~||^2 / ||Y||^2; "kl", the divergence of class probabilities in nats, for networks that give
        class scores; or "cosine", 1 - cosine of each row, for embeddings.
    rows
        Its mask says which positions count; by default all do.

    Raises
    ------
    InvalidInputError
        For an original in train mode, or an unknown distance.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
    >>> batches = [torch.randn(32, 6) for _ in range(4)]
    >>> statistics = ds.accumulate(model, batches, ds.watch(model, ["0"]))
    >>> small = ds.compress(model, {"0": ds.dalr(statistics["0"]).at_rank(2)})
    >>> losses = []
    >>> options = ds.FineTuning(epochs=5, rate=1e-2, loss=ds.OutputLoss(model, distance="kl"), train="factors")
    >>> small = ds.finetune(small, batches, options, epoch_done=lambda _, loss: losses.append(loss))
    >>> losses[-1] < losses[0]
    True
    """

    def __init__(
        self, model: nn.Module, *, distance: Distance | str = Distance.ENERGY, rows: RowRule | None = None
    ) -> None:
        if any(module.training for module in model.modules()):
            raise InvalidInputError(f"{PLACE}: the original network must be in eval mode: call model.eval()")
        self._model = model
        self._comparison = Comparison(parse_choice(Distance, distance, "distance"), rule_of(rows))

    def __call__(self, outputs: Any, batch: Any) -> torch.Tensor:
        """Return the distance, a scalar.

        Raises InvalidInputError where there is nothing to compare, or shapes differ.
        """
        actual = self._comparison.tensors(outputs, batch, PLACE)
        with without_gradients():
            expected = self._comparison.tensors(call(self._model, inputs_copied(batch)), batch, PLACE)
        require_same_shapes(expected, actual, PLACE)
        pairs = zip(expected, actual, strict=True)
        return total(torch.stack([self._comparison.sums(y.to(given.device), given) for y, given in pairs]))

    @property
    def made_from(self) -> str:
        """The digest of the original and of how outputs are compared."""
        return digest_of([fingerprint(self._model), self._comparison.distance, self._comparison.rows.words])
