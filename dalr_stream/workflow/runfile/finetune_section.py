"""The [finetune] section of a run file: what the compressed network learns from, and what of it is trained."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from dalr_stream.network.measure.distance import Distance
from dalr_stream.network.training.trainable import Train
from dalr_stream.workflow.runfile.sections import DataSection
from dalr_stream.workflow.runfile.values import LOSS, Positive

OUTPUTS = "outputs"
"""The loss that needs no labels."""


class FinetuneSection(DataSection):
    """Batches, never the test split, and how the compressed network is fine-tuned on them.

    The setting is MoMaSP's; the batch size is the loader's.
    """

    epochs: Positive = 10
    """Passes over the batches; each is kept, so that a killed fine-tuning resumes after the last."""
    rate: float = Field(default=1e-4, gt=0.0, allow_inf_nan=False)
    """Learning rate."""
    weight_decay: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    """Of the optimiser; 5e-4 where nothing is said, and 0 with the loss `outputs`."""
    layers: tuple[str, ...] = ()
    """Patterns of what is trained, by the original layers' names; none: every fully connected layer."""
    train: Train = Train.LAYERS
    """What is trained: `layers`, those above; `factors`, the factors of compressed layers and every bias, within
    `layers` where any are named; `all`, everything."""
    loss: Annotated[str, Field(pattern=LOSS)] = "cross_entropy"
    """`loss(outputs, labels)`: the mean over a batch. Or `outputs`, the distance to the original network's outputs: the
    batches need no labels then, and may be the target's."""
    distance: Distance = Distance.ENERGY
    """In what the loss `outputs` measures: `energy`, ||Y - Y~||^2 / ||Y||^2, `kl`, nats, of networks that give class
    scores, or `cosine`, 1 - cosine, of embeddings. The mask of [capture] says which positions count."""
    dropout: bool = False
    """Leave the network's dropout on."""

    @property
    def without_labels(self) -> bool:
        """Whether the original's outputs are learnt from."""
        return self.loss == OUTPUTS

    @model_validator(mode="after")
    def _keys_go_together(self) -> FinetuneSection:
        if "distance" in self.model_fields_set and not self.without_labels:
            raise ValueError(f'\'distance\' goes with loss = "{OUTPUTS}", got loss = "{self.loss}": leave one out')
        if self.layers and self.train is Train.ALL:
            raise ValueError("train = \"all\" trains every layer, and 'layers' names some: leave one out")
        return self
