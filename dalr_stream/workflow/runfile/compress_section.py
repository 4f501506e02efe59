"""The [compress] section of a run file: layers by name, each with its size, or one rule for all of them.

    [compress]                                              [compress]
    fc1 = { method = "dalr_anchored_affine", size = 64 }    params = "25%"
    fc2 = { method = "momasp_node", retention = 0.95 }      multiple_of = 8

What contradicts itself is refused here, before anything runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from dalr_stream.engine.sequential.targets import Target
from dalr_stream.network.measure.distance import Distance
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.workflow.runfile.sections import Section
from dalr_stream.workflow.runfile.values import Positive

RULES = ("params", "macs", "network", "energy", "singular_values", "ratio", "max_drop")
"""The ways to decide the sizes of all layers."""
BUDGETS = ("params", "macs", "network")
"""Those that share out a budget: candidates are measured on the network."""
OF_EACH_LAYER = ("energy", "singular_values", "ratio")
"""Those that ask each layer by itself, where gradients are not recorded."""
BY_NATS = ("energy", "max_drop")
"""Those that go by what the loss feels of all layers, where gradients of each are recorded."""


def _read_percent(value: Any) -> float:
    """`25%` is 0.25; one validator for both, so that a wrong value is one message."""
    percent = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value) if isinstance(value, str) else None
    try:
        share = float(value) if percent is None else float(percent[1]) / 100
    except (TypeError, ValueError):
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"must read like 25% or 0.25, got {value!r}")
    return share


Percent = Annotated[
    float, BeforeValidator(_read_percent), Field(json_schema_extra={"in_words": "share, e.g. 25% or 0.25"})
]
"""A share, written `25%` or 0.25."""
SomePercent = Annotated[Percent, Field(gt=0.0)]


class Order(StrEnum):
    """Whether the layers' solutions know of one another."""

    PARALLEL = "parallel"
    """All from the original network's statistics."""
    SEQUENTIAL = "sequential"
    """Each from what it reads in the network as compressed so far, towards the original's outputs."""


_IS = {Family.SELECTION: "a selection", Family.HEADS: "one of heads"}
ONE_SIZE = "needs exactly one of 'size' and 'retention'"


class ChoiceSection(Section):
    """How one layer of the saved network is compressed: a method, and exactly one of size and retention.

    Beside a rule for all layers, a method alone: the rule decides the size.
    """

    method: Method
    """One of solve.methods."""
    size: Positive | None = None
    """Rank, number of kept nodes, or of dimensions of each head."""
    retention: float | None = Field(default=None, gt=0.0, le=1.0)
    """Smallest selection that retains this share; selections only."""

    @model_validator(mode="after")
    def _one_size(self) -> ChoiceSection:
        if self.size is not None and self.retention is not None:
            raise ValueError(ONE_SIZE)
        if self.retention is not None and self.method.family is not Family.SELECTION:
            what = "is a low-rank method" if self.method.family is Family.LOW_RANK else "narrows heads"
            raise ValueError(f"'retention' is for selections, '{self.method.value}' {what}: give 'size'")
        return self


