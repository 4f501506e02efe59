"""Runs the part of a network before a layer once for each batch, however many networks differ only after it.

Evaluating a layer at many ranks, and fine-tuning what comes after it, run the same layers before it again and again. A
`Cut` parts the network's torch.fx graph there: the head is run once and what crosses is kept, as long as it fits; the
tail is run with each compressed network's own modules. The same operations on the same values: the outputs are those
of the whole network.

    KeptBatches    labelled batches with what crosses in place of the inputs: a batch that is kept is not even loaded
    PrefixCache    what crosses, found again by the digest of the inputs: for whoever looks at the inputs himself
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from dalr_stream.errors import InvalidInputError, UnsupportedLayerError
from dalr_stream.network.capture.batches import LABELS, call, inputs_of, labelled
from dalr_stream.network.capture.loaders import beginning_at
from dalr_stream.network.capture.reading import without_gradients
from dalr_stream.network.layers.identity import tensor_digest
from dalr_stream.network.structure.proof import same
from dalr_stream.numerics.rows.streams import module_name

CACHE_BYTES = 256 * 2**20

Values = Mapping[str, Any]
"""What crosses a cut, by the names of the tail's arguments."""


class Cut:
    """A network parted before the first of some layers or parameters, in the order of a forward pass.

    Parameters
    ----------
    model
        The network, of one input and traceable by torch.fx.
    names
        Layers or parameters; the cut is before the first of them.

    Raises
    ------
    UnsupportedLayerError
        Where torch.fx cannot trace the network, it takes several inputs, or a forward pass uses none of the names.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
    >>> cut, batch = ds.network.Cut(model, "2"), torch.randn(4, 6)
    >>> torch.equal(cut.tail(model)(**cut.values(batch)), model(batch))
    True
    """

    def __init__(self, model: nn.Module, *names: str) -> None:
        graph = _trace(model)
        nodes = list(graph.nodes)
        taken = [str(node.target) for node in nodes if node.op == "placeholder"]
        if len(taken) != 1 or taken[0].startswith("*"):  # traced as if each were given: a mask that is None is not None
            raise UnsupportedLayerError(f"the network may take {', '.join(taken)}, and values are kept by one input")
        first = next(
            (i for i, node in enumerate(nodes) if any(_belongs(node, module_name(name)) for name in names)), None
        )
        if first is None:
            raise UnsupportedLayerError(f"a forward pass uses none of {', '.join(names)}")
        before, self._after = nodes[:first], nodes[first:]
        self._constants = [node for node in before if node.op == "get_attr"]
        later = set(self._after)
        self._crossing = [n for n in before if later & n.users.keys() and n not in self._constants]
        self._head = _head(model, before, self._crossing)

    @property
    def place(self) -> str:
        """Where the network is parted: cuts of one network at one place are the same."""
        return str(self._after[0].name)

    def values(self, inputs: Any) -> Values:
        """Return what crosses for a batch's inputs: a tensor, or a mapping of one."""
        with without_gradients():
            values: Values = call(self._head, inputs)
        return values

    def require_same(self, model: nn.Module, batch: Any) -> None:
        """Raise UnsupportedLayerError where head and tail together do not give a network's own outputs for a batch.

        A trace keeps what held while it was made: an `isinstance` that is false of the tracer's stand-ins, one random
        number; and it has no hooks of the network. Cost: two forward passes.
        """
        inputs = _inputs_alone(batch)
        with without_gradients():
            whole, parted = list(_tensors(call(model, inputs))), list(_tensors(self.tail(model)(**self.values(inputs))))
        if len(whole) != len(parted) or not all(map(_equal, parted, whole)):
            raise UnsupportedLayerError(
                "its torch.fx graph, parted there, gives other outputs than the network itself: something in it is "
                "random, or is decided by what tracing does not see"
            )

    def tail(self, small: nn.Module) -> fx.GraphModule:
        """Return the rest of `small`, whose modules it shares under their names: call it with the values as keywords.

        `small` differs from the model only after the cut. The tail of a tail is itself.
        """
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in self._crossing:
            copies[node] = graph.placeholder(node.name)
        for node in (*self._constants, *self._after):
            copies[node] = graph.node_copy(node, copies.__getitem__)
        return fx.GraphModule(small, graph)


