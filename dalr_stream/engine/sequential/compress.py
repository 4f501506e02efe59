"""Layer after layer: each is solved on what it reads in the already compressed network, towards the original's outputs.

    for the layers in the order in which a forward pass calls them:
        low rank     X from the network as compressed so far, Z from the original: cross moments
        selection    the nodes as their readers read them in the network as compressed so far, restored towards what
                     they read in the original: cross moments
        heads        narrower by what the layers of their attention read in the network as compressed so far; then the
                     output layer on what it reads of them, towards what it gives in the original: cross moments
        put it in place

Compressed all at once (`compress`), every layer is solved for inputs that it no longer gets. Here each makes up, as far
as its rank allows, for what the layers before it lost. The price is a pass over the data for each layer, two networks a
pass; neighbours that read the very same tensor (Q, K and V) share one. A pass goes on from where the one before left
both networks, so that each layer is run about once in either (`onward_passes`).

A layer's own weight at its turn is that of the network as compressed so far: where an earlier selection narrowed its
inputs to J, that is W A_J, and what `anchored` shrinks towards. Its target is the original's output all the same. A
selection's order follows from the nodes of the network as compressed so far, its A_J from those of both (`restoring`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from dalr_stream.engine.sequential.blocks.compress import compress_by_blocks
from dalr_stream.engine.sequential.layer_choice import LayerChoice
from dalr_stream.engine.sequential.passes import SequentialCompression, last_of, sequential_passes
from dalr_stream.engine.sequential.targets import Target
from dalr_stream.network.blocks.passes import Blocks
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.elsewhere import weights_elsewhere
from dalr_stream.progress import Progress
from dalr_stream.storage.places.place import Place
from dalr_stream.streaming.folding import Folding


def compress_sequentially(  # noqa: PLR0913  # what is compressed, how, and where its moments are kept
    model: nn.Module,
    batches: Iterable[Any],
    choices: Mapping[str, LayerChoice],
    *,
    target: Target | str = Target.OUTPUTS,
    source: Iterable[Any] | None = None,
    store: str | Place | None = None,
    rows: RowRule | None = None,
    folding: Folding | None = None,
    progress: Progress | None = None,
    blocks: Blocks | None = None,
) -> SequentialCompression:
    """Return a copy of `model` with the named layers compressed one after the other, and what each step lost.

    Each layer is solved on what it reads in the network as compressed so far, towards its outputs in the original. The
    first layers read what they read in the original, so theirs are the solutions of `dalr` on the moments of their
    inputs, to the bit.

    Parameters
    ----------
    model
        In eval mode; left as it is.
    batches
        Of the target domain, as for `accumulate`; every pass must see the same batches in the same order, which is
        checked.
    choices
        Layer name -> `LayerChoice(method, size)`, in any order: low rank on some layers, selections on others, heads
        under the output layers of their attentions. Every low-rank method takes cross moments; truncated SVD needs
        none, and its pass only measures its error.
    target
        Towards what layers are solved: "outputs", what each gives in the original; or "stream", where what it gives is
        added to a residual stream, besides towards what that stream has lost by then. A selection whose nodes such a
        layer reads has that layer solved. Other layers keep their outputs as target, which is said with the reason.
    source
        Batches of the source domain, where MoMaSP is among the methods.
    store
        A folder, or a URL in a bucket, where each pass keeps its moments, and resumes after a kill. Compressing again
        at other sizes, ridges or methods, passes whose layers read the same as before start from there: the batches are
        loaded once and compared, and no network is run. When all layers are done, moments of earlier sequences are
        removed.
    blocks
        Compress block by block, one block in memory at a time and what the blocks of both networks give in `store`:
        True finds the blocks, or the names of the `nn.ModuleList`s or `nn.Sequential`s that they are members of. One
        sweep: a block is solved, and what it gives goes on to the next. A network from `open_network` is always
        compressed so, and the result reads its compressed blocks from `store`. Selections and heads stay within one.
    rows, folding
        As for `accumulate_cross`: the rows of both networks are chosen by the same rule and seed. The held-out share
        measures errors, and no solution is fitted to it.
    progress
        Receives progress; the number of passes is announced before the first.

    Returns
    -------
    SequentialCompression
        `.network`, the compressed copy, and `.layers`, the outcome of each layer in order.

    Raises
    ------
    LayerNotFoundError, UnsupportedLayerError
        Before any pass: a layer of no known kind, not called exactly once, or whose nodes cannot be pruned, or heads
        narrowed; or no layer that writes into a stream, where streams are the target.
    RankError
        Before any pass, for a size that a layer does not have; in a pass, where a selection left a later layer fewer
        inputs than its rank.
    InvalidInputError
        Before any pass: a network in train mode, batches that allow one pass only, no source, or shards.
    FingerprintMismatchError
        In a pass, where the batches changed; otherwise as `accumulate_cross` raises.
    DiskSpaceError
        Before any pass, where what blocks give, and their moments, do not fit.

    See Also
    --------
    compress : all layers at once.

    Notes
    -----
    Cost: one pass for each layer, through what lies between it and the layer before in both networks; layers that read
    the same tensor share one, and heads take two. Memory: three networks; the lanes of a pass's layers,
    d + min(d, m) wide each, for a selection twice as wide as what reads its nodes; and what is kept between the passes,
    `KEPT_BYTES` or what the memory limit leaves. Block by block, one run more through each block of both networks, and
    a block in the place of the networks.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
    >>> batches = [torch.randn(32, 6) for _ in range(4)]
    >>> choice = ds.LayerChoice("dalr_anchored_affine", size=2)
    >>> result = ds.compress_sequentially(model, batches, {"0": choice, "2": choice})
    >>> result.passes
    (('0',), ('2',))
    >>> result.network[2][0].out_features
    2
    """
    if blocks or weights_elsewhere(model) is not None:
        return compress_by_blocks(
            model,
            batches,
            choices,
            blocks=blocks or True,
            target=target,
            source=source,
            store=store,
            rows=rows,
            folding=folding,
            progress=progress,
        )
    passes = sequential_passes(
        model,
        batches,
        choices,
        target=target,
        source=source,
        store=store,
        rows=rows,
        folding=folding,
        progress=progress,
    )
    return last_of(passes)
