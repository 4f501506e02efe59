"""`watch`: which layers of a network to record, with all that compressing them will need, in one call.

Low rank needs what a layer reads, and that is `select_layers`. A selection of nodes needs more: which layers carry and
read the same channels, and what those readers read. Only a batch that goes through the network shows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from torch import nn

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.blocks.rehearsal import coupled_in_pieces
from dalr_stream.network.capture.wrapped import plain_network
from dalr_stream.network.layers.elsewhere import weights_elsewhere
from dalr_stream.network.layers.patterns import Pattern, listed
from dalr_stream.network.layers.spec import LayerSpec, select_layers
from dalr_stream.network.structure.attentions import attentions_among, with_heads
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.structure.readers import with_readers
from dalr_stream.network.structure.recorded import RecordedGroups
from dalr_stream.network.surgery.rehearsal import try_heads, try_selections
from dalr_stream.numerics.rows.streams import Side


@dataclass(frozen=True, slots=True)
class WatchedLayers(Sequence[LayerSpec]):
    """The layers that `watch` found: a sequence of `LayerSpec`, as `capture` and `accumulate` take it."""

    specs: tuple[LayerSpec, ...]
    structure: Structure | RecordedGroups | None = None
    """Which channels are coupled, for `compress(..., example=layers.structure)`; None without an example. Of a network
    from `open_network` what was found within its blocks, for `sizes` alone."""

    @overload
    def __getitem__(self, index: int) -> LayerSpec: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[LayerSpec, ...]: ...
    def __getitem__(self, index: int | slice) -> LayerSpec | tuple[LayerSpec, ...]:
        return self.specs[index]

    def __len__(self) -> int:
        return len(self.specs)

    def __iter__(self) -> Iterator[LayerSpec]:
        return iter(self.specs)

    @property
    def streams(self) -> tuple[str, ...]:
        """The names under which rows and moments are recorded, in order."""
        return tuple(spec.stream for spec in self.specs)


def watch(
    model: nn.Module,
    patterns: Iterable[Pattern],
    *,
    example: Any = None,
    outputs: Iterable[Pattern] = (),
    gradients: Iterable[Pattern] = (),
    heads: bool = False,
) -> WatchedLayers:
    r"""Return the layers to record so that those the patterns match can be compressed.

    Parameters
    ----------
    model
        The network; it is left as it is. One in `DistributedDataParallel` counts as the network inside, and the
        names of its layers have no `module.` before them.
    patterns
        Names, globs (`"features.*"`), regular expressions (`r"re:fc\d"`) or module classes, one or several.
    example
        A batch as `capture` takes it, or a `Structure` of `model`. With it, channels can be selected: each layer
        carries its group of coupled channels, or the reason why there is none (`unprunable`), and the readers of each
        group are watched too: the network was run without some of them, on a copy. Low rank needs no example. Of a
        network from `open_network`, channels are selected, and heads narrowed, within blocks; see `compress_into`.
    outputs
        Patterns of layers whose outputs are recorded as well, as `name@outputs`: targets for regression, and all that
        anchored DALR needs where a layer has many more inputs than outputs.
    gradients
        Patterns of layers for which the gradients of a loss by their outputs are recorded as well, as
        `name@gradients`. They need no labels, and a backward pass of each batch; `RowRule.gradients` says which.
    heads
        Find the attentions among the layers, of which all four are matched: each output layer then carries its heads,
        or the reason why they cannot get narrower (`no_heads`). Needs an example, and a few forward passes of a few of
        its samples for each layer.

    Returns
    -------
    WatchedLayers
        A sequence of `LayerSpec` in the network's order, readers, outputs and gradients after the layers themselves.

    Raises
    ------
    LayerNotFoundError
        For a pattern that matches no module, with the nearest names.
    UnsupportedLayerError
        For a pattern that matches only modules which cannot be compressed.
    InvalidInputError
        Where heads are asked for without an example.

    See Also
    --------
    dalr_stream.network.select_layers : the layers alone.
    unsupported_layers : what the patterns match besides, and why it cannot be compressed.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    >>> layers = ds.watch(model, ["0"], example=torch.randn(2, 4))
    >>> layers.streams
    ('0', '2')
    >>> layers[0].group.producers
    ('0',)

    Layer '2' is watched because it reads what '0' gives: a selection of the nodes of '0' is solved from its moments.

    Gradients beside inputs, of a network that gives class scores:

    >>> layers = ds.watch(model, ["0", "2"], gradients=["0", "2"])
    >>> statistics = ds.accumulate(model, [torch.randn(32, 4) for _ in range(4)], layers)
    >>> statistics["0"].gradients.second_moment.shape
    (8, 8)
    """
    model = plain_network(model)
    specs = select_layers(model, patterns)
    structure, groups = None, None
    if example is not None and weights_elsewhere(model) is not None:
        specs = coupled_in_pieces(model, specs, example, narrows=heads)
        groups = RecordedGroups(specs)
    elif example is not None:
        structure = example if isinstance(example, Structure) else Structure.of(model, example)
        specs = with_selections(specs, structure)
    if heads and example is None:
        raise InvalidInputError("watch: which layers are an attention shows when a batch goes through: give example=")
    if heads and structure is not None:
        specs = with_narrower_heads(specs, structure)
    for side, given in ((Side.OUTPUTS, outputs), (Side.GRADIENTS, gradients)):
        wanted = listed(given)
        if wanted:
            specs += select_layers(model, wanted, side=side)
    return WatchedLayers(specs, structure or groups)


def with_selections(layers: Sequence[LayerSpec], structure: Structure) -> tuple[LayerSpec, ...]:
    """Return what `with_readers` does, where each group was tried: the network runs without some of its channels."""
    try_selections(structure, [layer.name for layer in layers])
    return with_readers(layers, structure)


def with_narrower_heads(layers: Sequence[LayerSpec], structure: Structure) -> tuple[LayerSpec, ...]:
    """Return the layers, each with the attention whose output layer it is; that was tried with narrower heads."""
    return with_heads(layers, try_heads(structure, attentions_among(layers, structure)))
