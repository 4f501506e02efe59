"""The section [gradients]: of which loss the gradients are that `network.gradients` asks for, and by which draws."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.gradient_rule import Estimator, GradientRule, LossOf, Metric, OutputsOf
from dalr_stream.workflow.runfile.sections import Section
from dalr_stream.workflow.runfile.values import Factory, Positive

OutputKey = Annotated[
    str, Field(min_length=1, json_schema_extra={"in_words": "key of the outputs, or module:function"})
]


class GradientsSection(Section):
    """Which gradients are recorded of the layers that `network.gradients` names; `run.seed` seeds the draws."""

    estimator: Estimator = Estimator.VECTORS
    """`vectors`, random ones in the metric of the loss, or `sampled` labels, drawn from the network's own output, need
    no labels; `labels` takes those of the batches."""
    metric: Metric = Metric.CLASSES
    """What a change of the network's output is measured by: `classes`, the divergence of class probabilities, in nats;
    or `values`, half the squared distance, of embeddings and regressions."""
    draws: Positive = 1
    """Vectors, or sampled labels, of each sample; each is a backward pass."""
    clip: float | None = Field(default=None, gt=0.0)
    """Make a sample's gradient of a layer no longer than this, in each draw."""
    outputs: OutputKey | None = None
    """Which of the network's outputs, (N, C) or (N, T, C): a key or an attribute of what it returns, or a function
    `outputs(returned)`. Needed where it returns neither one tensor nor `logits`."""
    loss: Factory | None = None
    """With `labels`: `loss(returned, batch)` gives a value for each sample, (N,). Cross entropy by default."""

    @property
    def functions(self) -> tuple[str, ...]:
        """What it names as `module:function`."""
        return tuple(name for name in (self.outputs, self.loss) if name is not None and ":" in name)

    @model_validator(mode="after")
    def _means_something(self) -> GradientsSection:
        try:
            self.rule(0, None, None if self.loss is None else lambda returned, _: returned)
        except InvalidInputError as error:
            raise ValueError(str(error).removeprefix("gradients: ")) from None
        return self

    def rule(self, seed: int, outputs: str | OutputsOf | None, loss: LossOf | None) -> GradientRule:
        """Return the rule, with the functions that the names stand for."""
        return GradientRule(self.estimator, self.metric, self.draws, seed, self.clip, outputs, loss)
