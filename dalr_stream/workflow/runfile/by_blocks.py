"""What a run file may not ask for where the network is run block by block, or where no moments are kept."""

from __future__ import annotations

from collections.abc import Collection

from dalr_stream.numerics.methods import Family
from dalr_stream.workflow.runfile.compress_section import OF_EACH_LAYER, CompressSection, Order
from dalr_stream.workflow.runfile.labelled_sections import EvaluateSection
from dalr_stream.workflow.runfile.sections import AccumulateSection, CaptureSection, NetworkSection, SolveSection

_RULES = ", ".join(f"'{rule}'" for rule in OF_EACH_LAYER)


def require_by_blocks(network: NetworkSection, capture: CaptureSection, accumulate: AccumulateSection) -> None:
    """Raise ValueError, with what to change, where blocks are asked for together with what needs the network whole."""
    if network.blocks and capture.keep_activations:
        raise ValueError(
            "network.blocks: rows are folded as the blocks make them: set capture.keep_activations = false"
        )
    if not accumulate.keep_moments and (not network.blocks or network.weights is None):
        raise ValueError(
            "accumulate.keep_moments: false goes with a network that runs block by block from disk: set network.blocks "
            "and network.weights"
        )


def require_sweep(
    network: NetworkSection,
    accumulate: AccumulateSection,
    solve: SolveSection,
    compress: CompressSection,
    evaluate: EvaluateSection | None,
    domains: Collection[str],
) -> None:
    """Raise ValueError, with what to change, where no moments are kept and something is asked for that reads them."""
    sizes = compress.rule in OF_EACH_LAYER if compress.rule else bool(compress.layers)
    heads = _heads(solve)
    reasons = {
        f"needs sizes that each layer decides by itself: name layers in [compress], or give {_RULES}": not sizes,
        "with gradients a share of energy is one of what the loss feels of all layers: leave network.gradients out, or "
        "give another rule": compress.rule == "energy" and bool(network.gradients),
        'all layers are solved from the original network: leave out compress.order = "sequential"': (
            compress.order is Order.SEQUENTIAL
        ),
        "one domain goes through the blocks: leave out solve.source, solve.heldout and other domains": (
            solve.source is not None or solve.heldout is not None or len(domains) > 1
        ),
        f"heads are solved from the moments of four layers: leave {heads} out of solve.methods": bool(heads),
        "rows that choose a ridge are read again and again: state solve.ridge": solve.chooses_ridge,
        "error bars come from shards, which are moments: set accumulate.shards = 1": accumulate.shards > 1,
        "leave out accumulate.cross, which keeps moments": accumulate.cross is not None,
        "only the networks that are saved can be scored: set evaluate.ranks = [], and leave out evaluate.compare": (
            evaluate is not None and bool(evaluate.ranks or evaluate.compare)
        ),
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason is not None:
        raise ValueError(f"accumulate.keep_moments: false {reason}")


def _heads(solve: SolveSection) -> str:
    return ", ".join(f"'{method.value}'" for method in solve.methods if method.family is Family.HEADS)
