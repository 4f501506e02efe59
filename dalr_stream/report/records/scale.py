"""What the values of a metric mean: whether more is better, between which bounds they lie, and how they are printed.

A metric within 0..1 is a share: printed in per cent, and a loss allowed of it is in percentage points. Of any other, a
perplexity say, the loss allowed is a share of the uncompressed network's value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dalr_stream.report.cells import percent_text, signed_points

ROUNDING = 1e-6
"""Of a bound: a mean of float32 shares may lie this far above 1."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Direction and range of a metric; that of accuracy by default."""

    higher: bool = True
    """Whether more is better."""
    lowest: float | None = 0.0
    highest: float | None = 1.0
    """None where there is no bound."""

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any] | None) -> Scale:
        """Read what `dataclasses.asdict` gave; records of earlier versions have none."""
        return cls(**plain) if plain else cls()

    @property
    def is_share(self) -> bool:
        """Whether values lie within 0..1."""
        return self.lowest is not None and self.highest is not None and self.lowest >= 0 and self.highest <= 1

    @property
    def words(self) -> str:
        """The range in words."""
        if self.lowest is None:
            return "any number" if self.highest is None else f"at most {self.highest:g}"
        return f"at least {self.lowest:g}" if self.highest is None else f"{self.lowest:g}..{self.highest:g}"

    def holds(self, value: float) -> bool:
        """Tell whether a value is finite and lies in the range."""
        lowest, highest = (math.nan if bound is None else bound for bound in (self.lowest, self.highest))
        return math.isfinite(value) and not value < lowest - ROUNDING and not value > highest + ROUNDING

    # --- what is better ------------------------------------------------------------------------------------------

    def goodness(self, value: float) -> float:
        """Return a number that is larger the better a value is."""
        return value if self.higher else -value

    def loss(self, before: float, after: float) -> float:
        """Return by how much `after` is worse than `before`."""
        return self.goodness(before) - self.goodness(after)

    def allowed(self, baseline: float, drop: float) -> float:
        """Return the loss that `drop` allows: itself of a share, and a share of `baseline` otherwise."""
        return drop if self.is_share else drop * abs(baseline)

    def worst(self, baseline: float, drop: float) -> float:
        """Return the worst value that lies within the loss that `drop` allows."""
        return self.goodness(self.goodness(baseline) - self.allowed(baseline, drop))

    def reaches(self, value: float, needed: float) -> bool:
        """Tell whether a value is as good as one that is needed."""
        return self.goodness(value) >= self.goodness(needed)

    @property
    def at_least(self) -> str:
        """What a value must be of one that is needed, in words."""
        return "at least" if self.higher else "at most"

    # --- in print ------------------------------------------------------------------------------------------------

    @property
    def factor(self) -> int:
        """By which values are multiplied in print."""
        return 100 if self.is_share else 1

    @property
    def unit(self) -> str:
        """What stands after a value."""
        return " %" if self.is_share else ""

    def number(self, value: float) -> str:
        """Return a value without its unit."""
        if self.is_share:
            return percent_text(value)
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

    def text(self, value: float) -> str:
        """Return a value with its unit."""
        return f"{self.number(value)}{self.unit}"

    def change(self, before: float, after: float) -> str:
        """Return a change with its sign."""
        return signed_points(after - before) if self.is_share else f"{after - before:+.4g}"

    def head(self, metric: str) -> str:
        """Return the head of a column of values."""
        return f"{metric}, %" if self.is_share else metric

    def drop_text(self, drop: float) -> str:
        """Return a loss allowed: 1 point, 0.5 points; of what is no share, 1 %."""
        points = round(100 * drop, 6)
        if not self.is_share:
            return f"{points:g} %"
        return f"{points:g} point" + ("" if points == 1 else "s")

    def allowance(self, metric: str, drop: float) -> str:
        """Return the loss allowed of a metric, as a sentence begins."""
        if self.is_share and self.higher:
            return f"At a loss of at most {self.drop_text(drop)} of {metric}"
        side = "below" if self.higher else "above"
        return f"With a {metric} at most {self.drop_text(drop)} {side} the uncompressed network's"


ACCURACY = Scale()


def key_of(metric: str) -> str:
    """Return the head of a metric's column in a CSV file."""
    return metric.replace(" ", "_")