class KeptBatches:
    """The values and labels of a loader's batches. The first ones, as many as fit, are loaded and run once.

    The loader must be able to begin in the middle (`network.loaders`) and give the same batches at every pass.
    """

    def __init__(self, cut: Cut, batches: Iterable[Any], limit_bytes: int = CACHE_BYTES) -> None:
        """Keep at most `limit_bytes` of values, on the device that they are computed on."""
        self._cut = cut
        self._batches = batches
        self._room = limit_bytes
        self._kept: list[tuple[Values, Any]] = []
        self._full = self._complete = False

    def __iter__(self) -> Iterator[tuple[Values, Any]]:
        yield from ((_copied(values), labels) for values, labels in self._kept)
        if self._complete:
            return
        begun = len(self._kept)
        for batch in beginning_at(self._batches, begun) if begun else self._batches:
            paired = isinstance(batch, tuple | list) and len(batch) == 2
            inputs, labels = batch if paired else labelled(batch)
            values = self._cut.values(inputs)
            self._keep(values, labels)
            yield values, labels
        self._complete = not self._full

    def _keep(self, values: Values, labels: Any) -> None:
        """Keep a batch where all before it are kept and there is room."""
        size = _bytes(values)
        self._full = self._full or size > self._room
        if not self._full:
            self._room -= size
            self._kept.append((_copied(values), labels))


class PrefixCache:
    """The values that cross a cut, by the digest of the network's input.

    Parameters
    ----------
    cut
        Where the network is parted.
    limit_bytes
        Keep at most this much; what does not fit is computed again.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
    >>> cache, batch = ds.network.PrefixCache(ds.network.Cut(model, "2")), torch.randn(4, 6)
    >>> torch.equal(cache.attach(model)(batch), model(batch))
    True
    """

    def __init__(self, cut: Cut, limit_bytes: int = CACHE_BYTES) -> None:
        self._cut = cut
        self._kept: dict[str, Values] = {}
        self._room = limit_bytes

    def attach(self, small: nn.Module) -> nn.Module:
        """Return `small`, which differs from the model only after the cut, with its first part run from here."""
        return _Continued(self, self._cut.tail(small))

    def values(self, inputs: torch.Tensor) -> Values:
        """Return what crosses."""
        key = tensor_digest(inputs)
        if key in self._kept:
            return _copied(self._kept[key])
        values = self._cut.values(inputs)
        size = _bytes(values)
        if size <= self._room:
            self._room -= size
            self._kept[key] = _copied(values)
        return values


class _Continued(nn.Module):
    def __init__(self, cache: PrefixCache, tail: nn.Module) -> None:
        super().__init__()
        self._cache = cache
        self.tail = tail

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> Any:
        """Give what the whole network would for its one input."""
        (only,) = (*inputs, *named.values())
        return self.tail(**self._cache.values(only))


class _Tracer(fx.Tracer):
    """Looks into no module that has no others in it: what it computes stays its own, and it can be trained as it is."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or next(m.children(), None) is None


def _trace(model: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(model)
    except (fx.proxy.TraceError, TypeError, ValueError, AttributeError, RuntimeError, NameError) as error:
        raise UnsupportedLayerError(f"torch.fx cannot trace the network ({error})") from error


def _belongs(node: fx.Node, name: str) -> bool:
    """Tell whether a node runs, or reads, the module or parameter `name`, a part of it, or what it is a part of."""
    target = str(node.target)
    return node.op in ("call_module", "get_attr") and (
        target == name or target.startswith(f"{name}.") or name.startswith(f"{target}.")
    )


def _head(model: nn.Module, before: Iterable[fx.Node], crossing: Iterable[fx.Node]) -> fx.GraphModule:
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in before:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output({node.name: copies[node] for node in crossing})
    return fx.GraphModule(model, graph)


def _inputs_alone(batch: Any) -> Any:
    """Return a batch's inputs without labels; raises UnsupportedLayerError for a form that only the user knows."""
    try:
        inputs = inputs_of(batch)
    except InvalidInputError as error:
        raise UnsupportedLayerError(f"its graph cannot be tried on a batch: {error}") from error
    return {k: v for k, v in inputs.items() if k != LABELS} if isinstance(inputs, Mapping) else inputs


def _equal(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return False
    return bool(same(actual, expected).all()) if expected.is_floating_point() else torch.equal(actual, expected)


def _copied(values: Values) -> Values:
    """Copy what crosses: the tail may overwrite what it is given. What shares memory shares it in the copy."""
    tensors = list(_tensors(values))
    users = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors)
    clones = {id(tensor): tensor.clone() for tensor in tensors if users[tensor.untyped_storage().data_ptr()] == 1}
    return copy.deepcopy(values, clones)  # which would copy the whole memory that a tensor is a part of


def _bytes(values: Values) -> int:
    return sum(tensor.nbytes for tensor in _tensors(values))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    members = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    for member in members:
        yield from _tensors(member)
