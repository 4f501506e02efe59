"""The sections of labelled batches, on which networks are scored: by which metric, and what its values mean."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from dalr_stream.numerics.methods import Method
from dalr_stream.report.records.scale import Scale
from dalr_stream.workflow.runfile.sections import DataSection
from dalr_stream.workflow.runfile.values import METRIC, Bytes, Positive, parse_bytes


def _read_range(value: Any) -> Any:
    """Take two numbers, the first below the second; an infinite one is no bound, and None once it was read."""
    if isinstance(value, list | tuple) and len(value) == 2:
        value = [end if bound is None else bound for bound, end in zip(value, (-math.inf, math.inf), strict=True)]
    numbers = isinstance(value, list | tuple) and len(value) == 2
    if not numbers or not all(isinstance(end, int | float) and not isinstance(end, bool) for end in value):
        raise ValueError(f"must be two numbers, such as [1, inf] for a perplexity, got {value!r}")
    if not value[0] < value[1]:
        raise ValueError(f"must be two numbers, the lower one first, got {value!r}")
    return tuple(None if math.isinf(end) else float(end) for end in value)


Range = Annotated[
    tuple[float | None, float | None],
    BeforeValidator(_read_range),
    Field(json_schema_extra={"in_words": "two numbers, e.g. [1, inf]"}),
]


class LabelledSection(DataSection):
    """Labelled batches, how a network is scored on them, and the sizes to try."""

    metric: Annotated[str, Field(pattern=METRIC)] = "accuracy"
    """`metric(model, batches) -> float`; all it may do with the model is to call it on one batch at a time."""
    higher: bool | None = None
    """Whether more of it is better. Must be said of a metric of your own: false of a loss or a perplexity."""
    range: Range = (0.0, 1.0)
    """Between which values it lies; others are an error. A metric within 0..1 is a share: printed in per cent, and what
    may be lost of it is in percentage points. Of any other, as [1, inf] of a perplexity, it is a share of its value."""
    ranks: tuple[Positive, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    """Of each layer by itself; none where only the networks that the run saves are of interest."""
    cache: Bytes = "256MiB"
    """What may be kept of the values that enter the compressed layers, of each loader's batches, instead of loading and
    computing them for every network. Of `accumulate.memory_limit` a fourth at most."""

    @model_validator(mode="after")
    def _direction_is_said(self) -> LabelledSection:
        if self.metric == "accuracy":
            if self.higher is False or self.range != (0.0, 1.0):
                raise ValueError(
                    "higher and range belong to a metric of your own; accuracy lies in 0..1, and more is better"
                )
        elif self.higher is None:
            raise ValueError(
                f"higher must be stated for a metric of your own: true where more of '{self.metric}' is better, false "
                "where less is, as of a loss or a perplexity"
            )
        return self

    @property
    def cache_bytes(self) -> int:
        """The same in bytes."""
        return parse_bytes(self.cache)

    @property
    def scale(self) -> Scale:
        """Direction and range of the metric."""
        return Scale(self.higher is not False, *self.range)

    @property
    def metric_words(self) -> str:
        """The metric's name in print: `my_metrics:next_token_accuracy` is `next token accuracy`."""
        return self.metric.rpartition(":")[2].replace("_", " ")


class EvaluateSection(LabelledSection):
    """The labelled test split, and the sizes to try on it."""

    drop: float = Field(default=0.01, gt=0.0, lt=1.0)
    """The loss that the headline allows: of a share in percentage points, of another metric as a share of its value."""
    compare: tuple[Method, ...] = ()
    """Methods by which all layers are also compressed at once, each to the rule of [compress], and scored beside the
    network that is saved: of these only what was measured is kept."""
    finetune: bool = False
    """Whether each network is also fine-tuned, as [finetune] says, and scored again."""
