"""How a solution came about: the route that was taken, the ridge, and what the moments it came from were like."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Route(StrEnum):
    """How a problem was solved. Recorded in `Diagnostics.route`."""

    SVD = "svd"
    CHOLESKY = "cholesky"
    EIGEN = "eigen"
    OUTPUTS = "outputs"
    DUAL = "dual"
    ROOT = "root"
    GREEDY = "greedy"
    RANKING = "ranking"


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """What was decided on the way to a solution, and why. Plain values: `Diagnostics(**asdict(d))` gives it back."""

    count: int
    """Rows the moments came from; 0 where no moments were used."""
    samples: int
    """Samples those rows came from."""
    features: int
    """d"""
    numerical_rank: int | None
    """Of the weight (SVD), of the inputs' moments (published, optimal; None where Cholesky left it unknown), of the
    outputs' moments (anchored), of Sigma (greedy selections)."""
    ridge: float
    """The lambda that was used, absolute, on unnormalised sums."""
    route: str
    notes: tuple[str, ...] = ()
    ridge_sweep: tuple[tuple[float, float], ...] = ()
    """Relative ridges that were tried, ascending, each with its error on unseen rows; empty where none was chosen."""
    source: str = "inputs"
    """Whose moments: `inputs`, `outputs` (of the layer, alone), `cross` (inputs of one run, outputs of another)."""
    reason: str = ""
    """The rule that chose the route."""
    condition: float | None = None
    """Of the matrix that was factored or decomposed, with its ridge; an estimate where Cholesky did it."""
    psd_margin: float | None = None
    """Smallest eigenvalue over the trace of the moments that were factored (with the ridge's term for anchored): below
    0 by more than rounding where they are no sum of squares. None where only the largest were computed."""
    error: float | None = None
    """Squared error on the training moments at the largest rank held, plain, or of `weighted` in its metric."""
    error_bound: float | None = None
    """What no factors of that rank, of the same centres, can be below; see `LowRankFactors.error_bound`."""
    trace: float | None = None
    """tr(Sigma) for a row, of greedy selections."""
    energy: float | None = None
    """tr(M Sigma) for a row, of which their retention is a share; M is I unless a metric was asked for."""
    gradient_ridge: float | None = None
    """The gamma that was added to G = E[g g'], of `weighted`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(self.notes))
        object.__setattr__(self, "ridge_sweep", tuple((ridge, error) for ridge, error in self.ridge_sweep))

    @property
    def chosen_ridge(self) -> float | None:
        """The relative ridge that the sweep chose: of those with the least error the largest."""
        return max(self.ridge_sweep, key=lambda tried: (-tried[1], tried[0]))[0] if self.ridge_sweep else None

    @property
    def rows_per_feature(self) -> float:
        """n / d: below 1 the data leave directions undetermined."""
        return self.count / self.features
