"""A network compressed piece by piece and written as it goes: neither it nor what it becomes is in memory whole.

    for each piece      what takes its layers' places is asked for, one layer at a time
                        the weights that stay as they are are read, the piece is written as a shard and given up
    at the end          the index, the plan and the rest, and the folder takes its place

The numbers are those of `compress` and `save`, to the bit. Weights of layers that are replaced are not read for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.blocks.alone import AlonePieces
from dalr_stream.network.blocks.changed_piece import changed
from dalr_stream.network.blocks.pieces import Pieces
from dalr_stream.network.layers.identity import tensor_digest
from dalr_stream.network.layers.kinds import matrix_of
from dalr_stream.network.layers.obstacles import require_replaceable
from dalr_stream.network.layers.spec import layer_of
from dalr_stream.network.saved.checkpoint import require_own
from dalr_stream.network.saved.shard_writer import REST, ShardWriter, shard_writer
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.surgery.compress import PLAN_ATTRIBUTE, by_module, split
from dalr_stream.network.surgery.holders import modules_by_name, replaced_modules, require_released
from dalr_stream.network.surgery.plan import SplitLayer, Step
from dalr_stream.numerics.heads.narrowed import NarrowedHeads
from dalr_stream.numerics.lowrank.factors import LowRankLayer
from dalr_stream.numerics.lowrank.grouped import GroupedPair
from dalr_stream.numerics.rows.streams import module_name
from dalr_stream.numerics.selection.nodes import SelectedNodes
from dalr_stream.progress import Progress, Silent
from dalr_stream.storage.json_record import digest_of

Pair = LowRankLayer | GroupedPair
Given = Pair | SelectedNodes | NarrowedHeads
Replacements = Mapping[str, Given | Callable[[], Given | None]]


def compress_into(  # noqa: PLR0913  # each is a word of the sentence that the caller writes
    model: nn.Module,
    replacements: Replacements,
    folder: str | Path,
    *,
    example: Any = None,
    provenance: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
    made_from: str | None = None,
    last_first: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Compress a network piece by piece into `folder`, where `load` and `open_network` find it.

    What `compress` and `save` do together, with one block in memory at most. The folder's weights are a safetensors
    file for each block and for each module beside the blocks, with an index as transformers writes it.

    Parameters
    ----------
    model
        From `open_network`; one that is in memory may go the same way. Left as it is.
    replacements
        Layer name -> `factors.at_rank(k)`, or `at_size(k)` of heads, and of a selection where all that its channels
        reach lies in one block; or a function without arguments that gives it, or None to leave the layer as it is. A
        function is called when the turn of its layer has come, and what it gives is not kept: so no more than one
        layer's factors are there, or one block's selections and heads.
    folder
        A new folder, or one that holds a saved network, which stays there until the new one is whole.
    example
        A batch as `capture` takes it. Selections and heads need it, as in `compress`; and where it is given, it is
        proved of each block that is compressed that it computes the same between its layers as before.
    provenance
        Any JSON-like mapping to keep and to show on the card; or a function that gives it in the end.
    made_from
        Whatever decides the replacements, in words of yours: the same words go on where a call that was killed
        stopped. Without them the next call begins anew; either ends with the same bytes.
    last_first
        Begin with the last piece: for `statistics_by_block` with gradients, which come from the end of the network.
    progress
        Receives progress, for example from `show_progress()`; silent by default.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InvalidInputError
        For a selection or heads without an example, a replacement of another shape than its layer, or a folder of other
        things.
    LayerNotFoundError, UnsupportedLayerError
        For layers that cannot be replaced, before anything is written; and channels that reach beyond a block.
    NonFiniteError
        Where a replacement does not fit into the layer's dtype.
    DiskSpaceError
        Where the disk is full; what is written so far stays for the next call.

    See Also
    --------
    compress : in memory.
    open_network : opens what was written, block by block.

    Examples
    --------
    >>> from functools import partial
    >>> from pathlib import Path
    >>> import torch, dalr_stream as ds
    >>> def build():
    ...     return torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
    >>> ds.network.save_weights(build(), Path("weights.safetensors"))
    >>> model = ds.open_network(build, "weights.safetensors")
    >>> statistics = ds.accumulate(model, [torch.randn(32, 6)], ds.watch(model, ["0", "2"]), store="blocks.zarr")
    >>> def factors(name):
    ...     return ds.dalr(statistics[name]).at_rank(2)
    >>> folder = ds.compress_into(model, {name: partial(factors, name) for name in statistics}, "small")
    >>> sorted(path.name for path in folder.glob("model*"))[:2]
    ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    >>> ds.load(folder, build)[0][0].out_features
    2
    """
    folder, pieces, progress = Path(folder), Pieces.of(model), progress or Silent()
    require_own(folder)
    for name, record in replacements.items():
        if not callable(record):
            _require_given(name, record, example)
    _require_places(model, pieces, replacements)
    stamp = None if made_from is None else digest_of([made_from, sorted(replacements), _weights_of(model, pieces)])
    by_piece = _by_piece(pieces, replacements)
    with shard_writer(folder, pieces.skeleton(), pieces.names, stamp) as writer:
        wanted = [piece for piece in writer.left if piece in by_piece]
        alone = None if example is None else AlonePieces.of(model, example, pieces, wanted)
        small = pieces.skeleton()
        with progress.track("compress", len(writer.left), "pieces") as advance:
            for piece in writer.left[:: -1 if last_first else 1]:
                within = by_piece.get(piece, [])
                given = _given(within, replacements, example)
                if alone is not None and within:
                    _write_proved(writer, alone, piece, dict(given))
                elif piece != REST:
                    _write_pairs(writer, small, pieces, piece, given)
                else:
                    writer.write(piece, model)
                advance(1)
        writer.finish(provenance() if callable(provenance) else provenance)
    return folder


