"""The verb `accumulate`: a network and its data, or a store's rows, to the statistics of every watched layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast, overload

from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.engine.statistics import Statistics
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import InvalidInputError
from dalr_stream.progress import Progress
from dalr_stream.storage.places.place import Place, place_of
from dalr_stream.streaming.folding import Folding

if TYPE_CHECKING:
    from torch import nn

    from dalr_stream.engine.ranks.ranks import Ranks
    from dalr_stream.network.blocks.passes import Blocks
    from dalr_stream.network.capture.row_rule import RowRule
    from dalr_stream.network.layers.spec import LayerSpec


@overload
def accumulate(
    source: str | Place,
    *,
    domain: str = "target",
    layers: Sequence[str] | None = None,
    folding: Folding | None = None,
    progress: Progress | None = None,
) -> Statistics: ...
@overload
def accumulate(
    source: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    *,
    store: str | Place | None = None,
    domain: str = "target",
    rows: RowRule | None = None,
    folding: Folding | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
    blocks: Blocks | None = None,
) -> Statistics: ...
def accumulate(  # noqa: PLR0913  # one verb for both of its sources
    source: str | Place | nn.Module,
    batches: Iterable[Any] | None = None,
    layers: Sequence[LayerSpec] | Sequence[str] | None = None,
    *,
    store: str | Place | None = None,
    domain: str = "target",
    rows: RowRule | None = None,
    folding: Folding | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
    blocks: Blocks | None = None,
) -> Statistics:
    """Return the statistics of every watched layer, from a network and its batches or from a store that has its rows.

    The same rows give the same bits: from a network or a store, in any batches, by any number of workers, interrupted
    or not.

    Parameters
    ----------
    source
        A network in eval mode; or the path of a store that `capture` made, or its URL in a bucket, which needs neither
        network nor torch.
    batches
        What the network is run on: any iterable of batches. Under a memory limit that needs several passes, one that
        can be iterated again.
    layers
        Of a network, what to record: from `watch`. Of a store, the streams to accumulate; all by default.
    store
        Keep the moments and the weights there, and resume there after a kill: batches before the last checkpoint are
        compared by digest and not run again. By default nothing is kept or written.
    domain
        The name under which a store keeps them.
    rows
        Which rows of each layer count; all by default. A store's were chosen at capture.
    folding
        Held-out share, shards, threads or cluster, memory limit, precision, device.
    progress
        Receives progress, for example from `show_progress()`; silent by default.
    ranks
        The processes of this job, from `open_ranks`: each runs the network on its share of the batches and folds their
        rows, by `Folding.segment_batches`, or those of all batches into its share of the sums. Rank 0 alone has the
        statistics and the store; the others get those of no layer.
    blocks
        Run the network block by block, what each block gives in the store until the next one has read it, or with
        gradients until the way back: True finds the blocks, or the names of the `nn.ModuleList`s or `nn.Sequential`s
        that they are members of. Needs a store, which all ranks see where there are several, and batches that can be
        iterated again. A network from `open_network` is always run so, one block in memory.

    Returns
    -------
    Statistics
        Layers by name, each with its weights and moments: `dalr(statistics["fc1"])`. Records in a store are read when
        they are asked for.

    Raises
    ------
    InvalidInputError
        For arguments that belong to the other source, and as `capture` does.
    MemoryLimitError
        Where one layer alone does not fit; the message gives the alternatives.
    FingerprintMismatchError
        Where the store came from another network, the domain from other rows, or the batches have changed since.
    StoreNotFoundError, StoreDamagedError, StoreLockedError, StoreError
        For a store that is missing, damaged or held by another process, or a domain whose capture is unfinished.

    See Also
    --------
    capture : keeps the rows themselves.
    accumulate_cross : moments of two networks at once.

    Notes
    -----
    Memory: every layer's lanes at once from a network, one layer's from a store; `dalr-stream estimate` says how much.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
    >>> batches = [torch.randn(32, 6) for _ in range(4)]
    >>> statistics = ds.accumulate(model, batches, ds.watch(model, ["0", "2"]))
    >>> statistics
    Statistics of 0, 2
    >>> statistics["2"].inputs.features
    12
    >>> statistics["2"].inputs.count + statistics["2"].heldout.count  # a tenth of the samples is held out
    128
    """
    if isinstance(source, str | Place):
        given = {"batches": batches, "store": store, "rows": rows, "ranks": ranks, "blocks": blocks}
        if foreign := [name for name, value in given.items() if value is not None]:
            raise InvalidInputError(
                f"accumulate: '{source}' is a store, and {' and '.join(foreign)} can only be given with a network"
            )
        streams = cast("Sequence[str] | None", layers)
        return _from_store(place_of(source), domain, streams, folding, progress)
    if batches is None or layers is None:
        raise InvalidInputError("accumulate: a network needs its batches, and the layers from watch(model, patterns)")
    from dalr_stream.engine.direct import from_network  # imports torch, which a store does without

    specs = cast("Sequence[LayerSpec]", layers)
    return from_network(
        source,
        batches,
        specs,
        store,
        domain=domain,
        rows=rows,
        folding=folding,
        progress=progress,
        ranks=ranks,
        blocks=blocks,
    )


def _from_store(
    root: Place, domain: str, streams: Sequence[str] | None, folding: Folding | None, progress: Progress | None
) -> Statistics:
    moments = accumulate_stored(root, domain=domain, layers=streams, folding=folding, progress=progress)
    return replace(StoreView.open(root).statistics(domain), by_stream=moments)
