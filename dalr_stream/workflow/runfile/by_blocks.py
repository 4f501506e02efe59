"""What a run file may not ask for where the network is run block by block, or where no moments are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dalr_stream.workflow.runfile.compress_section import OF_EACH_LAYER, Order

if TYPE_CHECKING:
    from dalr_stream.workflow.runfile.config import RunConfig


def sweeps(config: RunConfig) -> bool:
    """Tell whether blocks are solved and written in one sweep that keeps no moments."""
    return not config.accumulate.keep_moments


def require_by_blocks(config: RunConfig) -> None:
    """Raise ValueError, with what to change, where blocks are asked for together with what needs the network whole."""
    reasons = {
        "rows are folded as the blocks make them: set capture.keep_activations = false": (
            config.capture.keep_activations
        ),
        "gradients come from the end of the network: leave network.gradients out": bool(config.network.gradients),
        "heads need the network whole: ask for low-rank methods alone (solve.methods)": config.narrows,
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if config.network.blocks and reason is not None:
        raise ValueError(f"network.blocks: {reason}")
    if sweeps(config):
        _require_sweep(config)


def _require_sweep(config: RunConfig) -> None:
    """Raise ValueError where something else than one sweep over the blocks is asked for."""
    compress, evaluate, solve = config.compress, config.evaluate, config.solve
    sizes = compress.rule in OF_EACH_LAYER if compress.rule else bool(compress.layers)
    reasons = {
        "goes with a network that runs block by block from disk: set network.blocks and network.weights": (
            not config.network.blocks or config.network.weights is None
        ),
        f"needs sizes that each layer decides by itself: name layers in [compress], or give {_OR}": not sizes,
        'all layers are solved from the original network: leave out compress.order = "sequential"': (
            compress.order is Order.SEQUENTIAL
        ),
        "one domain goes through the blocks: leave out solve.source, solve.heldout and other domains": (
            solve.source is not None or solve.heldout is not None or len(config.domains) > 1
        ),
        "rows that choose a ridge are read again and again: state solve.ridge": solve.chooses_ridge,
        "error bars come from shards, which are moments: set accumulate.shards = 1": config.accumulate.shards > 1,
        "leave out accumulate.cross, which keeps moments": config.accumulate.cross is not None,
        "only the networks that are saved can be scored: set evaluate.ranks = [], and leave out evaluate.compare": (
            evaluate is not None and bool(evaluate.ranks or evaluate.compare)
        ),
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason is not None:
        raise ValueError(f"accumulate.keep_moments: false {reason}")


_OR = ", ".join(f"'{rule}'" for rule in OF_EACH_LAYER)