class CompressSection(Section):
    """How the saved network is compressed: layers by name, each with a size, or one rule for all layers.

    A percentage of weights or multiply-adds is of those of the compressed layers; that of `network` is of the whole.
    """

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)
    __pydantic_extra__: dict[str, ChoiceSection]

    params: SomePercent | None = None
    """Keep this share of the layers' weights."""
    macs: SomePercent | None = None
    """Keep this share of the layers' multiply-adds: weights x rows a sample."""
    network: SomePercent | None = None
    """Keep this share of the whole network's parameters; what is not compressed counts in full."""
    energy: SomePercent | None = None
    """Keep this share of the outputs' energy, or of the nodes' (retention), in every layer; where every layer's
    gradients are recorded, this share of what the loss feels of all layers together."""
    singular_values: SomePercent | None = None
    """Keep this share of the sum of each layer's singular values, those that its low-rank method truncates."""
    ratio: SomePercent | None = None
    """Keep this share of the full rank, or of the nodes, in every layer."""
    max_drop: Percent | None = None
    """Search sizes of all layers together that lose at most this much of the score on [validation]; where every layer's
    gradients are recorded, budgets shared out by what the loss feels are tried, and else the sizes validation.ranks."""
    method: Annotated[Method | None, BeforeValidator(lambda value: None if value == "auto" else value)] = None
    """By which method all layers are compressed. `auto`, the default, weighs factor pairs, selections and, where
    solve.methods has them, heads for `params`, `macs` and `network`, and for `energy` and `max_drop` where every
    layer's gradients are recorded; it is `dalr_anchored_affine`, or the first of solve.methods, for other rules. Where
    a selection is named, a layer none of whose nodes can go is factored; where heads are, one of no attention."""
    samples: Positive = 128
    """Samples of the target on which `params`, `macs` and `network` measure what compression does to the outputs: those
    held out of the statistics, where any are."""
    distance: Distance = Distance.ENERGY
    """In what that is measured: `energy`, ||Y - Y~||^2 / ||Y||^2, `kl`, nats, of networks that give logits, or
    `cosine`, 1 - cosine of each row, of embeddings."""
    order: Order = Order.PARALLEL
    """`sequential` takes a pass over the data for each layer; a budget is then chosen among networks compressed so."""
    target: Target = Target.OUTPUTS
    """Towards what the order `sequential` solves layers: what each gives in the original; or `stream`, where that is
    added to a residual stream, besides towards what the stream has lost by then."""
    multiple_of: Positive | None = None
    """Use no other sizes than multiples of it, and layers as they are."""

    @property
    def layers(self) -> dict[str, ChoiceSection]:
        """The layers that are named, by name or by a pattern as in `network.layers`, with their sizes."""
        return self.__pydantic_extra__ or {}

    @property
    def rule(self) -> str | None:
        """The rule that decides sizes, if one is given."""
        return next((rule for rule in RULES if getattr(self, rule) is not None), None)

    @property
    def within_budget(self) -> bool:
        """Tell whether the rule shares out a budget."""
        return self.rule in BUDGETS

    @property
    def share(self) -> float:
        """What the rule was given."""
        return float(getattr(self, self.rule)) if self.rule else 1.0

    @property
    def in_words(self) -> str:
        """The rule and what it was given: params 25%."""
        return f"{self.rule} {100 * self.share:.4g}%"

    @property
    def wanted(self) -> bool:
        """Tell whether a compressed network is saved at all."""
        return bool(self.rule or self.layers)

    def by(self, method: Method) -> CompressSection:
        """Return the same rule with one method for all layers."""
        kept = {key: value for key, value in self.model_dump(exclude_unset=True).items() if key in (*RULES, *KEPT)}
        return CompressSection.model_validate({**kept, "method": method})

    def require_comparable(self, methods: Sequence[Method]) -> None:
        """Raise ValueError where the network cannot be compressed by each of some methods, all layers at once."""
        if methods and self.rule is None:
            raise ValueError(
                "evaluate.compare: methods are compared at the sizes that a rule of [compress] finds for each, and it "
                'has none: add params = "30%" say, or leave compare out'
            )
        if methods and self.order is Order.SEQUENTIAL:
            raise ValueError(
                'evaluate.compare: all layers are compressed at once, and compress.order is "sequential": leave out '
                "one of them"
            )
        for method in methods:
            if self.rule == "singular_values" and method.family is not Family.LOW_RANK:
                raise ValueError(
                    f"evaluate.compare: '{method.value}' is {_IS[method.family]}, which has no singular values to keep "
                    "a share of: leave it out, or choose another rule"
                )

    @model_validator(mode="after")
    def _one_rule(self) -> CompressSection:
        given = [f"'{rule}'" for rule in RULES if getattr(self, rule) is not None]
        if len(given) > 1:
            raise ValueError(f"one rule decides the sizes, got {' and '.join(given)}: keep one of them")
        for layer, choice in self.layers.items():
            sized = choice.size is not None or choice.retention is not None
            if given and sized:
                raise ValueError(
                    f"{given[0]} decides all layers' sizes, and '{layer}' is given its own: keep one of them"
                )
            if not given and not sized:
                raise ValueError(f"'{layer}' {ONE_SIZE}")
        if self.layers and given and not self.within_budget:
            raise ValueError(f"{given[0]} takes one method for all layers: give it as 'method'")
        if self.target is Target.STREAM and self.order is not Order.SEQUENTIAL:
            raise ValueError(
                'target = "stream" mends what layers before have lost: add order = "sequential", or leave it out'
            )
        for key in ("method", "multiple_of", "samples", "distance"):
            if key in self.model_fields_set and getattr(self, key) is not None and not given:
                rules = ", ".join(f"'{rule}'" for rule in RULES)
                raise ValueError(f"'{key}' goes with a rule for all layers: add one of {rules}")
        return self


KEPT = ("method", "multiple_of", "order", "target", "samples", "distance")
"""What a rule given on the command line leaves as the run file says."""


def with_sizes(section: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return [compress] with other keys put in; a new rule replaces whatever decided the sizes before."""
    if set(RULES) & sizes.keys():
        section = {key: value for key, value in section.items() if key in KEPT}
    return {**section, **sizes}
