"""Which samples show what compression does: those that its statistics have not seen, where there are any."""

from __future__ import annotations

from dataclasses import dataclass

from dalr_stream.network.measure.output_distance import OutputDistance
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.workflow.runfile.config import RunConfig
from dalr_stream.workflow.runfile.project import Project


@dataclass(frozen=True, slots=True)
class Unseen:
    """The samples of one domain that solutions are not fitted to, as far as there are any."""

    domain: str
    holdout: HoldoutRule | None
    """Those that it holds out count; None where all do."""

    @classmethod
    def measuring(cls, config: RunConfig) -> Unseen:
        """Return what says how good a network is: solve.heldout, or else what may decide as well."""
        named = config.solve.heldout
        return cls.deciding(config) if named is None else cls(named, None)

    @classmethod
    def deciding(cls, config: RunConfig) -> Unseen:
        """Return what networks may be chosen on: what is held out of the target, or all of it where nothing is.

        Never solve.heldout, which may be the test split.
        """
        holdout = config.holdout(config.solve.target)
        return cls(config.solve.target, holdout if holdout.share else None)

    def __str__(self) -> str:
        return f"samples {'of' if self.holdout is None else 'held out of'} '{self.domain}'"


def output_distance(project: Project) -> tuple[OutputDistance, str]:
    """Return the distance that candidates are measured by, and what samples it is of, in words.

    A target with so few samples that none is held out is measured whole.
    """
    section, unseen = project.config.compress, Unseen.deciding(project.config)
    distance = OutputDistance(
        project.recorded,
        project.code.batches(unseen.domain),
        samples=section.samples,
        holdout=unseen.holdout,
        rows=project.code.rows,
        distance=section.distance,
    )
    return distance, str(unseen if distance.held_out else Unseen(unseen.domain, None))
