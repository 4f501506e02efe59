"""Network and data to moments in one pass, with no activations kept.

The rows take the same tiles and lanes as on the way through a store, so the moments are the same to the bit. Given a
store, the moments are kept there and a run that was killed goes on from its last checkpoint; under a memory limit the
layers are done in groups, each in a pass of its own through the network. Where torch folds (`Folding.device`),
activations stay on that device from the hook to the sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import nn

from dalr_stream.network.capture import capture_rows
from dalr_stream.network.layers import LayerSpec
from dalr_stream.numerics.folding import SplitMoments
from dalr_stream.storage.activations import open_writer
from dalr_stream.storage.manifest import digest_of
from dalr_stream.storage.unfinished import Unfinished
from dalr_stream.streaming.accumulate import Folding
from dalr_stream.streaming.plan import LayerLoad, plan
from dalr_stream.workflow.accumulate import LayerMoments, save_split
from dalr_stream.workflow.capture import keep_weights, network_record
from dalr_stream.workflow.fold_sink import FoldSink
from dalr_stream.workflow.progress import Progress, Silent


def accumulate_stream(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    *,
    folding: Folding | None = None,
    progress: Progress | None = None,
) -> LayerMoments:
    """Return the moments of the inputs of `layers`, by layer, folding rows as the network makes them.

    Nothing is written, so nothing can be resumed: for runs of hours see `accumulate_into`. Memory: every layer's lanes
    at once, see `streaming.plan`; under a memory limit the layers are done in groups, a pass each.

    Raises as `capture` does, and MemoryLimitError with the alternatives where one layer alone does not fit.
    """
    folding, progress = folding or Folding(), progress or Silent()
    found: dict[str, SplitMoments] = {}
    for group in _groups(layers, folding):
        with ThreadPoolExecutor(folding.threads.workers) as executor:
            sink = FoldSink(folding, executor)
            _pass(model, batches, group, sink, progress)
            found |= dict(sink.freeze())
    return LayerMoments.of({layer.name: found[layer.name] for layer in layers})


def accumulate_into(
    store: str | Path,
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    *,
    domain: str,
    folding: Folding | None = None,
    progress: Progress | None = None,
) -> LayerMoments:
    """Do what `accumulate_stream` does, keep moments and weights in a store, and resume there after a kill.

    Batches before the last checkpoint are compared by digest and not run again. Raises as `accumulate_stream` does,
    FingerprintMismatchError where the store came from another network or the batches changed since the checkpoint.
    """
    root = Path(store)
    folding, progress = folding or Folding(), progress or Silent()
    network = network_record(model, layers)
    groups = _groups(layers, folding)
    with open_writer(root, domain, network):
        keep_weights(model, layers, root)
        folds = []
        for number, group in enumerate(groups):
            names = [layer.name for layer in group]
            made_from = {"network": network.fingerprint, "rule": folding.facts, "layers": names}
            folds.append(Unfinished(root, domain, f"@direct-{number}", made_from))
            with ThreadPoolExecutor(folding.threads.workers) as executor:
                sink = FoldSink(folding, executor, unfinished=folds[-1])
                if sink.ended:
                    continue
                if sink.batches:
                    progress.note(f"domain '{domain}': resuming after {len(sink.batches)} folded batches")
                _pass(model, batches, group, sink, progress)
                rows = f"direct:{digest_of([batch.digest for batch in sink.batches])}"
                for name, split in sink.freeze():
                    facts = {"network": network.fingerprint, "rows": rows, "rule": folding.facts}
                    save_split(root, domain, name, split, facts)
                sink.keep_end()
        for unfinished in folds:
            unfinished.drop()
    return LayerMoments.stored(root, domain, [layer.name for layer in layers])


def _groups(layers: Sequence[LayerSpec], folding: Folding) -> list[list[LayerSpec]]:
    """Part the layers into passes that fit."""
    cost = plan(
        [LayerLoad(layer.name, layer.inputs, 0, outputs=layer.outputs) for layer in layers],
        threads=folding.threads.workers,
        heldout_share=folding.holdout.share,
        direct=True,
        memory_limit_bytes=folding.memory_limit_bytes,
    )
    cost.require()
    by_name = {layer.name: layer for layer in layers}
    return [[by_name[name] for name in group] for group in cost.groups]


def _pass(
    model: nn.Module, batches: Iterable[Any], layers: Sequence[LayerSpec], sink: FoldSink, progress: Progress
) -> None:
    total = len(batches) if isinstance(batches, Sized) else None
    with progress.track("capture and fold", total, "batches") as advance:
        capture_rows(
            model,
            batches,
            layers,
            sink,
            batch_done=lambda _samples, _spared: advance(1),
            to_rows=sink.engine.to_rows,
        )
