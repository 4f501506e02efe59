"""Which samples show what compression does: those that its statistics have not seen, where there are any."""

from __future__ import annotations

from dataclasses import dataclass

from dalr_stream.network.measure.output_distance import OutputDistance
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.workflow.runfile.config import RunConfig
from dalr_stream.workflow.runfile.project import Project


@dataclass(frozen=True, slots=True)
class Unseen:
    """The samples of one domain that solutions are not fitted to."""

    domain: str
    holdout: HoldoutRule | None
    """Those that it holds out count; None where all do."""

    @classmethod
    def of(cls, config: RunConfig) -> Unseen:
        """Return solve.heldout, or what is held out of the target; all of the target where nothing is."""
        section, holdout = config.solve, config.holdout(config.solve.target)
        if section.heldout is not None:
            return cls(section.heldout, None)
        return cls(section.target, holdout if holdout.share else None)

    def __str__(self) -> str:
        return f"samples {'of' if self.holdout is None else 'held out of'} '{self.domain}'"


def output_distance(project: Project) -> tuple[OutputDistance, str]:
    """Return the distance that candidates are measured by, and what samples it is of, in words.

    A target with so few samples that none is held out is measured whole.
    """
    section, unseen = project.config.compress, Unseen.of(project.config)
    distance = OutputDistance(
        project.network,
        project.code.batches(unseen.domain),
        samples=section.samples,
        holdout=unseen.holdout,
        rows=project.code.rows,
        distance=section.distance,
    )
    return distance, str(unseen if distance.held_out else Unseen(unseen.domain, None))
