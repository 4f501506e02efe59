"""One pass through two networks: what each layer reads in the compressed one, and gives in the original.

Layers compressed one after the other, or together, no longer read what they read in the original. Their targets stay:
the original's outputs. So each batch runs through both, and the rows [x | z] take the same tiles and lanes as any
others: held out, in shards, within a memory limit, kept in a store, resumed and merged as moments of one network are.

All of X X', Z X' and Z Z' are summed, as one symmetric product of width d + m. Leaving out Z Z', of which most methods
read the trace alone, would take 60 % off the product where m = 4 d, a quarter where m = d and nothing where m < d; but
`published` reads it, and moments that are kept are there for methods that are chosen later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from dalr_stream.engine.cross.cost import PairMemory, pair_load
from dalr_stream.engine.cross.layer_cross import LayerCrossMoments
from dalr_stream.engine.cross.paired_rows import PairedRows, as_it_is
from dalr_stream.engine.fold_passes import direct_plan, fold_in_memory, fold_into, kept_record
from dalr_stream.engine.layer_moments import LayerMoments
from dalr_stream.network.capture.hooks import batch_identities
from dalr_stream.network.capture.passes import require_repeatable
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.spec import LayerSpec
from dalr_stream.progress import Progress, Silent
from dalr_stream.storage.batches import Batches, BatchRecord
from dalr_stream.storage.places.place import Place, place_of
from dalr_stream.streaming.folding import Folding
from dalr_stream.streaming.plan import MemoryPlan


def accumulate_cross(  # noqa: PLR0913  # those of accumulate, and a second network
    original: nn.Module,
    compressed: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    *,
    store: str | Place | None = None,
    domain: str = "target",
    rows: RowRule | None = None,
    folding: Folding | None = None,
    progress: Progress | None = None,
) -> LayerCrossMoments:
    """Return, by layer, the moments of its inputs in `compressed` and its outputs in `original`, row for row.

    Outputs include the layer's bias b: means and sums about zero do too, and `cross_scatter_about(c, b)` and
    `outputs.scatter_about(b)` give those of y - b.

    Parameters
    ----------
    original, compressed
        The two networks, in eval mode; each batch runs through both.
    batches, rows, folding, progress
        As for `accumulate`. Of a convolution the same positions are taken in both networks.
    layers
        Those that both networks have by that name; in the compressed one they may read fewer features.
    store
        Keep the moments and the compressed network's weights there, and resume there after a kill. Moments that lie
        there already, of the same networks, rows and batches, are used again: the batches are loaded and compared, and
        neither network is run. It must be a store of this pair of networks; stores of one pair can be merged.
    domain
        The name under which the store keeps them.

    Returns
    -------
    LayerCrossMoments
        `CrossMoments` by layer; `.heldout` has those of the held-out rows.

    Raises
    ------
    InvalidInputError
        Where a layer's outputs differ in number between the networks, and as `accumulate` does.
    FingerprintMismatchError
        Where the store is of another pair of networks.

    See Also
    --------
    accumulate_cross_stored : the same, from two stores that have the rows.
    compress_sequentially : solves layer after layer on such moments.

    Notes
    -----
    Memory: every layer's lanes at once, of width d + m each; under a memory limit, one group of layers at a time.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
    >>> batches = [torch.randn(32, 6) for _ in range(4)]
    >>> statistics = ds.accumulate(model, batches, ds.watch(model, ["0"]))
    >>> small = ds.compress(model, {"0": ds.dalr(statistics["0"]).at_rank(2)})
    >>> moments = ds.accumulate_cross(model, small, batches, ds.watch(model, ["2"]))["2"]
    >>> moments.inputs.features, moments.outputs.features
    (12, 3)
    """
    feed = PairedRows.of_outputs(original, compressed, batches, layers, rows)
    folding, progress = folding or Folding(), progress or Silent()
    if store is None:
        return feed.view(LayerMoments.of(fold_in_memory(feed, folding, progress)))
    root, network = place_of(store), feed.network()
    kept = kept_record(root, domain, feed, network, folding)
    if kept is not None and kept.batches == known_batches(batches, feed.rule):
        progress.note(f"cross moments on '{domain}' are up to date")
        return feed.stored(root, domain, folding)
    feed.require_own_store(root, network)
    fold_into(root, domain, feed, network, folding, progress)
    return feed.stored(root, domain, folding)


def estimate_cross(
    compressed: nn.Module,
    layers: Sequence[LayerSpec],
    *,
    rows: int = 0,
    folding: Folding | None = None,
    batch: PairMemory | None = None,
) -> MemoryPlan:
    """Return memory, disk and passes of `accumulate_cross`, `rows` rows of each layer: arithmetic alone.

    `batch` is what one takes, where that was looked at.

    The limit of `folding` parts the layers into passes, `MemoryPlan.groups`; `require` refuses what fits in none.
    """
    loads = [pair_load(as_it_is(compressed, layer), rows, batch) for layer in layers]
    return direct_plan(loads, folding or Folding(), 0 if batch is None else batch.forward_bytes)


def known_batches(batches: Iterable[Any], rule: RowRule) -> Batches:
    """Load the batches and return what identifies each; no network is run."""
    require_repeatable(batches, "batches")
    return Batches.of(BatchRecord(samples, digest) for samples, digest in batch_identities(batches, rule))
