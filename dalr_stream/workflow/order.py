"""The steps of a run, in order: the one list that running, skipping, dry runs and single commands go through.

    train -> capture -> accumulate -> solve -> compress -> finetune -> evaluate -> report

A new step is a module in `steps`, and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dalr_stream.workflow.results import report
from dalr_stream.workflow.steps import accumulate, capture, compress, cross, evaluate, finetune, solve, train
from dalr_stream.workflow.steps.session import Session
from dalr_stream.workflow.steps.step import Step

ORDER: tuple[Callable[[Session], Iterable[Step]], ...] = (
    train.steps,
    capture.steps,
    accumulate.steps,
    cross.steps,
    solve.steps,
    compress.steps,
    finetune.steps,
    evaluate.steps,
    report.steps,
)


def steps_of(session: Session) -> tuple[Step, ...]:
    """Return the steps that the run file asks for, each after all that it needs."""
    return tuple(step for steps in ORDER for step in steps(session))