def _weights_of(model: nn.Module, pieces: Pieces) -> list[Any]:
    """Return what tells a network's weights from others: their files and types, and digests of what is in memory."""
    state = model.state_dict()
    digests = {name: str(one.dtype) if one.is_meta else tensor_digest(one) for name, one in sorted(state.items())}
    return [pieces.stamp, digests]


def _by_piece(pieces: Pieces, replacements: Replacements) -> dict[str, list[str]]:
    """Return the names of the replacements in each piece, those of one layer together."""
    found: dict[str, dict[str, list[str]]] = {}
    for name in replacements:
        layer = module_name(name)
        found.setdefault(pieces.holding(layer) or REST, {}).setdefault(layer, []).append(name)
    return {piece: [name for names in layers.values() for name in names] for piece, layers in found.items()}


def _write_proved(writer: ShardWriter, alone: AlonePieces, piece: str, given: Mapping[str, Given]) -> None:
    """Compress a piece as a network of its own, prove that it is as before between its layers, and write it."""
    with alone.piece(piece) as one:
        small = changed(one, given, Structure.of(one.network, one.example, piece=piece))
        writer.write(piece, small.get_submodule(piece), getattr(small, PLAN_ATTRIBUTE).steps)


def _write_pairs(
    writer: ShardWriter, small: nn.Module, pieces: Pieces, piece: str, given: Iterable[tuple[str, Given]]
) -> None:
    """Put pairs in the places of a piece's layers, as they come, read what stays as it is, and write it."""
    steps: list[Step] = []
    for _, group in itertools.groupby(given, key=lambda named: module_name(named[0])):
        pairs = dict(group)
        for layer, factors in by_module(pairs).items():
            _stand_on(layer_of(small, layer), pieces.device)
            steps.append(split(small, layer, factors))
    with _numbers_of(small, pieces, piece):
        writer.write(piece, small.get_submodule(piece), steps)


def _given(names: Iterable[str], replacements: Replacements, example: Any) -> Iterator[tuple[str, Given]]:
    """Yield what takes the layers' places, as each is asked for; nothing for those that stay as they are."""
    for name in names:
        replacement = replacements[name]
        record = replacement() if callable(replacement) else replacement
        if record is not None:
            _require_given(name, record, example)
            yield name, record


def _require_given(name: str, record: object, example: Any) -> None:
    if not isinstance(record, Given):
        raise InvalidInputError(
            f"layer '{name}': a replacement is what at_rank or at_size gives, got {type(record).__name__}"
        )
    if isinstance(record, SelectedNodes | NarrowedHeads) and example is None:
        raise InvalidInputError(
            f"layer '{name}': which layers are narrowed with it shows when a batch goes through the network: give one, "
            "example=batch"
        )


def _stand_on(layer: nn.Module, device: torch.device) -> None:
    """Let a layer of the skeleton be where the network runs, in no memory: what takes its place is made there."""
    for name, parameter in layer.named_parameters(recurse=False):
        nothing = torch.zeros((), dtype=parameter.dtype, device=device).expand(parameter.shape)
        layer._parameters[name] = nn.Parameter(nothing, requires_grad=parameter.requires_grad)  # noqa: SLF001


@contextmanager
def _numbers_of(small: nn.Module, pieces: Pieces, piece: str) -> Iterator[None]:
    """Let what stays as it is in a piece of the skeleton have its numbers, and the piece none afterwards."""
    here, read = small.get_submodule(piece), dict[int, nn.Parameter]()
    for name, parameter in here.named_parameters(remove_duplicate=False):
        if parameter.is_meta:
            if id(parameter) not in read:
                read[id(parameter)] = nn.Parameter(pieces.numbers(f"{piece}.{name}"), requires_grad=False)
            path, _, attribute = name.rpartition(".")
            here.get_submodule(path)._parameters[attribute] = read[id(parameter)]  # noqa: SLF001
    yield
    for module in here.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module._parameters[name] = nn.Parameter(torch.empty_like(parameter, device="meta"))  # noqa: SLF001


def _require_places(model: nn.Module, pieces: Pieces, replacements: Replacements) -> None:
    """Raise, as `compress` does, where a layer's place cannot be taken; nothing is asked for and written for that."""
    names = list(dict.fromkeys(map(module_name, replacements)))
    for name in names:
        matrix_of(layer_of(model, name))
    require_replaceable(model, names)
    trial = pieces.skeleton()
    before = modules_by_name(trial)
    for name in names:
        SplitLayer(name, 1, bias=False).apply(trial)
    require_released(trial, replaced_modules(before, trial))
