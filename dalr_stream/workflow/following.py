"""What the other ranks of a run do: their part of each step that runs the network over a domain, and nothing else.

Rank 0 has the run's folder, and decides which steps are stale. Another rank needs the run file, the Python and the data
that it names, and the network's weights; it writes nothing.
"""

from __future__ import annotations

from dalr_stream.engine.ranks.ranks import Ranks
from dalr_stream.progress import Silent
from dalr_stream.streaming.ranks.link import tell
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.accumulate import VERB as ACCUMULATE
from dalr_stream.workflow.steps.accumulate import fold_domain
from dalr_stream.workflow.steps.blocks.sweep import VERB as SWEEP
from dalr_stream.workflow.steps.blocks.sweep import share_in_sweep
from dalr_stream.workflow.steps.capture import VERB as CAPTURE
from dalr_stream.workflow.steps.capture import capture_domain

_SHARES = {CAPTURE: capture_domain, ACCUMULATE: fold_domain, SWEEP: share_in_sweep}


def follow(project: Project, ranks: Ranks) -> None:
    """Take part in what rank 0 announces, until it is done."""
    while told := tell(ranks, None):
        _SHARES[told["verb"]](project, told["domain"], Silent(), ranks)


def dismiss(ranks: Ranks) -> None:
    """Tell the other ranks that nothing is left to do."""
    tell(ranks, {})
