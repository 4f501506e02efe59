"""What a run file may not ask for where the network is run block by block."""

from __future__ import annotations

from dalr_stream.workflow.runfile.sections import CaptureSection, NetworkSection


def require_by_blocks(network: NetworkSection, capture: CaptureSection, *, narrows: bool) -> None:
    """Raise ValueError, with what to change, where blocks are asked for together with what needs the network whole."""
    reasons = {
        "rows are folded as the blocks make them: set capture.keep_activations = false": capture.keep_activations,
        "gradients come from the end of the network: leave network.gradients out": bool(network.gradients),
        "heads need the network whole: ask for low-rank methods alone (solve.methods)": narrows,
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if network.blocks and reason is not None:
        raise ValueError(f"network.blocks: {reason}")
