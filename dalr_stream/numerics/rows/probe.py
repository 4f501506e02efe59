"""What a network gave for a probe, as numbers that are kept with its rows and compared with another's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FINE, COARSE = 2e-3, 5e-2
"""Of the size of the outputs: convolutions in TF32 are off by up to 1e-3, half precision in many layers by more."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The numbers of one probe."""

    form: str
    """Of its inputs: probes of other forms say nothing of one another."""
    numbers: tuple[float, ...]
    """Of its outputs."""
    coarse: bool = False
    """Whether the outputs are in half precision."""

    def agrees(self, other: Probe) -> bool:
        """Tell whether the same network can have given both, on other machines or with other threads."""
        if self.form != other.form:
            return True
        if len(self.numbers) != len(other.numbers):
            return False
        scale = max(map(abs, (*self.numbers, *other.numbers)), default=0.0)
        tolerance = (COARSE if self.coarse or other.coarse else FINE) * scale
        pairs = zip(self.numbers, other.numbers, strict=True)
        return all(math.isclose(one, two, rel_tol=0.0, abs_tol=tolerance) for one, two in pairs)


def disagreeing(known: Sequence[Probe], probe: Probe) -> Probe | None:
    """Return the first of the probes `known` that another network gave."""
    return next((one for one in known if not one.agrees(probe)), None)
