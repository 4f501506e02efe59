"""How long a compressed network takes compared with the original: the record, and when a difference counts.

Fewer multiply-adds are not less time: a factor pair is two products where there was one, and a thin one may not fill
the cores. So both are recorded: multiply-adds are exact, seconds are measurements, of one machine on one day.

The original and its replacement are timed alternately, so that whatever slows the machine down slows both. Each turn
gives a ratio, after / before; the quartiles of the ratios show the noise. A replacement is called slower where three
turns in four find it so by more than `LEAST_DIFFERENCE`, and its fastest turn is slower than the original's by as much;
faster likewise; otherwise there is no difference. The fastest turns keep a machine that is busy with other things from
deciding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from dalr_stream.errors import InvalidInputError

LEAST_DIFFERENCE = 0.03
"""Smaller differences count as none, however steady: nobody would change a network for them."""
RULE = (
    f"Slower or faster: by more than {LEAST_DIFFERENCE:.0%} in three turns of four, and in the fastest turn of either."
)
WHOLE = ""
"""Name of the whole network among the layers."""
_REMEDY = "try a larger multiple (compress.multiple_of), a lower rank, or leave the layer alone"


class Verdict(StrEnum):
    """How a replacement compares with what it replaces."""

    SLOWER = "slower"
    FASTER = "faster"
    SAME = "no difference"


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """One layer and what replaces it, at one batch size; or the whole network, called `WHOLE`."""

    name: str
    batch_size: int
    macs_before: int
    """Multiply-adds of the batch."""
    macs_after: int
    seconds_before: float
    """Of one batch: the median of the turns."""
    seconds_after: float
    ratio: float
    """After / before: the median of the turns' own."""
    ratio_low: float
    """Lower quartile."""
    ratio_high: float
    """Upper quartile."""
    fastest: float
    """Fastest turn after / fastest turn before."""

    @property
    def verdict(self) -> Verdict:
        """Slower, faster or no difference, beyond the noise of the turns."""
        if min(self.ratio_low, self.fastest) > 1 + LEAST_DIFFERENCE:
            return Verdict.SLOWER
        return Verdict.FASTER if max(self.ratio_high, self.fastest) < 1 - LEAST_DIFFERENCE else Verdict.SAME

    @property
    def slower(self) -> bool:
        """Whether the replacement takes longer than what it replaces."""
        return self.verdict is Verdict.SLOWER


@dataclass(frozen=True, slots=True)
class Turns:
    """Seconds of one batch, turn by turn: before and after belong together."""

    before: tuple[float, ...]
    after: tuple[float, ...]

    def profile(self, name: str, batch_size: int, macs_before: int, macs_after: int) -> LayerProfile:
        """Return the profile of a layer that took these times."""
        low, middle, high = np.quantile(np.divide(self.after, self.before), [0.25, 0.5, 0.75]).tolist()
        medians = float(np.median(self.before)), float(np.median(self.after))
        fastest = min(self.after) / min(self.before)
        return LayerProfile(name, batch_size, macs_before, macs_after, *medians, middle, low, high, fastest)


@dataclass(frozen=True, slots=True)
class NetworkProfile:
    """Profiles of every replaced layer at every batch size, and of the whole network."""

    layers: tuple[LayerProfile, ...]
    whole: tuple[LayerProfile, ...]
    """The network itself; its multiply-adds are those of the layers that are counted, all others left out."""
    device: str
    threads: int
    """Of the processor, as torch used them."""

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Ascending."""
        return tuple(sorted({profile.batch_size for profile in self.whole}))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is slower than what it replaces, where, and what could be done: one sentence per layer."""
        names = dict.fromkeys(profile.name for profile in (*self.layers, *self.whole))
        sentences = (_warning(name, self.of(name)) for name in names)
        return tuple(sentence for sentence in sentences if sentence)

    @property
    def words(self) -> tuple[str, ...]:
        """The warnings, or that there are none."""
        return self.warnings or ("Beyond the noise of the turns nothing is slower than what it replaces.",)

    def of(self, name: str) -> tuple[LayerProfile, ...]:
        """Return the profiles of one layer, or of `WHOLE`, by batch size; raises InvalidInputError for other names."""
        profiles = [profile for profile in (*self.layers, *self.whole) if profile.name == name]
        if not profiles:
            known = ", ".join(dict.fromkeys(f"'{one.name}'" for one in self.layers)) or "none"
            raise InvalidInputError(f"layer '{name}': was not profiled, the replaced layers are {known}")
        return tuple(sorted(profiles, key=lambda profile: profile.batch_size))

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> NetworkProfile:
        """Return the profile that `dataclasses.asdict` turned into plain values, also after JSON."""
        parts = {key: tuple(LayerProfile(**one) for one in plain[key]) for key in ("layers", "whole")}
        return cls(**{**plain, **parts})


def macs_below(macs: Mapping[str, float], name: str) -> float:
    """Return the multiply-adds at `name`: of the layer, or of the parts of what replaces it."""
    return sum(count for layer, count in macs.items() if layer == name or layer.startswith(f"{name}."))


def _warning(name: str, profiles: Sequence[LayerProfile]) -> str:
    slower = [profile for profile in profiles if profile.slower]
    if not slower:
        return ""
    ratios = ", ".join(f"{profile.ratio:.2f} times the time at {profile.batch_size}" for profile in slower)
    where = f"{_at(profiles, slower)} ({ratios})"
    if name == WHOLE:
        return f"the whole compressed network is slower than the original {where}: see which layers are"
    more = "; it computes more, too" if slower[-1].macs_after >= slower[-1].macs_before else ""
    return f"layer '{name}': what replaces it is slower than the layer {where}{more}: {_REMEDY}"


def _at(profiles: Sequence[LayerProfile], slower: Sequence[LayerProfile]) -> str:
    """Name the batch sizes at which it is slower; "from 32 on" where that covers every larger one."""
    sizes = [profile.batch_size for profile in slower]
    if len(slower) == len(profiles):
        return "at every batch size measured"
    if len(sizes) > 1 and sizes == [profile.batch_size for profile in profiles][-len(sizes) :]:
        return f"from batch size {sizes[0]:,} on"
    return f"at batch size {' and '.join(f'{size:,}' for size in sizes)}"
