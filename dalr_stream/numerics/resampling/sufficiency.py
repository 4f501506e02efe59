"""Is the calibration set large enough? A rule, and its answer in words.

Fitting makes the error on the training rows too small by about as much as it makes the error on other rows too large,
and both by an amount that falls as 1 / n (Akaike 1970; Hastie, Tibshirani and Friedman, 7.4). In squares, with E
the error that unlimited data of this kind would attain,

    training(n) = E - c / n,      unseen(n) = E + c / n,      unseen without a shard = E + c / n'

so training and leave-one-shard-out errors give c and E. The set is large enough where, at every rank that saves
parameters, unlimited data would lower the error on unseen rows by at most `TOLERATED_SHARE` of it, or by at most
`TOLERATED_ERROR` of the outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.resampling.jackknife import LowRankJackknife

TOLERATED_SHARE = 0.05
"""Of the error on unseen rows: a twentieth of it is less than one rank makes at most sizes."""
TOLERATED_ERROR = 0.005
"""Of ||Y - b||: half a per cent of the outputs moves no prediction to speak of, however small the error is."""


@dataclass(frozen=True, slots=True)
class Sufficiency:
    """Whether there are enough samples, judged at the rank where more of them would help most."""

    enough: bool
    rank: int
    largest_rank: int
    """Ranks 1 to this one were judged."""
    rows: int
    training: float
    """Relative error on the training rows, ||Y - Yhat|| / ||Y - b||; so are the next four."""
    unseen: float
    """On unseen rows, of a solution from all n rows: estimated."""
    unseen_error: float
    """Its standard error, from leaving out shards."""
    doubled: float
    """On unseen rows, with twice the data: estimated."""
    unlimited: float
    """With unlimited data: estimated."""

    @property
    def words(self) -> str:
        """The answer, for a reader."""
        verdict = "large enough" if self.enough else "too small"
        numbers = (
            f"at rank {self.rank}, where more data would help most, the error is {self.training:.3f} on the "
            f"{self.rows:,} training rows and {self.unseen:.3f} \N{PLUS-MINUS SIGN} {self.unseen_error:.3f} on unseen "
            f"ones; twice the data would bring that to about {self.doubled:.3f}, unlimited data to {self.unlimited:.3f}"
        )
        return f"The calibration set is {verdict} for ranks up to {self.largest_rank}: {numbers}."


RULE = (
    f"Large enough: unlimited data would lower the error on unseen rows by at most {TOLERATED_SHARE:.0%} of it, or by "
    f"at most {TOLERATED_ERROR:g} of the outputs, at every rank that saves parameters. Estimated from the error on the "
    "training rows and on shards left out, both of which approach what unlimited data would give as 1 / n."
)
"""The rule in words."""


def sufficiency(jackknife: LowRankJackknife, largest_rank: int) -> Sufficiency:
    """Judge whether the samples are enough, at ranks 1 to `largest_rank`.

    Parameters
    ----------
    jackknife
        From `jackknife_low_rank`.
    largest_rank
        The last rank that matters, such as the break-even rank.

    Returns
    -------
    Sufficiency
        `.enough`, the rank that decides, and the errors expected with twice the samples and with any number of them.

    Raises
    ------
    InvalidInputError
        Where that is not a rank of the solution.

    See Also
    --------
    jackknife_low_rank : what it judges by.

    Examples
    --------
    >>> import numpy as np, dalr_stream as ds
    >>> rng = np.random.default_rng(0)
    >>> weight, shards = rng.normal(size=(10, 6)), [ds.Moments.of(rng.normal(size=(500, 6))) for _ in range(4)]
    >>> jackknife = ds.numerics.jackknife_low_rank(shards, lambda moments: ds.dalr(weight, None, moments))
    >>> ds.numerics.sufficiency(jackknife, largest_rank=3).enough
    True
    """
    if not 1 <= largest_rank < jackknife.training.size:
        raise InvalidInputError(f"largest_rank must lie in 1..{jackknife.training.size - 1}, got {largest_rank}")
    ranks = slice(1, largest_rank + 1)
    training = jackknife.training[ranks] ** 2
    gap = np.maximum(jackknife.unseen[ranks] ** 2 - training, 0.0)
    c = gap / (1.0 + jackknife.samples_ratio)  # c / n of the module's opening
    unseen, doubled, unlimited = (np.sqrt(training + more * c) for more in (2.0, 1.5, 1.0))
    excess = (unseen - unlimited) / np.maximum(TOLERATED_SHARE * unseen, TOLERATED_ERROR)
    worst = int(np.argmax(excess))
    return Sufficiency(
        enough=bool(excess[worst] <= 1.0),
        rank=worst + 1,
        largest_rank=largest_rank,
        rows=int(jackknife.counts.sum()),
        training=float(np.sqrt(training[worst])),
        unseen=float(unseen[worst]),
        unseen_error=float(jackknife.unseen_error[ranks][worst]),
        doubled=float(doubled[worst]),
        unlimited=float(unlimited[worst]),
    )
